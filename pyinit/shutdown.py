"""The way back at shutdown: what takes the root's storage apart once the root is not in use any more.

A root on logical volumes, encrypted volumes or arrays cannot let go of them itself. systemd therefore goes
back into /run/initramfs at the very end, if there is a program ``shutdown`` (systemd-shutdown(8)), and
leaves the old root at /oldroot. Three moments:

- :func:`leave`, in the initramfs: this file goes to /run, with a unit that runs the next one. 30 KB.
- :func:`prepare`, when the system is about to go down: the Python of the system itself, as far as this file
  needs it, is copied to /run/initramfs. Until then it takes no memory.
- :func:`main`, as process 1 in /run/initramfs: unmounts, takes apart, switches off.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn

from pyinit.kernel import mountinfo
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.syscalls import (
    MNT_DETACH,
    REBOOT_AUTOBOOT,
    REBOOT_HALT,
    REBOOT_KEXEC,
    REBOOT_POWER_OFF,
    reboot,
    umount2,
)
from pyinit.text import printable

PLACE, RAMFS, OLD_ROOT = "/run/pyinit/shutdown", "/run/initramfs", "/oldroot"
UNIT = "pyinit-shutdown.service"
UNITS = "/run/systemd/system"
#: What :func:`main` is made of, below the package.
FILES = (
    "__init__.py", "shutdown.py", "text.py",
    "kernel/__init__.py", "kernel/files.py", "kernel/mountinfo.py", "kernel/syscalls.py",
)  # fmt: skip
PYTHON = "/usr/bin/python3"
#: Each pass frees what the next one can take apart; nobody stacks more layers.
PASSES = 12
#: Seconds after which the machine is ended whatever still hangs; as long as systemd's own watchdog of a unit.
LIMIT = 90.0

ACTIONS = {
    "reboot": REBOOT_AUTOBOOT,
    "halt": REBOOT_HALT,
    "poweroff": REBOOT_POWER_OFF,
    "kexec": REBOOT_KEXEC,
}

# Stopped before file systems are unmounted, which is when it does its work.
_UNIT_TEXT = f"""\
[Unit]
Description=The way back into the initramfs at shutdown
Documentation=man:systemd-shutdown(8)
DefaultDependencies=no
After=local-fs.target
Conflicts=umount.target shutdown.target
Before=umount.target shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PYTHONPATH={PLACE}
ExecStop={PYTHON} -sSBP -m pyinit.shutdown
"""
_START = f"""\
#!{PYTHON} -IsSB
import sys
sys.path.insert(0, "/usr/lib/pyinit-shutdown")
from pyinit.shutdown import main
main(sys.argv)
"""
# include/uapi/linux/dm-ioctl.h: DM_DEV_REMOVE, struct dm_ioctl; include/uapi/linux/loop.h.
_DM_CONTROL = "/dev/mapper/control"
_DM_DEV_REMOVE, _DM_SIZE, _DM_NAME = 0xC138FD04, 312, 127
_DM_VERSION = (4, 0, 0)
_LOOP_CLR_FD = 0x4C01


# In the initramfs.


def leave(sysroot: str, source: str) -> None:
    """Put this file into /run, and a unit for systemd that runs :func:`prepare`. OSError when that fails.

    The unit comes last: without a file that it needs there is none.
    ``source`` is the folder of the package. Without a Python in the new root there is nothing to run it.
    """
    if not os.path.exists(f"{sysroot}{PYTHON}"):
        return
    for name in FILES:
        _write(f"{PLACE}/pyinit/{name}", _read(f"{source}/{name}"))
    _write(f"{UNITS}/{UNIT}", _UNIT_TEXT.encode())
    os.makedirs(f"{UNITS}/sysinit.target.wants", 0o755, exist_ok=True)
    link = f"{UNITS}/sysinit.target.wants/{UNIT}"
    if not os.path.lexists(link):
        os.symlink(f"../{UNIT}", link)


# In the system that goes down.


def prepare(ramfs: str = RAMFS) -> None:
    """Copy the running interpreter, and what it has loaded, to /run/initramfs."""
    import fcntl  # noqa: F401 (it is needed later)

    for path in needed(set(mapped_files(read_if_there("/proc/self/maps"))), sys.executable):
        _copy(path, ramfs)
    for name in FILES:
        _write(f"{ramfs}/usr/lib/pyinit-shutdown/pyinit/{name}", _read(f"{PLACE}/pyinit/{name}"))
    # Last of all and at once: systemd goes where there is a program.
    _write(f"{ramfs}/shutdown.new", _START.encode(), 0o755)
    os.rename(f"{ramfs}/shutdown.new", f"{ramfs}/shutdown")


def needed(mapped: Collection[str], program: str) -> set[str]:
    """The files that a process like this one needs: programs, libraries under all their names, modules."""
    found = {program, *mapped}
    # A program names its loader and its libraries by links to them.
    for folder in {os.path.dirname(path) for path in mapped} | {"/lib64", "/lib"}:
        paths = (f"{folder}/{name}" for name in names(folder) if ".so" in name)
        found.update(path for path in paths if os.path.realpath(path) in mapped)
    for module in list(sys.modules.values()):
        for attribute in ("__file__", "__cached__"):
            path = getattr(module, attribute, None) or ""
            if path.startswith("/") and not path.startswith(PLACE) and os.path.isfile(path):
                found.add(path)
    return found


def mapped_files(maps: bytes) -> Iterable[str]:
    """The files in /proc/PID/maps (proc_pid_maps(5)) that are there."""
    for line in maps.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith(b"/"):
            path = os.fsdecode(fields[5])
            # Texts in a person's language are no use there.
            if os.path.isfile(path) and "/locale/" not in path:
                yield path


def _copy(path: str, ramfs: str) -> None:
    """Copy a file to the same place below ``ramfs``, with the symbolic links that lead to it."""
    here = "/"
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts):
        here = os.path.join(here, part)
        target = ramfs + here
        if os.path.islink(here):
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(os.readlink(here), target)
            rest = "/".join(parts[number + 1 :])
            onward = os.path.normpath(os.path.join(os.path.dirname(here), os.readlink(here), rest))
            _copy(onward, ramfs)
            return
    if not os.path.lexists(ramfs + here):
        with open(here, "rb") as file:
            # The time of a source decides whether its byte code counts.
            seen = os.fstat(file.fileno())
            _write(ramfs + here, file.read(), seen.st_mode & 0o755)
        os.utime(ramfs + here, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, data: bytes, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)


# In /run/initramfs, as process 1.


def main(argv: list[str]) -> NoReturn:
    """Take everything apart, then do what ``argv[1]`` says; never returns."""
    action = argv[1] if len(argv) > 1 and argv[1] in ACTIONS else "poweroff"
    try:
        _limit(action)
        try:
            tell("back in the initramfs to take the storage of the root apart")
            unmount(OLD_ROOT)
            take_apart()
        finally:
            tell(action)
            os.sync()
            reboot(ACTIONS[action])
    except BaseException as error:
        tell(f"{type(error).__name__}: {printable(str(error))}")
    # What was asked for cannot be done; a kernel that is to be executed leads to another boot, too.
    while True:
        try:
            reboot(REBOOT_AUTOBOOT if action in ("reboot", "kexec") else REBOOT_POWER_OFF)
        except OSError as error:
            tell(f"{action}: {error.strerror}")
        time.sleep(LIMIT)


def _limit(action: str) -> None:
    """Have another process end the machine when this one hangs, as sync(2) and umount(2) do on a dead disk.

    The keys are those of Documentation/admin-guide/sysrq.rst.
    """
    if action == "halt" or os.fork():
        return
    time.sleep(LIMIT)
    for key in (b"b",) if action in ("reboot", "kexec") else (b"o", b"b"):
        tell(f"this takes more than {LIMIT:.0f} s; sysrq {key.decode()}")
        _write_attribute("/proc/sysrq-trigger", key)
        time.sleep(LIMIT)
    os._exit(0)


def tell(text: str) -> None:
    """Say it on the console and in the kernel's log, which another boot may find in pstore."""
    for path, line in (("/dev/console", f"pyinit: {text}\n"), ("/dev/kmsg", f"<7>pyinit: {text}")):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.write(fd, line.encode("ascii", "backslashreplace"))
        except OSError:
            pass
        finally:
            os.close(fd)


