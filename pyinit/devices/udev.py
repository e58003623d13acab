"""udev: the daemon that PID 1 starts and watches, and the devices as it describes them.

The only user of pyudev. Order matters (systemd, src/libsystemd/sd-device/device-monitor.c): libudev decides
once, when a monitor is made, whether udevd is there; made too early a monitor is silent for ever. So:
devtmpfs, udevd, its READY=1 (sd_notify(3)), the monitor, and only then the trigger and the enumeration.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from collections.abc import Iterator
from stat import S_ISVTX
from time import monotonic
from types import ModuleType
from typing import Any

from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.files import names, read_if_there, remove_if_there
from pyinit.kernel.memory import MIB, total
from pyinit.kernel.process import Children
from pyinit.kernel.syscalls import datagram_socket
from pyinit.text import printable

NOTIFY_PATH = "/run/pyinit/udevd.notify"
DATABASE = "/run/udev/data"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
# A worker that asks a silent disk does not end, even so.
KILL_TIMEOUT = 5.0
MAX_RESTARTS = 3
_BLKRRPART = 0x125F  # include/uapi/linux/fs.h
# A storm of events must not have a small machine's workers use up its memory.
SMALL_MEMORY = 512 * MIB
WORKER_MEMORY = 64 * MIB
# Room for the events of a few thousand disks; the kernel charges it only when it is used.
RECEIVE_BUFFER = 64 * 1024 * 1024


class UdevDaemon:
    """udevd as a child of PID 1: started, known to be ready, restarted when it dies, stopped at the end."""

    def __init__(self, path: str, children: Children, console: Console) -> None:
        self._path = path
        self._children = children
        self._console = console
        self._pid = 0
        self._starts = 0
        self._notify = -1

    @property
    def pid(self) -> int:
        """The process; 0 when there is none."""
        return self._pid

    def start(self) -> None:
        """Start udevd without waiting for it; :class:`BootError` ``E-UDEV`` when it cannot be executed."""
        self._close_notify()
        try:
            os.unlink(NOTIFY_PATH)
        except FileNotFoundError:
            pass
        self._notify = datagram_socket(NOTIFY_PATH)
        # rd.udev.log_level= on the kernel command line overrules the level (kernel-command-line(7)).
        environment = {
            "NOTIFY_SOCKET": NOTIFY_PATH,
            "SYSTEMD_LOG_TARGET": "kmsg",
            "SYSTEMD_LOG_LEVEL": "err",
        }
        # Owners and groups are looked up by the real system's udevd; without a user database they cannot be.
        argv = [self._path, "--resolve-names=never"]
        if total() < SMALL_MEMORY:
            # Its own rule is ten workers at the least. rd.udev.children_max= overrules this number.
            argv.append(f"--children-max={max(2, total() // WORKER_MEMORY)}")
        try:
            # Without it there are no devices; its workers set themselves to 0.
            self._pid = self._children.start(argv, environment=environment, oom_score_adj=-1000)
        except OSError as error:
            raise BootError(
                "E-UDEV",
                f"{printable(self._path)} cannot be executed: {error.strerror}",
                advice=("Build the image again: pyinit-image build -o IMAGE",),
            ) from error
        self._starts += 1

    def wait_ready(self) -> None:
        """Wait until udevd listens, starting it if it does not run.

        ``E-UDEV`` when it ends, or says nothing for ``START_TIMEOUT`` seconds.
        """
        if not self._pid:
            self.start()
        if self._notify < 0:
            return
        self.wake()
        deadline = monotonic() + START_TIMEOUT
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        handle = os.pidfd_open(self._pid)
        poll.register(handle, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll(max(0.0, deadline - monotonic()) * 1000)}
                if self._notify in ready and b"READY=1" in os.read(self._notify, 4096):
                    break
                if handle in ready:
                    self._failed(f"it ended at once ({_ending(self._children.status(self._pid))})")
                if not ready:
                    self._failed(f"it was not ready after {START_TIMEOUT:.0f} s")
        finally:
            os.close(handle)
        self._close_notify()
        os.unlink(NOTIFY_PATH)

    def restart_if_dead(self) -> bool:
        """Start udevd again if it does not run; True when it was. ``E-UDEV`` when it keeps ending."""
        status = self._children.status(self._pid) if self._pid else None
        if self._pid and status is None:
            return False
        if self._pid:
            self._pid = 0
            if self._starts > MAX_RESTARTS:
                self._failed(f"it ended {self._starts} times ({_ending(status)})")
            self._console.warning(f"udevd ended ({_ending(status)}); starting it again")
        self.start()
        self.wait_ready()
        return True

    def wake(self) -> None:
        """Let udevd go on if somebody has stopped it (SIGSTOP): a device would be waited for in vain."""
        state = read_if_there(f"/proc/{self._pid}/stat").rpartition(b") ")[2][:1] if self._pid else b""
        if state == b"T":
            self._console.warning("udevd was stopped (SIGSTOP); it is told to go on")
            self._signal(18)

    def ask_to_stop(self) -> None:
        """Let udevd finish and end, without waiting for it."""
        self._signal(15)
        # A stopped process does not see it before it is continued.
        self._signal(18)

    def stop(self) -> None:
        """Wait until udevd has ended, after :meth:`ask_to_stop`; kill it and its workers when it does not."""
        if not self._pid:
            return
        self.ask_to_stop()
        if self._children.wait(self._pid, STOP_TIMEOUT) is None:
            self._console.warning(f"udevd did not stop within {STOP_TIMEOUT:.0f} s and was killed")
            try:
                os.killpg(self._pid, 9)
            except OSError:
                pass
            self._children.wait(self._pid, KILL_TIMEOUT)
        self._pid = 0

    def _signal(self, number: int) -> None:
        if self._pid and self._children.status(self._pid) is None:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:
                pass

    def _close_notify(self) -> None:
        if self._notify >= 0:
            os.close(self._notify)
            self._notify = -1

    def _failed(self, why: str) -> None:
        # The next try begins afresh.
        self._signal(9)
        self._pid = self._starts = 0
        self._close_notify()
        raise BootError(
            "E-UDEV",
            f"udevd does not run: {why}",
            tried=(f"{printable(self._path)} --resolve-names=never",),
            advice=("rd.udev.log_level=debug on the kernel command line shows what udevd says.",),
        )


class Devices:
    """Devices as udev describes them: a monitor for what changes, an enumeration for what is there."""

    def __init__(self, libraries: dict[str, str], subsystem: str = "block") -> None:
        self._subsystem = subsystem
        pyudev = _import_pyudev(libraries)
        self._pyudev = pyudev
        self._context = pyudev.Context()
        self._monitor: Any = None
        self.reopen()

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are events."""
        return int(self._monitor.fileno())

    def reopen(self) -> None:
        """Make a new monitor in place of one that is broken; events may have been lost: enumerate again."""
        monitor = self._pyudev.Monitor.from_netlink(self._context)
        monitor.filter_by(self._subsystem)
        try:
            monitor.set_receive_buffer_size(RECEIVE_BUFFER)
        except OSError:
            pass
        monitor.start()
        self._monitor = monitor

    def events(self) -> Iterator[tuple[str, DeviceView]]:
        """The (action, device) pairs that are waiting; OSError when the monitor is broken (ENOBUFS)."""
        while (device := self._monitor.poll(timeout=0)) is not None:
            try:
                view = _view(device)
            except (LookupError, ValueError):
                continue
            yield device.action or "", view

    def names(self) -> list[str]:
        """The names of all devices of the subsystem that the kernel knows."""
        return names(f"/sys/class/{self._subsystem}")

    def size(self, name: str) -> int:
        """The size of a block device in sectors of 512 bytes; 0 for an unused loop device, an empty drive."""
        try:
            with open(f"/sys/class/block/{name}/size", "rb") as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def enumerate(self) -> list[DeviceView]:
        """All devices of the subsystem that are present."""
        views = []
        for device in self._context.list_devices(subsystem=self._subsystem):
            try:
                views.append(_view(device))
            except (OSError, LookupError, ValueError):
                continue  # It went away between the listing and the look, or has a name that is no UTF-8.
        return views


