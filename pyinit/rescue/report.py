"""The report that a bug report needs: ``/run/initramfs/rdsosreport.txt``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pyinit.config.cmdline import OVERRIDES
from pyinit.config.devspec import parse_spec, resolve
from pyinit.config.discoverable import ROOT, USR
from pyinit.config.options import BootConfig
from pyinit.config.sealed import CONFIG_PATH, SealedConfig
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel import mountinfo
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.modules import driverless_modaliases
from pyinit.kernel.syscalls import MS, mount, umount2
from pyinit.kernel.terminal import write_patiently
from pyinit.record import timeline
from pyinit.rescue.missing import named, present
from pyinit.rescue.working import work
from pyinit.text import printable

REPORT_PATH = "/run/initramfs/rdsosreport.txt"
_COPY_TARGET = "/run/pyinit/report-target"
_LINE = 4096
# Seconds without a byte taken: at 1200 baud a terminal's buffer of 4096 bytes drains in 35.
_PATIENCE = 60.0
# What is on sticks and cards, and has no other devices.
_PLAIN = ("vfat", "exfat", "ext2", "ext3", "ext4")
_BUSES = ("pci", "usb", "virtio", "scsi", "vmbus", "xen")

# Words whose value may open something: name=value up to a blank or a comma, in a command line or mount
# options, and the user part of an URL. A name is looked at from its start only, and what has matched is not
# given back: somebody else wrote the line, and the time must not grow with the square of its length.
_NAME = r"""(?<![\w.-])
    (?= [\w.-]*? (?: passw(?:or)?d | passphrase | secret | token | credential | \bpwd | \bpsk
        | pass (?![\w.-]) ) ) [\w.-]++"""
_SIGN = r"""["']?+ \s*+ [=:]"""
# Quotes protect blanks around a word or anywhere in it, and the last one may be missing (the kernel's rules).
_SECRET = re.compile(
    rf"""(?ix) (?<=") ( {_NAME} = ) [^"]++
        | ( {_NAME} {_SIGN} (?: (?!\s) | \s++ (?! {_NAME} {_SIGN} ) ) )
          (?: "[^"]*+ (?:"|$) | '[^']*+ (?:'|$) | [^\s,"'] )++"""
)
_URL = re.compile(r"(://|//|\biscsi:)[^/\s@:]*:[^/\s@]+@")
# user=NAME%PASSWORD, mount.cifs(8).
_USER = re.compile(r"(\buser(?:name)?=[^%\s,]{0,256}%)[^\s,]+")
HIDDEN = "(hidden)"


def mask(text: str) -> str:
    """Hide what looks like a secret: the values of words named for one, passwords in addresses."""
    text = _SECRET.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}", text)
    return _USER.sub(rf"\1{HIDDEN}", _URL.sub(rf"\1{HIDDEN}@", text))


def masked(value: Any) -> Any:
    """A decoded JSON value with all its strings masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [masked(item) for item in value]
    if isinstance(value, dict):
        return {name: masked(item) for name, item in value.items()}
    return value


def compose(
    explanation: Sequence[str],
    record: dict[str, Any],
    devices: Iterable[DeviceView],
    image: SealedConfig | None,
) -> bytes:
    """The report as ASCII text, secrets masked; looks at this machine for what it is not given."""
    views = sorted(devices, key=lambda view: view.number)
    sections: list[tuple[str, Iterable[str]]] = [
        ("failure", explanation or ("none",)),
        ("system", _system(record)),
        ("kernel command line", _command_lines(record, image)),
        ("image", _image(image)),
        ("timeline", timeline(record)),
        ("at work", work(record)),
        ("block devices", present(views)),
        ("device links", _links("/dev/disk")),
        ("udev properties", (line for view in views for line in _properties(view))),
        ("devices without a driver", map(printable, sorted(set(driverless_modaliases(_BUSES))))),
        ("partitions", _lines("/proc/partitions")),
        ("device mapper", _device_mapper()),
        ("software RAID", _lines("/proc/mdstat")),
        ("swaps", _lines("/proc/swaps")),
        ("network", _network()),
        ("consoles", _lines("/proc/consoles")),
        ("mounts", _lines("/proc/self/mountinfo")),
        ("modules", _lines("/proc/modules")),
        ("processes", _processes()),
        ("memory", _lines("/proc/meminfo")),
        ("log", (message["text"] for message in record["messages"])),
        ("kernel log", kernel_messages(2000, lowest=7)),
    ]
    out = []
    for title, lines in sections:
        out.append(f"--- {title}")
        out += [mask(line) for line in lines]
    return "".join(f"{line}\n" for line in out).encode("ascii", "backslashreplace")


def write_report(report: bytes) -> None:
    """Keep the report for root's eyes; OSError when /run is full or absent."""
    _write(REPORT_PATH, report)