def unmount(top: str) -> None:
    """Unmount what is below ``top``, and it; what lies above others first."""
    below = [mount for mount in mountinfo.read() if mount.target == top or mount.target.startswith(f"{top}/")]
    # Since the root was switched, the order of the table does not say what lies above what.
    for mount in sorted(below, key=lambda mount: mount.target.count("/"), reverse=True):
        try:
            umount2(mount.target)
        except OSError as error:
            # Out of sight at least, and what lies on it is not in the way of others.
            tell(f"{printable(mount.target)} cannot be unmounted: {error.strerror}")
            try:
                umount2(mount.target, MNT_DETACH)
            except OSError:
                pass
    if any(mount.target == top for mount in below):
        tell(f"the root file system ({printable(_source(below, top))}) is unmounted")


def _source(mounts: Iterable[mountinfo.Mount], target: str) -> str:
    return next(mount.source for mount in mounts if mount.target == target)


def take_apart(directory: str = "/sys/class/block") -> None:
    """Remove mappings, stop arrays, free loop devices that nothing lies on, until there is nothing to do."""
    failed: dict[str, str] = {}
    for _ in range(PASSES):
        worked = False
        for name in names(directory):
            path = f"{directory}/{name}"
            removal = _removal(name, path)
            if removal is None or names(f"{path}/holders"):
                continue
            what, remove = removal
            try:
                remove()
            except OSError as error:
                failed[what] = error.strerror or type(error).__name__
                continue
            failed.pop(what, None)
            tell(f"{what} is closed")
            worked = True
        if not worked:
            break
    for what, why in failed.items():
        tell(f"{what} stays: {why}")