def trigger_devices(*, everything: bool = False) -> None:
    """Ask the kernel to announce devices again (``add`` into their ``uevent`` file), as coldplug does.

    Only the block devices that udevd cannot have seen, those without an entry in its database; ``everything``
    includes all devices. The real system's coldplug announces everything once more anyway.
    """
    paths = []
    for name in names("/sys/class/block"):
        path = f"/sys/class/block/{name}"
        try:
            with open(f"{path}/dev", "rb") as file:
                number = file.read().strip().decode("ascii")
        except (OSError, ValueError):
            continue
        if everything or not os.path.exists(f"{DATABASE}/b{number}"):
            paths.append(path)
    if everything:
        for kind in ("bus", "class"):
            for group in names(f"/sys/{kind}"):
                if group != "block":
                    directory = f"/sys/bus/{group}/devices" if kind == "bus" else f"/sys/class/{group}"
                    paths += [f"{directory}/{name}" for name in names(directory)]
    for path in paths:
        try:
            fd = os.open(f"{path}/uevent", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.write(fd, b"add")
        except OSError:
            pass
        finally:
            os.close(fd)


def reread_partitions() -> None:
    """Have the kernel look for partitions on disks where it found none, as sfdisk(8) does.

    One that could not be read when it appeared has none, and nobody looks again when it can be read. Blocks
    as long as a disk does not answer.
    """
    import fcntl

    for name in names("/sys/block"):
        path = f"/sys/block/{name}"
        if not os.path.exists(f"{path}/device") or any(part.startswith(name) for part in names(path)):
            continue
        try:
            fd = os.open(f"/dev/{name.replace('!', '/')}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.ioctl(fd, _BLKRRPART)
        except OSError:
            pass  # In use as a whole, or still not to be read.
        finally:
            os.close(fd)


def clean_database(run: str = "/run/udev") -> None:
    """Forget what udev knows, except devices marked to be remembered, as ``udevadm info --cleanup-db``.

    The sticky bit marks the entries of device-mapper and MD devices (``OPTIONS+="db_persist"``, udev(7)):
    what they say cannot be found out again, and systemd would drop a root whose entry is gone. Their tags,
    link claims and watches stay with them.
    """
    kept = set()
    for name in names(f"{run}/data"):
        path = f"{run}/data/{name}"
        if _mode(path) & S_ISVTX:
            kept.add(name)
        else:
            remove_if_there(path)
    for kind in ("links", "tags"):
        for group in names(f"{run}/{kind}"):
            for name in names(f"{run}/{kind}/{group}"):
                if name not in kept:
                    remove_if_there(f"{run}/{kind}/{group}/{name}")
            try:
                os.rmdir(f"{run}/{kind}/{group}")
            except OSError:
                pass
    for name in names(f"{run}/watch"):
        # Each watch is two links that name each other: the device's and the watch descriptor's.
        path = f"{run}/watch/{name}"
        if name not in kept and _target(path) not in kept:
            remove_if_there(path)
    for name in ("control", "queue"):
        remove_if_there(f"{run}/{name}")


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _view(device: Any) -> DeviceView:
    properties: dict[str, str] = {}
    for name in device.properties:
        try:
            properties[name] = device.properties[name]
        except (LookupError, ValueError):
            continue  # Bytes that are no UTF-8: nothing that could be asked for.
    node = device.device_node or ""
    number = device.device_number if node else 0
    return DeviceView(
        sys_path=device.sys_path,
        name=device.sys_name,
        subsystem=device.subsystem or "",
        devtype=device.device_type or "",
        node=node,
        number=(os.major(number), os.minor(number)),
        links=tuple(device.device_links),
        properties=properties,
        initialized=device.is_initialized,
    )


def _import_pyudev(libraries: dict[str, str]) -> Any:
    """Import pyudev without what it imports for functions that are not called here.

    ctypes.util.find_library runs ldconfig, gcc or ld to find a library, none of which is in the image, and
    importing ctypes.util alone pulls in tempfile and random, which reads random numbers: the image's
    configuration answers instead. subprocess, datetime and threading are for the version of udevadm, the age
    of a device and the class MonitorObserver, and take longer than pyudev itself.
    """
    if "ctypes.util" not in sys.modules:
        shim = ModuleType("ctypes.util")
        vars(shim)["find_library"] = libraries.get
        sys.modules["ctypes.util"] = vars(ctypes)["util"] = shim
    unused = {"subprocess": "check_output", "datetime": "timedelta", "threading": "Thread"}
    stand_ins = {
        module: _stand_in(module, name) for module, name in unused.items() if module not in sys.modules
    }
    sys.modules.update(stand_ins)
    try:
        import pyudev
    finally:
        for module, stand_in in stand_ins.items():
            if sys.modules.get(module) is stand_in:
                del sys.modules[module]
    return pyudev


def _stand_in(module: str, name: str) -> ModuleType:
    """A module with one name in it, for a class that is never used; any other name is the real module's."""

    def real(other: str) -> object:
        if other.startswith("__"):
            raise AttributeError(other)
        sys.modules.pop(module, None)
        return getattr(__import__(module), other)

    stand_in = ModuleType(module)
    vars(stand_in).update({name: object, "__getattr__": real})
    return stand_in


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"exit status {status}"
