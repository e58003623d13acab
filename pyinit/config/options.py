"""The kernel command line options of pyinit: one table for the parser, ``--help`` and the documentation.

``python3 -m pyinit.config.options`` prints docs/options.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pyinit.config.cmdline import CommandLine, Word, is_on, parse
from pyinit.config.distance import closest
from pyinit.config.sealed import POLICIES
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.config.bcache import BcacheWords
    from pyinit.config.image import ImageFile
    from pyinit.config.luks import LuksWords
    from pyinit.config.multipath import MultipathWords
    from pyinit.config.overlay import Overlay
    from pyinit.config.verity import VerityWords
    from pyinit.config.volumes import VolumeWords

Kind = Literal["text", "word", "switch", "number", "choice", "list", "device", "break", "policy"]

BREAK_POINTS: Final = (
    "cmdline",
    "pre-udev",
    "pre-trigger",
    "initqueue",
    "pre-mount",
    "mount",
    "pre-pivot",
    "cleanup",
    "switch-root",
)
"""Where ``rd.break`` can stop, in the order of a boot; ``switch-root`` is what the bare word asks for."""

DEFAULT_TIMEOUT: Final = 180
_MAX_SECONDS = 2_000_000  # 23 days; poll(2) counts milliseconds in a signed 32-bit integer
# CONSOLE_LOGLEVEL_QUIET and CONSOLE_LOGLEVEL_DEBUG of the kernel's include/linux/printk.h.
_QUIET_LEVEL, _DEBUG_LEVEL = 4, 10
_UDEV_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", *"01234567")
_EMERGENCY = ("reboot", "poweroff", "halt")


class Option(NamedTuple):
    """One option of the kernel command line."""

    name: str
    kind: Kind
    group: str
    value: str
    """What follows the name when it is typed: ``=SECONDS``; ``[=SECONDS]`` where it may be left out."""
    default: str
    """The default, in words."""
    help: str
    stage: str
    """The first stage of the boot at which it matters."""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = _MAX_SECONDS
    other_names: tuple[str, ...] = ()
    """Spellings of other programs or times. They have no effect but earn a warning with the right name."""


_VOLUMES = "Logical volumes and arrays"
_ROOT, _CHECK, _WAIT, _SHOW = "Root file system", "File system checks", "Waiting for devices", "Messages"
_LUKS = "Encrypted volumes"
_RESCUE, _DRIVERS = "Rescue and debugging", "Drivers and udev"
_RESUME = "Hibernation"
# Pages; as many digits as a number may have.
_MAX_OFFSET = 10**10 - 1
_NO_RESUME = ("", "none", "no", "off", "0")

OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        "root",
        "text",
        _ROOT,
        "=DEVICE",
        "found by the type of its partition",
        "The block device that holds the root file system: a path (`/dev/vda1`, `/dev/disk/by-id/...`, any "
        "link that udev makes), `UUID=`, `LABEL=`, `PARTUUID=` (also `PARTUUID=.../PARTNROFF=n`, the "
        "partition n places after that one), `PARTLABEL=`, or a device number (`8:1`, `0801`). "
        'A label with blanks needs double quotes: `"root=LABEL=my disk"`. With `gpt-auto`, and without '
        "`root=`, it is the partition whose GPT type says so (Discoverable Partitions Specification): the "
        "first one on the disk that the boot loader was started from, or the only one where that is not "
        "known. "
        "`rd.systemd.gpt_auto=0` switches this off.",
        "cmdline",
    ),
    Option(
        "rootfstype",
        "text",
        _ROOT,
        "=TYPE[,TYPE...]",
        "the type udev found",
        "File system type of the root; several, separated by commas, are tried in order. The one that "
        "udev found comes last.",
        "mount",
    ),
    Option(
        "rootflags",
        "text",
        _ROOT,
        "=OPTIONS",
        "none",
        "Mount options of the root file system, separated by commas, as in fstab(5). With `degraded` a btrfs "
        "that lacks devices is mounted without them 30 seconds after the first one has come.",
        "mount",
    ),
    Option(
        "ro",
        "word",
        _ROOT,
        "",
        "yes",
        "Mount the root file system read-only. The last of `ro` and `rw` counts.",
        "mount",
    ),
    Option("rw", "word", _ROOT, "", "no", "Mount the root file system writable.", "mount"),
    Option(
        "init",
        "text",
        _ROOT,
        "=PATH",
        "the first of /sbin/init, /etc/init, /bin/init, /bin/sh",
        "The program that becomes the real init, looked up in the root file system. "
        "Words after `--` are its arguments.",
        "pre-pivot",
    ),
    Option(
        "mount.usr",
        "text",
        _ROOT,
        "=DEVICE",
        "the line for /usr in the root's fstab",
        "The device of a separate /usr, named as in `root=`. It is mounted before the switch, read-only when "
        "the root is. So is every line of that fstab with the option `x-initrd.mount`; one with `nofail` "
        "is not waited for longer than 5 s.",
        "mount",
    ),
    Option("mount.usrfstype", "text", _ROOT, "=TYPE", "what fstab says", "Its file system type.", "mount"),
    Option("mount.usrflags", "text", _ROOT, "=OPTIONS", "what fstab says", "Its mount options.", "mount"),
    Option(
        "roothash",
        "text",
        _ROOT,
        "=HASH",
        "none",
        "Every block of the root is checked against this hash when it is read (dm-verity). The root is "
        "/dev/mapper/root, `root=` is not needed. Its data and its hashes are on the partitions whose UUIDs "
        "are the hash's first and last 128 bits, unless the words below name them. `systemd.verity=0` "
        "switches this off.",
        "initqueue",
    ),
    Option(
        "systemd.verity_root_data",
        "text",
        _ROOT,
        "=DEVICE",
        "by the hash",
        "The device with the root's data, named as in `root=`.",
        "initqueue",
    ),
    Option(
        "systemd.verity_root_hash",
        "text",
        _ROOT,
        "=DEVICE",
        "by the hash",
        "The device with its hashes.",
        "initqueue",
    ),
    Option(
        "systemd.verity_root_options",
        "text",
        _ROOT,
        "=OPTION,...",
        "none",
        "As in veritytab(5): `ignore-corruption`, `restart-on-corruption`, `panic-on-corruption`, "
        "`ignore-zero-blocks`, `check-at-most-once`, `root-hash-signature=PATH`, `hash-offset=BYTES`.",
        "initqueue",
    ),
    Option(
        "rd.fstab",
        "switch",
        _ROOT,
        "[=0|1]",
        "1",
        "`0`: what the root's fstab says is left to the real system; `mount.usr=` still counts.",
        "mount",
    ),
    Option(
        "loop",
        "text",
        _ROOT,
        "=PATH",
        "none, the device holds the root itself",
        "The root is in this file on the file system of `root=`, which is mounted on /run/initramfs/live, "
        "writable with `rw` only.",
        "mount",
    ),
    Option("loopfstype", "text", _ROOT, "=TYPE", "what is found in it", "File system type in it.", "mount"),
    Option(
        "loopflags", "text", _ROOT, "=OPTIONS", "none", "Mount options of the file system in it.", "mount"
    ),
    Option(
        "rd.live.image",
        "switch",
        _ROOT,
        "[=0|1]",
        "0, unless root= begins with live:",
        "The device of `root=` is a live medium. `root=live:DEVICE` says so too; with `live:` the label of a "
        "CD may be written `CDLABEL=`. The root is in /LiveOS/squashfs.img on it (squashfs or erofs), or in "
        "/LiveOS/rootfs.img inside of that, and changes are laid over it as `rd.overlay` says, in memory "
        "without a word about it.",
        "mount",
    ),
    Option("rd.live.dir", "text", _ROOT, "=FOLDER", "LiveOS", "Where on a live medium it is.", "mount"),
    Option("rd.live.squashimg", "text", _ROOT, "=NAME", "squashfs.img", "The name of that image.", "mount"),
    Option(
        "rd.overlay",
        "text",
        _ROOT,
        "[=off|tmpfs[:LIMITS]|DEVICE]",
        "off",
        "Lay changes over the root, which itself stays as it is: in memory (`tmpfs`, also as a bare word; "
        "LIMITS are `size=`, `nr_blocks=` and `nr_inodes=` of tmpfs(5), separated by commas), or on the file "
        "system of a device, named as in `root=`, where they survive (`/overlay` and `/ovlwork` on it). The "
        "root is seen unchanged in /run/rootfsbase. The line for / in fstab becomes a comment there. "
        "A /usr of its own has no changes laid over it.",
        "mount",
    ),
    Option(
        "rd.overlay.reset",
        "switch",
        _ROOT,
        "[=0|1]",
        "0",
        "Delete the changes on the device of `rd.overlay` before it is used.",
        "mount",
    ),
    Option(
        "rd.overlay.readonly",
        "switch",
        _ROOT,
        "[=0|1]",
        "0",
        "Show the changes on the device of `rd.overlay`, and make no new ones: nothing is written to it.",
        "mount",
    ),
    Option(
        "fsck.mode",
        "choice",
        _CHECK,
        "=auto|force|skip",
        "auto",
        "Whether the root and /usr are checked before they are mounted: `auto` when they need it, `force` in "
        "any case, `skip` never. xfs, btrfs and read-only file systems check themselves. The real system "
        "does not check again what was checked here.",
        "mount",
        choices=("auto", "force", "skip"),
    ),
    Option(
        "fsck.repair",
        "choice",
        _CHECK,
        "=preen|yes|no",
        "preen",
        "What a check may repair: `preen` what is safe, `yes` everything, `no` nothing.",
        "mount",
        choices=("preen", "yes", "no"),
    ),
    Option("rd.skipfsck", "switch", _CHECK, "[=0|1]", "0", "The same as `fsck.mode=skip`.", "mount"),
    Option("forcefsck", "word", _CHECK, "", "no", "The same as `fsck.mode=force`.", "mount"),
    Option(
        "rd.pyinit.fsck.on-fail",
        "choice",
        _CHECK,
        "=shell|ro",
        "shell",
        "What follows errors that a check does not correct: `shell` stops with `E-FSCK`, `ro` mounts "
        "read-only without replaying the log.",
        "mount",
        choices=("shell", "ro"),
    ),
    Option(
        "resume",
        "text",
        _RESUME,
        "=DEVICE",
        "what the image has from the system it was built on",
        "The swap device, named as in `root=`, to which the system may have been hibernated. It is looked at "
        "before anything is mounted, and when it holds the memory of a hibernated system the kernel goes on "
        "with that one. It is waited for before the root, at most 35 s and not longer than `rd.timeout` "
        "says, and meanwhile nothing is written to what the root lies on; without it the boot goes on with a "
        "warning. `none` or nothing: there is none.",
        "initqueue",
    ),
    Option(
        "resume_offset",
        "number",
        _RESUME,
        "=PAGES",
        "0",
        "For a swap file: `resume=` names the device that its file system is on, this is where on the device "
        "the file begins, in pages of memory (`filefrag -v`, `btrfs inspect-internal map-swapfile -r`).",
        "initqueue",
        high=_MAX_OFFSET,
    ),
    Option(
        "noresume",
        "word",
        _RESUME,
        "",
        "no",
        "Do not resume, whatever `resume=` says; `hibernate=noresume`, `hibernate=no` and `nohibernate` do "
        "the same. The memory of a hibernated system is lost once its file systems are mounted by another.",
        "initqueue",
    ),
    Option(
        "rd.auto",
        "switch",
        _VOLUMES,
        "[=0|1]",
        "0",
        "Activate every logical volume, assemble every array and use every bcache that is found. Without it "
        "only those that "
        "the words below, `root=` and `mount.usr=`, or the system's configuration in the image name.",
        "initqueue",
    ),
    Option("rd.lvm", "switch", _VOLUMES, "[=0|1]", "1", "`0`: activate no logical volume.", "initqueue"),
    Option(
        "rd.lvm.vg",
        "list",
        _VOLUMES,
        "=GROUP",
        "none",
        "Activate all volumes of a volume group. May be given several times.",
        "initqueue",
        other_names=("rd_LVM_VG",),
    ),
    Option(
        "rd.lvm.lv",
        "list",
        _VOLUMES,
        "=GROUP/VOLUME",
        "none",
        "Activate one logical volume. May be given several times. `root=/dev/GROUP/VOLUME` and "
        "`root=/dev/mapper/GROUP-VOLUME` say so themselves.",
        "initqueue",
        other_names=("rd_LVM_LV",),
    ),
    Option("rd.lvm.conf", "switch", _VOLUMES, "[=0|1]", "1", "`0`: lvm.conf does not count.", "initqueue"),
    Option("rd.md", "switch", _VOLUMES, "[=0|1]", "1", "`0`: assemble no array.", "initqueue"),
    Option(
        "rd.md.uuid",
        "list",
        _VOLUMES,
        "=UUID",
        "none",
        "Assemble the array with this UUID, as mdadm or udev write it. May be given several times.",
        "initqueue",
        other_names=("rd_MD_UUID",),
    ),
    Option(
        "rd.md.conf",
        "switch",
        _VOLUMES,
        "[=0|1]",
        "1",
        "`0`: the arrays of the image's mdadm.conf are not assembled for being there.",
        "initqueue",
    ),
    Option(
        "rd.bcache",
        "list",
        _VOLUMES,
        "[=0|1|UUID]",
        "none",
        "Use the bcache whose backing device has this UUID, with its caches; may be given several times. "
        "Alone or with `1`: all that are found; `0`: none. `root=/dev/bcache/by-uuid/UUID` says so itself.",
        "initqueue",
    ),
    Option(
        "rd.bcache.degraded",
        "switch",
        _VOLUMES,
        "[=0|1]",
        "0",
        "Use a backing device without its cache when that has not come after 30 s. What only the cache has "
        "is lost then; so it is never done while the backing device says that there is something.",
        "initqueue",
    ),
    Option(
        "rd.multipath",
        "list",
        _VOLUMES,
        "[=0|1|default|WWID]",
        "none",
        "Use the disk with this WWID through a map over all paths to it; may be given several times. "
        "Alone or with `1`: every SCSI disk but those on USB, even with one path; `default`: so, without "
        "the image's multipath.conf; `0`: none, also not those that the builder found. `nompath` and "
        "`multipath=off` are `rd.multipath=0`.",
        "pre-udev",
    ),
    Option(
        "rd.timeout",
        "number",
        _WAIT,
        "=SECONDS",
        "what rootwait and rd.retry say",
        "How long to wait for a device before the boot counts as failed; 0 waits for ever. "
        "Stronger than `rootwait` and `rd.retry`.",
        "initqueue",
    ),
    Option(
        "rd.retry",
        "number",
        _WAIT,
        "=SECONDS",
        str(DEFAULT_TIMEOUT),
        "The same under its older name, for when neither `rd.timeout` nor `rootwait` is given; "
        "0 waits for ever.",
        "initqueue",
        other_names=("rdretry",),
    ),
    Option(
        "rootwait",
        "number",
        _WAIT,
        "[=SECONDS]",
        "no",
        "As a bare word: wait for the root device for ever. With a value: for so many seconds.",
        "initqueue",
    ),
    Option(
        "rootdelay",
        "number",
        _WAIT,
        "=SECONDS",
        "0",
        "Added to the time after which a missing root device is a failure. A device that is there is used at "
        "once: the boot reacts to devices as they appear, so there is nothing to be gained by a pause.",
        "initqueue",
    ),
    Option(
        "rd.luks",
        "switch",
        _LUKS,
        "[=0|1]",
        "1",
        "Whether encrypted volumes are opened at all. Which ones: those of the other words, those in the "
        "image's /etc/crypttab (which has what the root needs), and the one of `root=/dev/mapper/luks-UUID`.",
        "initqueue",
        other_names=("rd_NO_LUKS",),
    ),
    Option(
        "rd.luks.uuid",
        "list",
        _LUKS,
        "=UUID",
        "none",
        "Open the LUKS volume with this UUID, or each one whose UUID begins so. It is called `luks-UUID` "
        "unless crypttab or `rd.luks.name` have a name. May be given several times.",
        "initqueue",
        other_names=("rd_LUKS_UUID", "luks.uuid"),
    ),
    Option(
        "rd.luks.name",
        "list",
        _LUKS,
        "=UUID=NAME",
        "none",
        "Open this volume and call it /dev/mapper/NAME. May be given several times.",
        "initqueue",
        other_names=("luks.name", "cryptdevice", "cryptopts"),
    ),
    Option(
        "rd.luks.partuuid",
        "list",
        _LUKS,
        "=UUID",
        "none",
        "Open the LUKS volume in the partition with this PARTUUID. May be given several times.",
        "initqueue",
    ),
    Option(
        "rd.luks.serial",
        "list",
        _LUKS,
        "=SERIAL",
        "none",
        "Open the LUKS volumes on the disk with this serial number. May be given several times.",
        "initqueue",
    ),
    Option(
        "rd.luks.key",
        "list",
        _LUKS,
        "=PATH[:DEVICE[:UUID]]",
        "none",
        "A file with the key: in the image, or on the file system of DEVICE, which is given as in `root=`; "
        "for the volume with this UUID (or whose UUID begins so), else for all. `UUID=PATH[:DEVICE]` is "
        "understood too. Without the file, the passphrase is asked for. May be given several times.",
        "initqueue",
        other_names=("luks.key", "rd_LUKS_KEYPATH", "cryptkey"),
    ),
    Option(
        "rd.luks.key.tout",
        "number",
        _LUKS,
        "=SECONDS",
        "10",
        "How long to wait for the device with the key before the passphrase is asked for; 0 waits for ever.",
        "initqueue",
    ),
    Option(
        "rd.luks.options",
        "list",
        _LUKS,
        "=[UUID=]OPTION,...",
        "none",
        "Options as in crypttab: `discard`, `header=PATH[:DEVICE]`, `tries=`, `timeout=`, `keyfile-offset=`, "
        "`keyfile-size=`, `keyfile-timeout=`, `key-slot=`, `readonly`, `same-cpu-crypt`, "
        "`submit-from-crypt-cpus`, `no-read-workqueue`, `no-write-workqueue`. Without a UUID: for all "
        "volumes that have none of their own.",
        "initqueue",
        other_names=("luks.options",),
    ),
    Option(
        "rd.luks.data",
        "list",
        _LUKS,
        "=UUID=DEVICE",
        "none",
        "The device with the data of the volume whose header lies elsewhere (`header=`).",
        "initqueue",
        other_names=("luks.data",),
    ),
    Option(
        "rd.luks.allow-discards",
        "list",
        _LUKS,
        "[=UUID]",
        "no",
        "Pass discards (TRIM) on to the disk, of this volume or of all. They tell anybody who has the disk "
        "which blocks are in use.",
        "initqueue",
        other_names=("rd_LUKS_ALLOW_DISCARDS",),
    ),
    Option(
        "rd.luks.timeout",
        "number",
        _LUKS,
        "=SECONDS",
        "0",
        "How long a person may take to type a passphrase; 0: as long as they like.",
        "initqueue",
    ),
    Option(
        "rd.luks.crypttab",
        "switch",
        _LUKS,
        "[=0|1]",
        "1",
        "Whether the /etc/crypttab of the image counts.",
        "initqueue",
    ),
    Option("quiet", "word", _SHOW, "", "no", "Show warnings and errors only.", "cmdline"),
    Option(
        "debug",
        "word",
        _SHOW,
        "",
        "no",
        "The kernel shows its debugging messages; pyinit shows its information messages.",
        "cmdline",
    ),
    Option(
        "loglevel",
        "number",
        _SHOW,
        "=LEVEL",
        "the kernel's",
        "Kernel messages below this level are shown. 4 and less count as `quiet`; "
        "the last of `quiet`, `debug` and `loglevel` counts.",
        "cmdline",
        high=15,
    ),
    Option(
        "rd.info",
        "switch",
        _SHOW,
        "[=0|1]",
        "0",
        "Show information messages, `quiet` or not.",
        "cmdline",
        other_names=("rdinfo",),
    ),
    Option(
        "rd.debug",
        "switch",
        _SHOW,
        "[=0|1]",
        "0",
        "Tell every step: device events, modules, mounts, what the root switch does. To the kernel log and "
        "/run/initramfs/init.log, and to the console unless `quiet`.",
        "cmdline",
        other_names=("rdinitdebug", "rd.initdebug"),
    ),
    Option(
        "rd.memdebug",
        "number",
        _SHOW,
        "=LEVEL",
        "0",
        "Before each stage, tell how much memory is free, cached and in the kernel's slabs (1 and more); "
        "also write /proc/meminfo (2), /proc/slabinfo (3), the modules and the processes by size (4), free "
        "pages and /proc/vmstat (5) to /run/initramfs/memdebug.txt.",
        "cmdline",
        high=5,
    ),
    Option(
        "rd.break",
        "break",
        _RESCUE,
        "[=STAGE[,STAGE...]]",
        "none",
        "Open a shell before a stage; leaving it continues the boot. Stages: "
        + ", ".join(f"`{name}`" for name in BREAK_POINTS)
        + ". The bare word means `switch-root`: everything is mounted, the real init is next. "
        "May be given several times.",
        "cmdline",
        choices=BREAK_POINTS,
        other_names=("rdbreak", "break"),
    ),
    Option(
        "rd.shell",
        "switch",
        _RESCUE,
        "[=0|1]",
        "1",
        "Whether a failure or `rd.break` may open a shell. It can only take away what the image allows.",
        "cmdline",
        other_names=("rdshell",),
    ),
    Option(
        "rd.pyinit.rescue",
        "policy",
        _RESCUE,
        "=" + "|".join(POLICIES),
        "what is sealed into the image",
        "Who gets a rescue shell: nobody, who knows the password that is sealed into the image, or whoever "
        "sits there. Of all that is asked for and of what the image allows the strictest counts.",
        "cmdline",
        choices=POLICIES,
    ),
    Option(
        "rd.emergency",
        "choice",
        _RESCUE,
        "=" + "|".join(_EMERGENCY),
        "none",
        "What to do after a failure: at once when there is no shell, else when the shell is left. "
        "`pyinit retry` goes on with the boot all the same, and so does leaving it after `pyinit set` or "
        "with a root on /sysroot. Without it leaving the shell goes on; where there is none `panic=` counts, "
        "else power off.",
        "cmdline",
        choices=_EMERGENCY,
    ),
    Option(
        "rd.ctty",
        "device",
        _RESCUE,
        "=TTY",
        "every console",
        "The only terminal that has a rescue shell, `ttyS0` or `/dev/ttyS0`. One that does not exist counts "
        "as not given.",
        "cmdline",
    ),
    Option(
        "panic",
        "number",
        _RESCUE,
        "=SECONDS",
        "0",
        "The kernel's own: restart so many seconds after a panic, at once if negative, never if 0. "
        "pyinit restarts so too, after a failure for which there is no shell, and when the password of the "
        "rescue shell is asked for and no key was pressed for so many seconds.",
        "cmdline",
        low=-(2**31),
        high=2**31 - 1,
    ),
    Option(
        "rd.pyinit.watchdog",
        "number",
        _RESCUE,
        "=SECONDS",
        "off",
        "Start the hardware's watchdog (`/dev/watchdog`): it resets the machine when the boot has made no "
        "progress for so many seconds: no stage, module, program or mount was done, no device appeared. "
        "Choose more than the longest wait that is normal. While the rescue shell is open it waits until "
        "nobody has typed anything for five minutes. It is never stopped: the real system takes it over "
        "running. Its driver comes into the image with `--feature watchdog`.",
        "pre-udev",
        low=1,
        high=65_535,
    ),
    Option(
        "rd.pyinit.report",
        "device",
        _RESCUE,
        "=DEVICE",
        "none",
        "Serial port to which progress, failures and the boot record are sent as framed JSON, for harnesses.",
        "cmdline",
    ),
    Option(
        "rd.driver.pre",
        "list",
        _DRIVERS,
        "=MODULE[,MODULE...]",
        "none",
        "Kernel modules to load before udev is started. May be given several times.",
        "pre-udev",
        other_names=("rdloaddriver", "rdinsmodpre"),
    ),
    Option(
        "rd.driver.post",
        "list",
        _DRIVERS,
        "=MODULE[,MODULE...]",
        "none",
        "Kernel modules to load only after the devices have been looked for. May be given several times.",
        "initqueue",
        other_names=("rdinsmodpost",),
    ),
    Option(
        "rd.driver.blacklist",
        "list",
        _DRIVERS,
        "=MODULE[,MODULE...]",
        "none",
        "Kernel modules that are not loaded for any device. May be given several times.",
        "pre-udev",
        other_names=("rdblacklist",),
    ),
    Option(
        "modprobe.blacklist",
        "list",
        _DRIVERS,
        "=MODULE[,MODULE...]",
        "none",
        "The same; modprobe(8) in the booted system reads it too.",
        "pre-udev",
    ),
    Option(
        "rd.udev.log_level",
        "choice",
        _DRIVERS,
        "=LEVEL",
        "udevd's",
        "How much udevd says: a name (`err`, `info`, `debug`...) or a number from 0 to 7. It is udevd's own.",
        "pre-trigger",
        choices=_UDEV_LEVELS,
        other_names=("rd.udev.log_priority", "rd.udev.debug", "rd.udev.info", "rdudevdebug", "rdudevinfo"),
    ),
)

_IMAGE_WORDS = ("loop", "rd.live.image")
#: Old spellings that have the effect of ours (pyinit.config.overlay), with a hint. Value: our word.
OLD_SPELLINGS: Final = {
    "rd.overlayfs": "rd.overlay",
    "rd.live.overlay": "rd.overlay",
    "rd.live.overlay.overlayfs": "rd.overlay",
    "rd.live.overlay.reset": "rd.overlay.reset",
    "rd.live.overlay.readonly": "rd.overlay.readonly",
    # Ubuntu's, of the package overlayroot.
    "overlayroot": "rd.overlay",
}

_BY_NAME = {option.name: option for option in OPTIONS}
_OTHER_NAMES = {other: option for option in OPTIONS for other in option.other_names}

# Words that mean something to other initramfs programs: (what they are for, names without "rd.").
_UNHANDLED: Final[tuple[tuple[str, str], ...]] = (
    ("keys on smart cards", "luks.smartcard"),
    ("some options of LVM", "lvm.snapshot lvm.snapsize lvm.mergetags"),
    ("RAID of firmware, and waiting for clean arrays", "md.imsm md.ddf md.waitclean"),
    ("BIOS RAID", "dm dm.uuid"),
    (
        "iSCSI",
        "iscsi.initiator iscsi.target.name iscsi.target.ip iscsi.target.port iscsi.target.group "
        "iscsi.username iscsi.password iscsi.in.username iscsi.in.password iscsi.firmware iscsi.ibft "
        "iscsi.mp iscsi.waitnet iscsi.testroute iscsi.login_retry_max iscsi.param iscsi.transport",
    ),
    ("NVMe over fabrics", "nonvmf nvmf.nonbft nvmf.nostatic nvmf.hostnqn nvmf.hostid nvmf.discover"),
    ("FCoE", "fcoe"),
    ("s390 devices", "zfcp zfcp.conf dasd znet znet_ifname cio_accept zipl dcssblk lunmask"),
    (
        "networking",
        "neednet peerdns bootif route net.dhcp.retry net.timeout.dhcp net.timeout.iflink net.timeout.ifup "
        "net.timeout.route net.timeout.ipv6dad net.timeout.ipv6auto net.timeout.carrier nfs.domain "
        "noverifyssl",
    ),
    (
        "some options of live images, and encrypted overlays",
        "live.ram live.check live.debug live.overlay.size "
        "live.overlay.thin live.overlay.cowfs live.overlay.nouserconfirmprompt minmem writable.fsimg "
        "overlay.crypt",
    ),
    ("old layouts", "convertfs"),
    (
        "console fonts, keymaps and locales",
        "vconsole.keymap vconsole.keymap.ext vconsole.unicode vconsole.font vconsole.font.map "
        "vconsole.font.unimap locale.LANG locale.LC_ALL",
    ),
    (
        "some more options of dracut",
        "hostonly cmdline driver.export shutdown.timeout.umount fips.skipkernel caps caps.initdrop "
        "caps.disablemodules caps.disablekexec",
    ),
)
_PURPOSE = {f"rd.{name}": purpose for purpose, names in _UNHANDLED for name in names.split()}

# Read by the programs themselves (kernel-command-line(7), systemd-udevd.service(8)).
_FOREIGN_PREFIXES = ("rd.systemd.", "rd.plymouth")
_UDEV = (
    "children_max",
    "exec_delay",
    "event_timeout",
    "resolve_names",
    "blockdev_read_only",
    "timeout_signal",
)
_FOREIGN = frozenset(f"rd.udev.{name}" for name in _UDEV)

_MANY = 12
"""So many warnings are shown; the rest is counted."""


class BootConfig(NamedTuple):
    """What the command lines asked for."""

    root: str
    """``root=`` as given; empty when it was not. Decode with :func:`pyinit.config.devspec.parse_spec`."""
    rootfstype: tuple[str, ...]
    """Types to try in order; empty for the one udev found."""
    rootflags: str
    read_only: bool
    usr: str
    """``mount.usr=`` as given; empty when it was not."""
    usrfstype: str
    usrflags: str
    fstab: bool
    """Whether what the root's fstab says is mounted."""
    fsck_mode: str
    """``auto``, ``force`` or ``skip``."""
    fsck_repair: str
    """``preen``, ``yes`` or ``no``."""
    fsck_on_fail: str
    """``shell`` or ``ro``."""
    init: str
    """``init=`` as given; empty when it was not."""
    init_args: tuple[str, ...]
    """The words after ``--``."""
    timeout: int | None
    """Seconds after which a missing root device is a failure; ``None`` for never."""
    quiet: bool
    """Only warnings and errors are wanted on the console."""
    info: bool
    """Information messages are wanted whatever ``quiet`` says."""
    debug: bool
    """Every step is to be recorded, and shown unless ``quiet`` (``rd.debug``)."""
    memdebug: int
    """How much of memory is to be told before each stage; 0 for nothing."""
    loglevel: int | None
    """The kernel's console level as ``quiet``, ``debug`` or ``loglevel=`` set it, whichever came last."""
    breaks: frozenset[str]
    """Members of :data:`BREAK_POINTS`."""
    rescue: tuple[str, ...]
    """Members of :data:`pyinit.config.sealed.POLICIES` that were asked for, in order: the strictest of them
    and of the sealed policy counts."""
    emergency: str
    """``reboot``, ``poweroff``, ``halt`` or empty."""
    ctty: str
    """Device node, or empty for the console."""
    panic: int | None
    watchdog: int | None
    """Seconds without progress after which the machine is to be reset; None: never."""
    report: str
    """Device node of the result channel, or empty."""
    drivers_first: tuple[str, ...]
    """Modules (names with underscores) to load before udev starts."""
    drivers_late: tuple[str, ...]
    """Modules to load after the devices were looked for."""
    drivers_never: frozenset[str]
    """Modules not to be loaded for a device."""
    warnings: tuple[str, ...]
    """One line each, printable."""
    volumes: VolumeWords | None = None
    """``rd.auto``, ``rd.lvm*``, ``rd.md*``; None when there is no such word."""
    luks: LuksWords | None = None
    """``rd.luks.*``; None when there is no such word."""
    bcache: BcacheWords | None = None
    """``rd.bcache*`` and ``rd.auto``; None when there is no such word."""
    multipath: MultipathWords | None = None
    """``rd.multipath``, ``nompath``, ``multipath=off``; None when there is no such word."""
    image: ImageFile | None = None
    """The file that holds the root, on the file system of ``root=``; None when that is the root."""
    verity: VerityWords | None = None
    """What every block of the root is checked against; None for nothing."""
    gpt_auto: bool = True
    """Whether a root that nobody names may be found by the type of its partition."""
    overlay: Overlay | None = None
    """What ``rd.overlay`` lays over the root; None for nothing."""
    resume: str = ""
    """``resume=`` as given; empty when the system is not to be resumed."""
    resume_offset: int = 0
    """Where a swap file begins on its device, in pages."""
    noresume: bool = False
    """Whether resuming was switched off by a word of its own."""