def _removal(name: str, path: str) -> tuple[str, Callable[[], None]] | None:
    """What a device is, printable, and how it is taken apart; None when it is none that can be."""
    shown = printable(name)
    if mapping := os.fsdecode(read_if_there(f"{path}/dm/name").strip()):
        return f"{printable(mapping)} ({shown})", lambda: _remove_mapping(mapping)
    state = read_if_there(f"{path}/md/array_state").strip()
    if state not in (b"", b"clear"):
        # Documentation/admin-guide/md.rst: "clear" stops the array, with its members marked clean.
        return f"array {shown}", lambda: _write_attribute(f"{path}/md/array_state", b"clear")
    if os.path.exists(f"{path}/loop/backing_file"):
        return f"loop device {shown}", lambda: _control(f"/dev/{name}", _LOOP_CLR_FD, 0)
    return None


def mapping_request(name: str) -> bytes:
    """The struct dm_ioctl that names a mapping. ValueError for a name that cannot be one."""
    encoded = os.fsencode(name)
    if not 0 < len(encoded) <= _DM_NAME or b"\0" in encoded:
        raise ValueError("no name of a mapping")
    head = b"".join(number.to_bytes(4, sys.byteorder) for number in (*_DM_VERSION, _DM_SIZE, _DM_SIZE))
    return (head.ljust(48, b"\0") + encoded).ljust(_DM_SIZE, b"\0")


def _remove_mapping(name: str) -> None:
    _control(_DM_CONTROL, _DM_DEV_REMOVE, mapping_request(name))


def _control(path: str, request: int, argument: bytes | int) -> None:
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, argument)
    finally:
        os.close(fd)


def _write_attribute(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


if __name__ == "__main__":
    prepare()
