"""Hibernation: to which swap space the system hibernates."""

from __future__ import annotations

import re
import shlex

from pyinit.config import crypttab
from pyinit.config.cmdline import parse
from pyinit.text import printable

from ..facts import CRYPTTAB, FSTAB
from ..plan import Plan
from .base import Feature, Target

#: Where Debian's installer writes RESUME=DEVICE, in the order in which initramfs-tools reads it.
CONFIGURATION = "/etc/initramfs-tools/initramfs.conf"
DROP_INS = "/etc/initramfs-tools/conf.d"
RANDOM = ("/dev/urandom", "/dev/random")


class Resume(Feature):
    """Wanted when the system says where it hibernates to, or this machine has swap space to hibernate to."""

    name = "resume"
    summary = "resumes a hibernated system: seals resume= into the image"

    def wanted(self, target: Target) -> str:
        words = {word.key for word in parse(target.cmdline.encode("utf-8", "surrogateescape")).words}
        if target.mode == "list" or words & {"resume", "noresume"}:
            return ""
        device, origin = place(target)
        return f"{origin}: {printable(device)}" if device else ""

    def words(self, target: Target) -> str:
        device = place(target)[0]
        return f"resume={device}" if device else ""

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        if not place(target)[0]:
            plan.warn(f"feature resume: neither {CONFIGURATION} nor {FSTAB} tells of a swap device")


def place(target: Target) -> tuple[str, str]:
    """The device that the system hibernates to, as ``resume=`` names it, and who says so; empty for none.

    What initramfs-tools is told counts for every image. Else, in an image for one machine, it is the first
    swap device of fstab that is in use there and keeps its content. A swap file is not found here: it takes
    ``resume=`` and ``resume_offset=`` on the command line.
    """
    told, origin = _told(target)
    if told and told != "auto":
        return ("", "") if told == "none" or not _is_word(told) else (told, origin)
    if target.facts is None:
        return "", ""
    changing = _changing(target)
    for line in target.facts.fstab:
        if line.type == "swap" and line.blocks and "noauto" not in line.options:
            kept = line.spec not in changing and not any(name.startswith("zram") for name in line.blocks)
            if kept and _is_word(line.spec):
                return line.spec, f"{FSTAB} line {line.line}"
    return "", ""


def parse_conf(data: bytes) -> str:
    """The last ``RESUME=`` of a file of initramfs-tools, which is read by a shell; empty for none."""
    value = ""
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        match = re.fullmatch(r"\s*(?:export\s+)?RESUME=(.*)", line)
        if match:
            try:
                words = shlex.split(match[1], comments=True)
            except ValueError:
                continue
            value = words[0] if words else ""
    return value


def _told(target: Target) -> tuple[str, str]:
    sysroot = target.sysroot
    # Those that run-parts(8) would run, as initramfs-tools does.
    names = [name for name in sysroot.list(DROP_INS) if re.fullmatch("[A-Za-z0-9_.-]+", name)]
    told = origin = ""
    for path in (CONFIGURATION, *(f"{DROP_INS}/{name}" for name in sorted(names))):
        if sysroot.is_file(path) and (value := parse_conf(sysroot.read(path))):
            told, origin = value, path
    return told, origin


def _is_word(device: str) -> bool:
    """Whether it can be a value on a command line, and may name a block device."""
    named = device.startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="))
    return named and device.isprintable() and not set(device) & set(" \"'$`\\")


def _changing(target: Target) -> set[str]:
    """The paths of the volumes of crypttab that have another key each time."""
    sysroot = target.sysroot
    lines = crypttab.parse(sysroot.read(CRYPTTAB))[0] if sysroot.is_file(CRYPTTAB) else ()
    return {f"/dev/mapper/{line.name}" for line in lines if line.key in RANDOM}