def boot_config(*sources: bytes) -> BootConfig:
    """Read command lines, later ones overriding earlier ones; never raises.

    A value that cannot be understood counts as not given and earns a warning.
    """
    lines = [parse(source) for source in sources]
    warnings: list[str] = []
    for line in lines:
        _warn_repeated(line, warnings)
    merged = CommandLine(
        tuple(word for line in lines for word in line.words),
        next((line.init_args for line in reversed(lines) if line.init_args), ()),
    )
    get = _Reader(merged, warnings)
    breaks = get.breaks("rd.break")
    level = _console_level(get)
    config = BootConfig(
        root=get.text("root"),
        rootfstype=tuple(part for part in get.text("rootfstype").split(",") if part not in ("", "auto")),
        rootflags=get.text("rootflags"),
        read_only=next(
            (word.key == "ro" for word in reversed(merged.words) if word.key in ("ro", "rw")), True
        ),
        usr=get.text("mount.usr"),
        usrfstype=get.text("mount.usrfstype"),
        usrflags=get.text("mount.usrflags"),
        fstab=merged.flag("rd.fstab", True),
        fsck_mode=_fsck_mode(get),
        fsck_repair=get.choice("fsck.repair") or "preen",
        fsck_on_fail=get.choice("rd.pyinit.fsck.on-fail") or "shell",
        init=get.text("init"),
        init_args=merged.init_args,
        timeout=_timeout(get),
        quiet=level is not None and level <= _QUIET_LEVEL,
        info=merged.flag("rd.info", False) or get.present("debug"),
        debug=merged.flag("rd.debug", False),
        memdebug=get.number("rd.memdebug") or 0,
        loglevel=level,
        breaks=breaks,
        rescue=get.policies(),
        emergency=get.choice("rd.emergency"),
        ctty=get.device("rd.ctty"),
        panic=get.number("panic"),
        watchdog=get.number("rd.pyinit.watchdog"),
        report=get.device("rd.pyinit.report"),
        drivers_first=get.modules("rd.driver.pre"),
        drivers_late=get.modules("rd.driver.post"),
        drivers_never=frozenset(get.modules("rd.driver.blacklist") + get.modules("modprobe.blacklist")),
        warnings=(),
    )
    get.choice("rd.udev.log_level")
    config = _resume(config, get)
    if any(word.key.startswith("rd.luks") for word in merged.words):
        from pyinit.config.luks import luks_words

        config = config._replace(luks=luks_words(merged, get.number, warnings))
    if any(word.key.startswith(("rd.auto", "rd.lvm", "rd.md")) for word in merged.words):
        from pyinit.config.volumes import volume_words

        config = config._replace(volumes=volume_words(merged, warnings))
    if any(word.key.startswith(("rd.auto", "rd.bcache")) for word in merged.words):
        from pyinit.config.bcache import bcache_words

        config = config._replace(bcache=bcache_words(merged, warnings))
    if any(word.key in ("rd.multipath", "nompath", "multipath") for word in merged.words):
        from pyinit.config.multipath import multipath_words

        config = config._replace(multipath=multipath_words(merged, warnings))
    if not (merged.flag("systemd.gpt_auto", True) and merged.flag("rd.systemd.gpt_auto", True)):
        config = config._replace(gpt_auto=False)
    if merged.last("roothash") is not None:
        from pyinit.config.verity import verity_words

        config = config._replace(verity=verity_words(merged, warnings))
    if config.root.startswith("live:") or any(word.key in _IMAGE_WORDS for word in merged.words):
        from pyinit.config.image import image_words

        root, image = image_words(merged, config.root, warnings)
        config = config._replace(root=root, image=image)
    live = config.image is not None and config.image.live
    if live or any(word.key.startswith(("rd.overlay", *OLD_SPELLINGS)) for word in merged.words):
        from pyinit.config.overlay import overlay_words

        config = config._replace(overlay=overlay_words(merged, live, warnings))
    _warn_unknown(merged, warnings)
    if len(warnings) > _MANY:
        warnings[_MANY:] = [
            f"{len(warnings) - _MANY} more words of the kernel command line are not understood"
        ]
    return config._replace(warnings=tuple(warnings))


