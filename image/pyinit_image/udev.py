"""udev: the target's own daemon, the rules that an initramfs needs, and the programs these rules call."""

from __future__ import annotations

import re

from pyinit.text import printable

from .errors import BuildError
from .plan import Plan

DAEMONS = ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/usr/sbin/udevd", "/sbin/udevd")
RULES = ("/usr/lib/udev/rules.d", "/lib/udev/rules.d")
PROGRAMS = ("/usr/lib/udev", "/lib/udev")

#: The rules an image takes: file, why, and the driver it is about, if any. Rules from /etc are left out: what
#: they run as root was not written for an initramfs.
ALLOWED = (
    ("50-udev-default.rules", "owner and mode of device nodes", ""),
    ("60-block.rules", "notices when a disk was written to", ""),
    ("60-cdrom_id.rules", "media in CD drives", "sr_mod"),
    ("60-persistent-storage.rules", "links by UUID, label, partition, path and serial number", ""),
    ("64-btrfs.rules", "file systems on several disks are ready when all are there", "btrfs"),
    ("80-drivers.rules", "loads the driver of a device that appears", ""),
)

#: Groups that are there even if no rule names them.
GROUPS = ("root", "tty", "disk")

_PROGRAM = re.compile(r'(?:PROGRAM|IMPORT\{program\}|RUN(?:\{program\})?)\s*(?:==|\+=|:=|=)\s*"([^"\s]+)')
_OWNER = re.compile(r'(OWNER|GROUP)\s*(?:\+=|:=|=)\s*"([^"]+)"')


def programs(rules: str) -> list[str]:
    """The programs that a rules file calls, each once, as they are written there."""
    names = (name for line in _lines(rules) for name in _PROGRAM.findall(line))
    return [name for name in dict.fromkeys(names) if "$" not in name and "%" not in name]


def owners(rules: str) -> tuple[set[str], set[str]]:
    """The names of users and groups that a rules file gives device nodes to."""
    found: dict[str, set[str]] = {"OWNER": set(), "GROUP": set()}
    for line in _lines(rules):
        for kind, name in _OWNER.findall(line):
            found[kind].add(name)
    return found["OWNER"], found["GROUP"]


def collect(plan: Plan, drivers: frozenset[str], shell: str) -> str:
    """Add udev; ``drivers`` are the modules of the image and of the kernel. Returns the daemon's path."""
    plan.source = "udev"
    sysroot = plan.sysroot
    root = printable(str(sysroot.root))
    daemon = sysroot.find(*DAEMONS)
    if daemon is None:
        raise BuildError(
            f"no udev daemon in {root}: none of {', '.join(DAEMONS)}",
            hint="Install the package udev in the target system.",
        )
    plan.file(daemon, "names devices and loads their drivers")
    udevadm = sysroot.find("/usr/bin/udevadm", "/bin/udevadm", "/sbin/udevadm")
    if udevadm is not None:
        plan.file(udevadm, "asks the udev daemon, from rules and from the rescue shell")
    users, groups = {"root"}, set(GROUPS)
    for name, reason, driver in ALLOWED:
        if driver and driver not in drivers:
            plan.leave_out(name, f"its driver {driver} is not in the image: {reason}")
            continue
        place = sysroot.find(*(f"{directory}/{name}" for directory in RULES))
        if place is None:
            plan.warn(f"udev rules {name} are not in {root}: {reason}")
            continue
        path = plan.file(place, reason)
        rules = sysroot.read_text(place)
        for program in programs(rules):
            found = (
                program
                if program.startswith("/") and sysroot.is_file(program)
                else sysroot.find(*(f"{directory}/{program}" for directory in PROGRAMS))
            )
            if found is None:
                plan.warn(f"{name} calls {printable(program)}, which is not in {root}")
            else:
                plan.file(found, f"called by {name}", path)
        more_users, more_groups = owners(rules)
        users |= more_users
        groups |= more_groups
    allowed = {name for name, _, _ in ALLOWED}
    for directory in ("/etc/udev/rules.d", *RULES):
        for name in sysroot.list(directory):
            if name.endswith(".rules") and (name not in allowed or directory.startswith("/etc")):
                plan.leave_out(name, "udev rules are taken from a list of those an initramfs needs")
    configuration = sysroot.find("/etc/udev/udev.conf", "/usr/lib/udev/udev.conf")
    if configuration is not None:
        plan.file(configuration, "settings of the udev daemon")
    reason = "names in udev rules, with the numbers of the target system"
    plan.data("/etc/passwd", passwd(sysroot.read_text("/etc/passwd"), users, shell), reason)
    plan.data("/etc/group", group(sysroot.read_text("/etc/group"), groups), reason)
    plan.data("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nshadow: files\n", "no other name services")
    return daemon


def passwd(text: str, names: set[str], shell: str) -> bytes:
    """The lines of passwd(5) for ``names``, without passwords, and root even if it is not in ``text``."""
    lines = {"root": f"root:x:0:0:root:/root:{shell}"}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[0] in names and fields[0] != "root":
            lines[fields[0]] = f"{fields[0]}:x:{fields[2]}:{fields[3]}::/:"
    return "".join(f"{line}\n" for line in lines.values()).encode()


def group(text: str, names: set[str]) -> bytes:
    """The lines of group(5) for ``names``, without members."""
    lines = {"root": "root:x:0:"}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] in names and fields[2].isascii() and fields[2].isdigit():
            lines[fields[0]] = f"{fields[0]}:x:{fields[2]}:"
    return "".join(f"{line}\n" for line in lines.values()).encode()


def _lines(rules: str) -> list[str]:
    joined = rules.replace("\\\n", " ").splitlines()
    return [line for line in joined if not line.lstrip().startswith("#")]