def obstacle(device: DeviceView, mounts: Iterable[mountinfo.Mount], holders: Sequence[str]) -> str:
    """Why nothing can be copied to a device, whoever insists; empty when it can.

    ``holders`` are the devices that are made of it.
    """
    get, node = device.properties.get, printable(device.node)
    kind = printable(get("ID_FS_TYPE", ""))
    for entry in mounts:
        if entry.device == device.number:
            place = printable(entry.target)
            return f"{node} is in use: mounted on {place}; to copy it there: cp {REPORT_PATH} {place}"
    if holders:
        return f"{node} is in use: {', '.join(map(printable, holders))} is made of it"
    if kind == "swsuspend":
        return f"{node} holds a hibernated system"
    if get("ID_FS_USAGE") in ("raid", "crypto"):
        return f"{node} is not a file system but a container ({kind})"
    if get("ID_FS_USAGE") != "filesystem" or not kind:
        what = f": {kind}" if kind else ""
        return f"{node} holds no file system to write to{what}"
    return ""


def doubts(device: DeviceView, known: Sequence[DeviceView], config: BootConfig, removable: bool) -> list[str]:
    """Why a person should think twice before anything is written to the file system of a device.

    Mounting is enough to change it: its log is replayed.
    """
    found = []
    for word, value in named(config):
        try:
            meant = resolve(parse_spec(value), known)
        except BootError:
            continue
        if device in meant:
            found.append(f"{word}={printable(value)[:80]} names it")
    get = device.properties.get
    if get("ID_PART_ENTRY_TYPE", "").lower() in (*ROOT.values(), *USR.values()):
        found.append("its partition has the type of a root or a /usr")
    hibernated = [printable(view.node) for view in known if view.properties.get("ID_FS_TYPE") == "swsuspend"]
    if hibernated:
        found.append(
            f"a system is hibernated on {', '.join(hibernated)}, and is destroyed when it is resumed after "
            "a file system that it had mounted was changed"
        )
    if get("ID_FS_TYPE") not in _PLAIN:
        found.append(f"it is not one of {', '.join(_PLAIN)} but {printable(get('ID_FS_TYPE', ''))}")
    if not removable:
        found.append("it is no stick or card, but a disk of this machine")
    return found


def is_removable(device: DeviceView) -> bool:
    """Whether a device is on USB, a card, or a medium that can be taken out."""
    disk = device.sys_path
    if device.devtype == "partition":
        disk = os.path.dirname(disk)
    return (
        "/usb" in disk
        or read_if_there(f"{disk}/removable").strip() == b"1"
        # Not the memory that is soldered in: drivers/mmc/core/bus.c.
        or read_if_there(f"{disk}/device/type").strip() == b"SD"
    )


def look_at_target(device: DeviceView, known: Sequence[DeviceView], config: BootConfig) -> list[str]:
    """Why a person should not have a report copied there (:func:`doubts`); OSError when nobody can."""
    if why := obstacle(device, mountinfo.read(), names(f"{device.sys_path}/holders")):
        raise OSError(why)
    return doubts(device, known, config, is_removable(device))


