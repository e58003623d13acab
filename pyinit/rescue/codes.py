"""What each failure code means to the person who reads it, and what helps.

``pyinit explain CODE`` prints it in the rescue shell; ``python3 -m pyinit.rescue.codes > docs/errors.md``
writes the reference.
"""

from __future__ import annotations

from typing import NamedTuple

from pyinit.errors import CODES


class Help(NamedTuple):
    """Beyond what the explanation on the screen knows of the case at hand."""

    causes: tuple[str, ...]
    """What usually leads to it, the most frequent first."""
    remedies: tuple[str, ...]
    """What helps, here in the rescue shell first, then for the next boot."""


_REBUILD = "Build the image again on the installed system: `pyinit-image build -o IMAGE`."

HELP: dict[str, Help] = {
    "E-IMAGE": Help(
        (
            "The image was cut off when it was written: a full disk, a boot partition that is too small.",
            "Another archive was appended that replaces files of the image.",
        ),
        ("Boot the previous image, or another system.", _REBUILD),
    ),
    "E-NOROOT": Help(
        (
            "The boot loader's entry has no `root=`, and no partition has the type of a root.",
            "The command line was typed by hand.",
        ),
        (
            "`pyinit devices` lists what is there; `pyinit set root=UUID=...` names it; leave the shell.",
            "Put `root=` into the boot loader's configuration, or seal it: `pyinit-image build --cmdline`.",
        ),
    ),
    "E-CMDLINE": Help(
        (
            "`root=` is of a kind that this image cannot boot, such as a network file system.",
            "A value is misspelt or empty.",
        ),
        (
            "`pyinit options` lists what is understood; `pyinit set WORD` replaces a word for the next try.",
            "Correct the boot loader's configuration.",
        ),
    ),
    "E-UDEV": Help(
        (
            "The udev daemon or one of its libraries cannot be executed.",
            "It ended again and again: the log says by which signal.",
        ),
        ("`pyinit status` and /run/pyinit/boot.json say how it ended.", _REBUILD),
    ),
    "E-DEV": Help(
        (
            "The UUID or label is that of a disk that was replaced or formatted again.",
            "The image has no driver for the disk's controller.",
            "The disk needs longer than `rd.timeout=` allows.",
            "The disk is broken, switched off in the firmware, or not plugged in.",
        ),
        (
            "Compare with `pyinit devices`; then `pyinit set root=UUID=...`, or `pyinit mount-root DEVICE`.",
            "`rd.timeout=SECONDS` or `rootwait` wait longer.",
            "An image for any machine has all common drivers: `pyinit-image build --mode generic`.",
        ),
    ),
    "E-AMBIG": Help(
        (
            "A disk was cloned and both are plugged in.",
            "A snapshot or a backup has the label of the original.",
        ),
        (
            "`pyinit set root=/dev/disk/by-path/...` or `root=PARTUUID=...` names one of them exactly.",
            "Unplug the copy, or give it another UUID: tune2fs -U random, xfs_admin -U generate.",
        ),
    ),
    "E-LVM": Help(
        (
            "A disk with a volume group was cloned, and both are plugged in.",
            "The image has no lvm.",
        ),
        (
            "`lvm vgs -o +vg_uuid,pv_name` shows the groups and their devices; unplug the copy and leave.",
            "`lvm vgrename UUID NAME` gives one of two groups another name.",
            "Build the image with `--feature lvm`.",
        ),
    ),
    "E-MD": Help(
        ("The image has no mdadm.",),
        ("Build the image with `--feature md`.", "/proc/mdstat shows the arrays and their members."),
    ),
    "E-FSCK": Help(
        (
            "The machine lost power or the disk lost data, and not all of it is safe to repair unasked.",
            "The disk itself fails: the kernel's log has its errors.",
            "Somebody stopped the check with Ctrl-C.",
        ),
        (
            "Save what matters first: `pyinit set rd.pyinit.fsck.on-fail=ro` mounts it read-only.",
            "`fsck.ext4 -y DEVICE` repairs everything it can; then leave the shell, and it is checked again.",
            "`pyinit set fsck.mode=skip` boots without a check.",
        ),
    ),
    "E-UNLOCK": Help(
        (
            "The keyboard has another layout than when the passphrase was set, or Caps Lock is on.",
            "The key file is not the one that was added to the volume, or its device was not plugged in.",
            "Nobody was there to type in time (`rd.luks.timeout=`).",
        ),
        (
            "Leave the shell: the passphrase is asked for again.",
            "Open it by hand: `cryptsetup open DEVICE NAME`, then leave the shell.",
            "Another key slot may have a recovery key: `cryptsetup luksDump DEVICE` lists them.",
        ),
    ),
    "E-LUKS": Help(
        (
            "The header was overwritten: by a partitioning tool, an installer, a RAID set up on top.",
            "The image was built without cryptsetup, or without the kernel's module for the cipher.",
        ),
        (
            "Write nothing to the device. `cryptsetup luksHeaderRestore` brings a backup of the header back.",
            "`pyinit-image build --feature luks` makes an image with cryptsetup and the usual ciphers.",
        ),
    ),
    "E-LUKS-CIPHER": Help(
        (
            "Somebody who had the disk in hand changed the header, to be able to read what is written to it.",
            "The volume was made with the cipher `cipher_null`, for a test.",
        ),
        (
            "Type no passphrase for it and write nothing to it; compare its header with a backup.",
            "Copy the data off on a trusted system, and make the volume again.",
        ),
    ),
    "E-OOM-KDF": Help(
        (
            "The key was added on a machine with more memory: Argon2 takes as much as it was told to then.",
            "A virtual machine, or a kdump kernel, was given less memory than before.",
        ),
        (
            "Give the machine more memory for this boot.",
            "`cryptsetup luksConvertKey --pbkdf-memory KIB DEVICE`, on a machine with enough, makes it less.",
        ),
    ),
    "E-VERITY": Help(
        (
            "`roothash=` is that of another version of the root: it changes with every byte of it.",
            "The root or its hashes were changed, by a fault of the disk or by somebody.",
            "The image has no veritysetup.",
        ),
        (
            "`veritysetup verify DATA HASHES ROOTHASH` reads all of it and says whether it fits.",
            "Boot an older entry of the boot loader, with the hash of the older root.",
            "Build the image with `--feature verity`.",
        ),
    ),
    "E-RESUME": Help(
        (
            "A file system was mounted before the system was resumed, in the rescue shell or by a boot hook.",
            "`resume=` was set when the root had been mounted already.",
        ),
        (
            "`pyinit set noresume` gives the hibernated system up: what it had not saved is lost.",
            "`mkswap` of that device, in the real system, takes the mark away.",
        ),
    ),
    "E-MOUNT": Help(
        (
            "The file system is damaged: the kernel's words tell where.",
            "`rootflags=` has an option that this file system does not know.",
            "The image has no driver for the file system, or it is inside a container (LUKS, LVM, MD).",
        ),
        (
            "`pyinit set rootflags=` takes the options away.",
            "Check the file system from another system, or from here if the image has its fsck.",
            "Mount it by hand on /sysroot, or with `pyinit mount-root DEVICE`, and leave the shell.",
        ),
    ),
    "E-IO": Help(
        (
            "The disk was pulled out, its cable or its controller failed, or it is about to die.",
            "A device below it is gone: an array that lost too many members, a connection that broke.",
        ),
        (
            "Plug it in again; leaving the shell looks for the root from the beginning and mounts it again.",
            "dmesg has what the kernel says of the device; smartctl of another system, what it says itself.",
        ),
    ),
    "E-USR": Help(
        (
            "The line for /usr in the root's /etc/fstab names a disk that was replaced or formatted again.",
            "The device of /usr did not appear, or its file system is damaged.",
        ),
        (
            "`pyinit set mount.usr=UUID=...` names another device; or mount it on /sysroot/usr, and leave.",
            "Correct /etc/fstab: the root is on /sysroot (`mount -o remount,rw /sysroot`).",
        ),
    ),
    "E-ROOTFS": Help(
        (
            "`root=` names another file system than the root: /boot, a data disk, an empty one.",
            "The root is a subvolume that `rootflags=subvol=` does not name.",
        ),
        ("Look at what is in /sysroot, then `pyinit set root=...` or `pyinit set rootflags=subvol=...`.",),
    ),
    "E-INIT": Help(
        (
            "`init=` is misspelt.",
            "/usr is on another file system, or the installation of the system is not complete.",
            "The program or its interpreter is for another architecture.",
        ),
        (
            "`pyinit set init=/bin/sh` starts a shell of the real system, to repair it.",
            "Look at /sysroot/sbin/init and what it links to.",
        ),
    ),
    "E-HOOK": Help(
        ("A boot hook that the owner of this machine added to the image raised an exception.",),
        (
            "The explanation names the file and the line; leaving the shell calls the hook again.",
            "Correct the hook and build the image again, or build it without.",
        ),
    ),
    "E-SWITCH": Help(
        (
            "The mounts were changed by hand so that they cannot be moved into the new root.",
            "The kernel refused to execute init although it looked executable.",
        ),
        (
            "/proc/self/mountinfo shows what is in the way; leave the shell to try again.",
            "Once the root has been changed there is no way back: the machine restarts or powers off.",
        ),
    ),
    "E-HANG": Help(
        (
            "A disk, or its cable or controller, does not answer: the explanation names who owes an answer.",
            "A driver of another device waits for its hardware or its firmware.",
        ),
        (
            "Leaving the shell waits once more: pull the device out, or switch it on, and leave.",
            "`rd.driver.blacklist=MODULE` on the kernel command line keeps a driver from being loaded.",
            "`rd.timeout=SECONDS` is also how long the kernel is waited for; 0 is for ever.",
        ),
    ),
    "E-FORK": Help(
        (
            "Something fills the process table: a hook or a rule that starts itself again and again.",
            "`kernel.pid_max` or `kernel.threads-max` was set too low.",
            "There is no memory for another process.",
        ),
        (
            "The explanation has the number of processes, the limits and the memory.",
            "A shell may not start either; then `rd.emergency=` and `panic=` decide what happens.",
        ),
    ),
    "E-MEM": Help(
        (
            "The machine, or the virtual machine, has less memory than this image needs.",
            "`root=` stands in the image only: then the kernel unpacks it into a tmpfs of half the memory.",
            "`hugepages=` or `crashkernel=` take what would be needed.",
        ),
        (
            "More memory: an image with all drivers boots with 160 MiB.",
            "A smaller image: `pyinit-image build --mode host`, or `--mode list`.",
            "`root=` on the boot loader's command line: the kernel then uses a ramfs, which has no limit.",
        ),
    ),
    "E-INTERNAL": Help(
        ("A defect of pyinit, or an image whose files do not fit together.",),
        (
            "`pyinit report --to PLACE` writes a report to a stick; please send it to pyinit's authors.",
            "Mount the root by hand on /sysroot and leave the shell: the boot goes on with it.",
        ),
    ),
}


def tell(code: str) -> list[str]:
    """The lines of ``pyinit explain CODE``; LookupError for a code that does not exist."""
    known = HELP[code]
    lines = [f"{code}: {CODES[code]}", "usual causes:", *(f"  - {cause}" for cause in known.causes)]
    return [*lines, "what helps:", *(f"  - {remedy}" for remedy in known.remedies)]


def document() -> str:
    """The reference as Markdown."""
    parts = [
        "# What the failure codes mean",
        "",
        "Every failure of a boot has one of these codes. The screen shows the code with one sentence of",
        "cause, what was tried, what is there instead, and what to do; `pyinit explain` shows it",
        "again, `pyinit explain CODE` what stands here. Written by `python3 -m pyinit.rescue.codes`.",
    ]
    for code, known in HELP.items():
        parts += [
            "",
            f"## {code}",
            "",
            f"{CODES[code][0].upper()}{CODES[code][1:]}.",
            "",
            "Usual causes:",
            "",
        ]
        parts += [f"- {cause}" for cause in known.causes]
        parts += ["", "What helps:", ""]
        parts += [f"- {remedy}" for remedy in known.remedies]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