def _resume(config: BootConfig, get: _Reader) -> BootConfig:
    """What hibernation words ask for; the kernel's own that switch it off count as well."""
    hibernate = get.text("hibernate")
    off = get.present("noresume") or get.present("nohibernate") or hibernate in ("no", "noresume")
    resume = get.text("resume")
    return config._replace(
        resume="" if off or resume.lower() in _NO_RESUME else resume,
        resume_offset=get.number("resume_offset") or 0,
        noresume=off,
    )


def _console_level(get: _Reader) -> int | None:
    explicit = get.number("loglevel")
    for word in reversed(get.line.words):
        if word.key == "loglevel" and explicit is not None:
            return explicit
        if word.key in ("quiet", "debug"):
            return _QUIET_LEVEL if word.key == "quiet" else _DEBUG_LEVEL
    return None


def _fsck_mode(get: _Reader) -> str:
    """Words that say so in full come first; of the others, those that do less."""
    if mode := get.choice("fsck.mode"):
        return mode
    if get.line.flag("rd.skipfsck", False):
        return "skip"
    return "force" if get.present("forcefsck") else "auto"


def _timeout(get: _Reader) -> int | None:
    seconds = get.number("rd.timeout")
    retry, wait, delay = get.number("rd.retry"), get.number("rootwait"), get.number("rootdelay") or 0
    if seconds is None:
        if wait is None and get.bare("rootwait"):
            seconds = 0
        else:
            seconds = next((value for value in (wait, retry) if value is not None), DEFAULT_TIMEOUT)
    return seconds + delay if seconds else None