def copy_to_disk(device: DeviceView, files: dict[str, bytes]) -> str:
    """Write files to the file system on a device; return the directory on it. OSError when that fails.

    It is mounted for this moment only.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        folder = f"pyinit-report-{file.read(8)}"
    os.makedirs(_COPY_TARGET, 0o700, exist_ok=True)
    mount(device.node, _COPY_TARGET, device.properties["ID_FS_TYPE"], MS.NOSUID | MS.NODEV | MS.NOEXEC, "")
    try:
        os.makedirs(f"{_COPY_TARGET}/{folder}", 0o700, exist_ok=True)
        for name, data in files.items():
            _write(f"{_COPY_TARGET}/{folder}/{name}", data)
    finally:
        umount2(_COPY_TARGET, 0)
    return folder


def copy_to_terminal(path: str, report: bytes) -> None:
    """Write the report to a terminal, a serial line say, between two lines that mark its start and end."""
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not os.isatty(fd):
            raise OSError(f"{printable(path)} is no terminal")
        import termios

        text = b"----- begin of pyinit's report\n" + report + b"----- end of pyinit's report\n"
        if not termios.tcgetattr(fd)[1] & termios.OPOST:
            # Whoever edits lines on this terminal does without the driver's carriage returns.
            text = text.replace(b"\n", b"\r\n")
        for start in range(0, len(text), _LINE):
            if not write_patiently(fd, text[start : start + _LINE], _PATIENCE):
                raise OSError(f"{printable(path)} takes no more: {start} of {len(text)} bytes were sent")
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _image(image: SealedConfig | None) -> Iterable[str]:
    if image is None:
        return (f"{CONFIG_PATH} could not be read",)
    kernel, mode, rescue = map(printable, (image.kernel, image.mode, image.rescue))
    return (f"built for Linux {kernel}", f"mode {mode}", f"rescue {rescue}")


def _system(record: dict[str, Any]) -> Iterable[str]:
    from time import gmtime, strftime

    python = sys.version.partition(" ")[0]
    yield f"pyinit {record['version']}, Python {python}, Linux {record['kernel']}"
    yield f"clock {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime())}, up {_text('/proc/uptime').split(' ')[0]} s"


def _command_lines(record: dict[str, Any], image: SealedConfig | None) -> Iterable[str]:
    """What is in effect, and where each part comes from; later ones count more."""
    yield f"in effect: {record['cmdline']}"
    yield f"sealed in the image: {printable(image.cmdline) if image else ''}"
    yield f"from the boot loader: {_text('/proc/cmdline')}"
    yield from (f"set in the rescue shell: {line}" for line in _lines(OVERRIDES) if os.path.exists(OVERRIDES))


def _links(top: str) -> Iterable[str]:
    for directory, folders, files in os.walk(top):
        folders.sort()
        for name in sorted(files):
            path = f"{directory}/{name}"
            if os.path.islink(path):
                yield f"{printable(path)} -> {printable(os.readlink(path))}"


def _device_mapper() -> Iterable[str]:
    """What dmsetup(8) and the tools of LVM would list, as far as the kernel knows it."""
    for name in names("/sys/block"):
        folder = f"/sys/block/{name}"
        if os.path.isdir(f"{folder}/dm"):
            below = ", ".join(map(printable, names(f"{folder}/slaves")))
            state = "suspended" if _text(f"{folder}/dm/suspended") == "1" else "active"
            yield f"{name}: {_text(f'{folder}/dm/name')} {_text(f'{folder}/dm/uuid')} {state}, on {below}"


def _network() -> Iterable[str]:
    for name in names("/sys/class/net"):
        folder = f"/sys/class/net/{name}"
        facts = [_text(f"{folder}/{fact}") for fact in ("address", "operstate")]
        yield " ".join((printable(name), *facts))


def _text(path: str) -> str:
    """The first line of a small file."""
    return printable(read_if_there(path).split(b"\n", 1)[0])


def _properties(view: DeviceView) -> Iterable[str]:
    yield printable(view.sys_path)
    for name, value in sorted(view.properties.items()):
        yield f"  {printable(name)}={printable(value)}"


def _processes() -> Iterable[str]:
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        words = b" ".join(read_if_there(f"/proc/{name}/cmdline").split(b"\0"))
        if words:
            yield f"{name:>7} {printable(words.strip())}"


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return [printable(line) for line in file.read().splitlines()]
    except OSError as error:
        return [f"{path}: {error.strerror}"]
