"""Encrypted volumes: cryptsetup, the kernel's ciphers, and what crypttab says of the root's volumes."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config import crypttab
from pyinit.config.crypttab import Entry
from pyinit.config.luks import parse_key
from pyinit.text import printable

from .. import tables
from ..errors import BuildError
from ..facts import CRYPTTAB, FSTAB
from ..plan import Plan
from ..sysroot import Sysroot
from ..tools import DIRECTORIES
from . import devmapper, resume
from .base import Feature, Need, Target

CRYPTSETUP = Need(tuple(f"{directory}/cryptsetup" for directory in DIRECTORIES), package="cryptsetup-bin")

#: dm-crypt, sockets by which cryptsetup opens key slots with the kernel's ciphers, and the ciphers that
#: cryptsetup has taken by default since LUKS exists: aes-cbc-essiv:sha256, aes-xts-plain64. Aliases bring the
#: modules for CPUs that can do them faster.
MODULES = (
    *("dm-mod", "dm-crypt", "algif_skcipher", "crypto-aes", "crypto-xts", "crypto-ecb", "crypto-cbc"),
    *("crypto-essiv", "crypto-sha256", "crypto-sha512"),
)

#: Loaded by libraries while they work: the unwinder when a thread of Argon2 ends (pthread_exit(3)), and
#: OpenSSL's module with the hashes of old LUKS1 volumes.
UNWINDER = "libgcc_s.so.1"
OLD_HASHES = "ossl-modules/legacy.so"

#: What Debian's package cryptsetup-initramfs brings.
PACKAGED = "/usr/share/initramfs-tools/hooks/cryptroot"

#: A mark on a line of crypttab: this volume is for the initramfs (crypttab(5) of systemd, of Debian).
MARKS = ("x-initrd.attach", "initramfs")


class Luks(Feature):
    """Wanted when the root is on an encrypted volume, or crypttab has lines that may lead to it."""

    name = "luks"
    summary = "opens encrypted volumes (LUKS)"

    def wanted(self, target: Target) -> str:
        lines = entries(target)
        if lines:
            return wording(lines[0])
        if target.facts is not None:
            for block in target.facts.blocks:
                if block.mapping.startswith("CRYPT-LUKS"):
                    return f"the encrypted volume {block.name} is in use for the root"
        elif target.sysroot.is_file(PACKAGED):
            return f"the system is prepared for an encrypted root: {PACKAGED}"
        return ""

    def encrypted_root(self, target: Target) -> str:
        # In mode host the devices below the root tell.
        if target.facts is not None:
            return ""
        lines = entries(target)
        why = wording(lines[0]) if lines else "the image can open encrypted volumes"
        return f"the root may be encrypted ({why})"

    def needs(self, target: Target) -> Iterable[Need]:
        return (CRYPTSETUP, devmapper.DMSETUP)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        sysroot = target.sysroot
        place = sysroot.find(*CRYPTSETUP.paths)
        assert place is not None  # It is among the needs.
        path = plan.file(place, reason)
        for found, name, what in (
            (plan.walker.library(UNWINDER, path), UNWINDER, "threads of the key derivation end with it"),
            (_beside_libraries(sysroot, OLD_HASHES), OLD_HASHES, "ripemd160 and whirlpool, for old volumes"),
        ):
            if found is not None:
                plan.file(found, what, path)
            else:
                plan.leave_out(name, f"the target system has it not: {what}")
        devmapper.collect(plan, path)
        lines = entries(target)
        for entry in lines:
            _key(plan, sysroot, entry)
        if lines:
            plan.data(
                CRYPTTAB, text(lines), f"the encrypted volumes that the boot opens: {reason}", mode=0o600
            )


def wording(entry: Entry) -> str:
    """A line of crypttab as people are told of it."""
    return f"{CRYPTTAB} line {entry.line}: {printable(entry.name)}"


def library_folders(sysroot: Sysroot) -> list[str]:
    """Where a system for one architecture, or for several, has its libraries."""
    several = [f"/usr/lib/{name}" for name in sysroot.list("/usr/lib") if name.endswith("-linux-gnu")]
    return [*several, "/usr/lib64", "/usr/lib"]


def _beside_libraries(sysroot: Sysroot, name: str) -> str | None:
    return sysroot.find(*(f"{folder}/{name}" for folder in library_folders(sysroot)))


def entries(target: Target) -> list[Entry]:
    """The lines of the target's crypttab that the boot needs.

    In mode host: those of the volumes that the root is on. Otherwise those that are marked for the initramfs
    and those that fstab names for / and /usr; when there is none of either kind, all that are opened with a
    passphrase, for the root may be on a volume group inside. Beside these the one that the system hibernates
    to.
    """
    sysroot = target.sysroot
    if not sysroot.is_file(CRYPTTAB):
        return []
    lines = [entry for entry in crypttab.parse(sysroot.read(CRYPTTAB))[0] if not _unfit(entry)]
    if target.facts is not None:
        used = {line.line for line in target.facts.crypttab}
        return [entry for entry in lines if entry.line in used]
    filesystems = tables.parse_fstab(sysroot.read(FSTAB))[0] if sysroot.is_file(FSTAB) else ()
    specs = {row.spec for row in filesystems if row.file in ("/", "/usr")}
    sleeping = resume.place(target)[0]
    chosen = [
        entry
        for entry in lines
        if any(mark in entry.options for mark in MARKS) or f"/dev/mapper/{entry.name}" in specs
    ]
    chosen = chosen or [entry for entry in lines if entry.key == "none"]
    return [entry for entry in lines if entry in chosen or f"/dev/mapper/{entry.name}" == sleeping]


def text(lines: Iterable[Entry]) -> bytes:
    """The lines as crypttab has them, without what only the booted system can do."""
    rows = (f"{entry.name} {entry.source} {entry.key} {','.join(entry.options) or '-'}\n" for entry in lines)
    return "".join(rows).encode("utf-8", "surrogateescape")


def _unfit(entry: Entry) -> bool:
    options, _ = crypttab.decode_options(entry.options)
    return bool(options.skip) or entry.key in ("/dev/urandom", "/dev/random")


def _key(plan: Plan, sysroot: Sysroot, entry: Entry) -> None:
    """Add the key file and the header that a line names, unless they are on a device of their own."""
    options, _ = crypttab.decode_options(entry.options)
    for what, value in (("key file", entry.key), ("header", options.header)):
        key = parse_key(value) if value not in ("", "none") else None
        if key is None or key.device or key.path.startswith("/dev/"):
            continue
        if not sysroot.is_file(key.path):
            raise BuildError(
                f"{CRYPTTAB} line {entry.line}: the {what} {printable(key.path)} is missing",
                hint="If it is on a device of its own, write PATH:DEVICE.",
            )
        content, mode = sysroot.read_with_mode(key.path)
        if what == "key file" and mode & 0o077:
            raise BuildError(
                f"the key file {printable(key.path)} may be read by others (mode {mode:04o})",
                hint=f"chmod 0400 {printable(key.path)}",
            )
        plan.secret(key.path, content, f"{what} of {printable(entry.name)} <- {CRYPTTAB} line {entry.line}")