class _Reader:
    """Typed look-ups in a command line, by the rules of the table."""

    __slots__ = ("line", "warnings")

    def __init__(self, line: CommandLine, warnings: list[str]) -> None:
        self.line = line
        self.warnings = warnings

    def text(self, name: str) -> str:
        return self.line.text(name)

    def present(self, name: str) -> bool:
        return self.line.last(name) is not None

    def bare(self, name: str) -> bool:
        word = self.line.last(name)
        return word is not None and word.value is None

    def number(self, name: str) -> int | None:
        word, option = self.line.last(name), _BY_NAME[name]
        if word is None or (word.value is None and name == "rootwait"):
            return None
        value = word.value or ""
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) <= 10:
            number = int(value)
            if option.low <= number <= option.high:
                return number
        self._refuse(word, option, f"a whole number from {option.low} to {option.high} is expected")
        return None

    def choice(self, name: str) -> str:
        word, option = self.line.last(name), _BY_NAME[name]
        if word is None or word.value in option.choices:
            return (word and word.value) or ""
        self._refuse(word, option, "expected is one of " + ", ".join(option.choices))
        return ""

    def policies(self) -> tuple[str, ...]:
        found: list[str] = []
        option = _BY_NAME["rd.pyinit.rescue"]
        for word in self.line.words:
            if word.key == "rd.shell":
                found.append("open" if is_on(word) else "none")
            elif word.key == option.name and word.value in option.choices:
                found.append(word.value)
            elif word.key == option.name:
                self._refuse(word, option, "expected is one of " + ", ".join(option.choices))
        return tuple(found)

    def device(self, name: str) -> str:
        word = self.line.last(name)
        if word is None or not word.value:
            return ""
        path = word.value.removeprefix("/dev/")
        if re.fullmatch("[A-Za-z0-9_:-]+(/[A-Za-z0-9_:-]+)*", path):
            return f"/dev/{path}"
        self._refuse(word, _BY_NAME[name], "the name of a device below /dev is expected")
        return ""

    def modules(self, name: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for word in self.line.all(name):
            for part in (word.value or "").split(","):
                if re.fullmatch("[A-Za-z0-9_-]+", part):
                    found[part.replace("-", "_")] = None
                elif part:
                    self.warnings.append(
                        f"{_show(name)}: {_show(part)} cannot be the name of a kernel module"
                    )
        return tuple(found)

    def breaks(self, name: str) -> frozenset[str]:
        found: set[str] = set()
        for word in self.line.all(name):
            for part in (word.value or BREAK_POINTS[-1]).split(","):
                if part in BREAK_POINTS:
                    found.add(part)
                elif part:
                    meant = closest(part, BREAK_POINTS, 3)
                    hint = f" (did you mean {meant}?)" if meant else ""
                    stages = ", ".join(BREAK_POINTS)
                    self.warnings.append(
                        f"{name}={_show(part)} is no stage of the boot{hint}; stages: {stages}"
                    )
        return frozenset(found)

    def _refuse(self, word: Word, option: Option, expected: str) -> None:
        self.warnings.append(
            f"{_show(word.raw)} is not understood: {expected}. The default is used: {option.default}"
        )


def _warn_repeated(line: CommandLine, warnings: list[str]) -> None:
    for option in OPTIONS:
        if option.kind in ("text", "number", "choice", "device"):
            given = line.all(option.name)
            if len({word.value for word in given}) > 1:
                warnings.append(
                    f"{option.name} is given {len(given)} times; the last one counts: {_show(given[-1].raw)}"
                )


def _warn_unknown(line: CommandLine, warnings: list[str]) -> None:
    unknown: dict[str, None] = {}
    unhandled: dict[str, dict[str, None]] = {}
    for word in line.words:
        key = word.key
        if key in _BY_NAME or key in OLD_SPELLINGS:
            continue
        if key in _OTHER_NAMES:
            option = _OTHER_NAMES[key]
            text = f"{key} has no effect here; the word is {option.name}{option.value}"
            if text not in warnings:
                warnings.append(text)
        elif key in _PURPOSE:
            # Switching off what is not there is no news.
            if is_on(word):
                unhandled.setdefault(_PURPOSE[key], {})[key] = None
        elif key.startswith("rd.") and key not in _FOREIGN and not key.startswith(_FOREIGN_PREFIXES):
            unknown[key] = None
    for purpose, keys in unhandled.items():
        warnings.append(f"{', '.join(keys)}: no effect, this initramfs does not handle {purpose}")
    for number, key in enumerate(unknown):
        # Looking for a near word is work; a line full of nonsense gets it for its first ones.
        near = closest(key, (*_BY_NAME, *_PURPOSE), min(6, max(3, len(key) // 3))) if number < _MANY else None
        text = f"{_show(key)} is not known and has no effect"
        if near in _PURPOSE:
            text += f"; the nearest known word is {near}, but this initramfs does not handle {_PURPOSE[near]}"
        elif near:
            text += f"; the nearest known word is {near}"
        warnings.append(text)


def _show(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def groups() -> dict[str, list[Option]]:
    """Return the table by group, in order."""
    found: dict[str, list[Option]] = {}
    for option in OPTIONS:
        found.setdefault(option.group, []).append(option)
    return found


def help_text(width: int = 79) -> str:
    """Return the table as text for a terminal."""
    lines: list[str] = []
    for group, options in groups().items():
        lines += [f"{group}:", ""]
        for option in options:
            lines.append(f"  {option.name}{option.value}")
            lines += _wrap(f"{option.help} Default: {option.default}.".replace("`", ""), width, " " * 6)
        lines.append("")
    return "\n".join(lines)


def _wrap(text: str, width: int, indent: str) -> list[str]:
    lines = [indent]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width and lines[-1] != indent:
            lines.append(indent)
        lines[-1] += word if lines[-1] == indent else f" {word}"
    return lines


_DOCUMENT_HEAD = """\
# Kernel command line options

<!-- Printed by `python3 -m pyinit.config.options`; change the table there. -->

Words are spelt as in dracut; pyinit's own begin with `rd.pyinit.`. A line is split by the kernel's rules:

- Blanks separate words; double quotes protect blanks, anywhere in a word; nothing escapes a quote.
- The quotes around a value, or around a whole word, are taken off.
- When a word is given several times the last one counts, unless it says otherwise below.
- `--` ends the options. What follows are the arguments of the real init.
- `-` and `_` are different characters.
- Switches are off with `0`, `no` or `off`, and on with any other value and as a bare word.
- Words of the image itself stand in front of those of the boot loader, those of the rescue shell behind them.

A value that cannot be understood counts as not given; the boot says so and goes on.
"""

_DOCUMENT_TAIL = """\
## Words that have no effect

An unknown word that begins with `rd.` gets a warning that names the nearest known one. Words of dracut
that ask for something this initramfs does not handle get a warning too, unless they switch it off:

"""


def document() -> str:
    """Return the table as docs/options.md."""
    lines = [_DOCUMENT_HEAD]
    for group, options in groups().items():
        lines += [f"## {group}", "", "| word | default | from stage | meaning |", "|---|---|---|---|"]
        for option in options:
            cells = (f"`{option.name}{option.value}`", option.default, option.stage, option.help)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    lines.append(_DOCUMENT_TAIL.rstrip("\n"))
    lines.append("")
    for purpose, names in _UNHANDLED:
        lines.append(f"- {purpose}: " + ", ".join(f"`rd.{name}`" for name in names.split()))
    lines += [
        "",
        "`rd.systemd.*`, `rd.plymouth*` and the other words of udevd are left to those programs.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")
