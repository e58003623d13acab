"""Who gets a rescue shell: the policy that is sealed into an image, and its password."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

from pyinit.config.sealed import CRYPT, POLICIES, is_password_hash
from pyinit.kernel.line import wipe
from pyinit.kernel.syscalls import crypt
from pyinit.text import printable

from .errors import BuildError
from .facts import Block, Facts
from .plan import Plan
from .sysroot import Sysroot, read_regular

#: The policies, the most open first.
RESCUE = POLICIES[::-1]

#: Of libxcrypt; the first is what Debian has.
LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")

#: What the kernel starts out of the image when it cannot execute /init (kernel_init() in its init/main.c).
FALLBACKS = ("/sbin/init", "/etc/init", "/bin/init", "/bin/sh")

_HINT = (
    "Make one with: (umask 077; mkdir -p /etc/pyinit; pyinit-image hash-password > /etc/pyinit/rescue.hash)"
)
# CRYPT_MAX_PASSPHRASE_SIZE and CRYPT_GENSALT_OUTPUT_SIZE of libxcrypt's crypt.h.
_LONGEST, _SETTING = 512, 192


class Decision(NamedTuple):
    """The policy of an image, and why it has this one when nobody asked for it."""

    policy: str
    reason: str


def decide(asked: str, hashed: str, encrypted: str) -> Decision:
    """The policy; ``encrypted`` says why the root cannot be reached without a secret, or is empty."""
    if asked == "password" and not hashed:
        raise BuildError("--rescue password needs --rescue-password-file with the hash of one", hint=_HINT)
    if asked:
        return Decision(asked, "")
    if hashed:
        return Decision("password", "a password was given")
    if encrypted:
        return Decision("none", f"{encrypted}, and no password was given (--rescue-password-file)")
    return Decision("open", "")


def encrypted_root(facts: Facts) -> str:
    """Why the root file system of a machine cannot be reached without a secret; empty when it can."""
    blocks = {block.name: block for block in facts.blocks}
    todo = [name for mount in facts.mounts if mount.target == "/" for name in mount.blocks]
    for name in todo:
        block = blocks[name]
        if block.mapping.startswith("CRYPT-"):
            return f"the root is encrypted ({_named(block)})"
        todo += block.below
    return ""


def _named(block: Block) -> str:
    return printable(f"{block.label} on {', '.join(block.below)}")


def read_hash(path: Path, target: Sysroot) -> str:
    """The hash in a file, alone on its line. BuildError when there is none, or when it must not be used.

    An image is often a file that everybody can read. So the hash must be by a strong method, and it may not
    be the one of anybody's login.
    """
    shown = printable(str(path))
    text = read_regular(path)[0].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise BuildError(
            f"{shown} holds {len(lines) or 'no'} lines with a password's hash, not one", hint=_HINT
        )
    (hashed,) = lines
    if not is_password_hash(hashed):
        raise BuildError(
            f"{shown} holds no hash of a password by yescrypt, gost-yescrypt, scrypt or bcrypt (crypt(5))",
            hint=_HINT,
        )
    for line in target.read_text("/etc/shadow").splitlines():
        user, _, rest = line.partition(":")
        if rest.partition(":")[0] == hashed:
            raise BuildError(
                f"{shown} holds the hash of {printable(user)}'s login password, which must stay in "
                "/etc/shadow: an image can be read by others",
                hint=f"Choose another password. {_HINT}",
            )
    return hashed


def make_hash(phrase: bytearray) -> str:
    """The hash of a password, by yescrypt with the default cost of crypt(5); the password is wiped."""
    try:
        if not phrase:
            raise BuildError("an empty password is none")
        if len(phrase) > _LONGEST:
            raise BuildError(f"the password is longer than {_LONGEST} bytes")
        if any(byte < 0x20 or byte == 0x7F for byte in phrase):
            raise BuildError("the password has a control character in it, which cannot be typed at a boot")
        for library in LIBRARIES:
            try:
                setting = _new_setting(library)
                hashed = crypt(library, phrase, setting)
            except (OSError, AttributeError):
                continue
            if hashed is not None and is_password_hash(hashed.decode("ascii", "replace")):
                return hashed.decode("ascii")
        raise BuildError(
            "this system has no libcrypt that can hash a password by yescrypt",
            hint="Install libcrypt1, or take the output of mkpasswd -m yescrypt from another machine.",
        )
    finally:
        wipe(phrase)


def _new_setting(library: str) -> bytes:
    """crypt_gensalt_rn(3): a setting for yescrypt, with a salt out of the kernel's random numbers."""
    make = ctypes.CDLL(library).crypt_gensalt_rn
    make.restype = ctypes.c_char_p
    make.argtypes = (
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
    )
    setting: bytes | None = make(b"$y$", 0, None, 0, ctypes.create_string_buffer(_SETTING), _SETTING)
    if setting is None:
        raise OSError(f"{library} knows no yescrypt")
    return setting


def collect_library(plan: Plan, python: str) -> dict[str, str]:
    """Add the library that checks the password at a boot; returns its file name by short name."""
    plan.source = "rescue"
    for soname in LIBRARIES:
        place = plan.walker.library(soname, python)
        if place is not None:
            plan.file(place, "checks the password of the rescue shell")
            return {CRYPT: soname}
    raise BuildError(
        f"{' or '.join(LIBRARIES)}, to check a password, is missing in {printable(str(plan.sysroot.root))}",
        hint="Install the package libcrypt1 in the target system.",
    )


def refuse_fallbacks(plan: Plan, policy: str) -> None:
    """Where not everybody may have a shell: nothing may be where the kernel looks when it has no /init."""
    if policy == "open":
        return
    for path in FALLBACKS:
        entry = plan.entry(plan.canonical(path))
        if entry is not None:
            wanted = f", for {printable(entry.parent)}" if entry.parent else ""
            raise BuildError(
                f"rescue {policy}: {path} may not be in the image, because the kernel starts it without "
                f"asking when it cannot execute /init; it would be there: {printable(entry.reason)}{wanted}",
                hint="Leave out what brings it along, or build with --rescue open.",
            )
