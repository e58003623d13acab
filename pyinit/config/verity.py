"""The words for a root whose every block is checked against one hash (dm-verity)."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine
from pyinit.config.fstab import split_options
from pyinit.text import printable

#: What the checked root is called, as systemd-veritysetup-generator(8) calls it.
NAME = "root"
DEVICE = f"/dev/mapper/{NAME}"

# veritytab(5): what veritysetup(8) has an option of the same name for.
_OPTIONS = frozenset(
    (
        "ignore-corruption",
        "restart-on-corruption",
        "panic-on-corruption",
        "ignore-zero-blocks",
        "check-at-most-once",
        "root-hash-signature",
        "hash-offset",
    )
)


class VerityWords(NamedTuple):
    """``roothash=`` and what belongs to it."""

    roothash: str
    """As it was typed."""
    data: str = ""
    """The device with the root, named as in ``root=``; empty: its PARTUUID is the hash's first half."""
    hashes: str = ""
    """The device with the hashes; empty: its PARTUUID is the hash's last half."""
    options: tuple[str, ...] = ()


def verity_words(line: CommandLine, warnings: list[str]) -> VerityWords | None:
    """Read the words; None when the root is not to be checked. ``warnings`` gets what is not understood."""
    if line.last("roothash") is None:
        return None
    if not (line.flag("systemd.verity", True) and line.flag("rd.systemd.verity", True)):
        return None
    options = []
    for option in split_options(line.text("systemd.verity_root_options")):
        if option.partition("=")[0] in _OPTIONS:
            options.append(option)
        else:
            warnings.append(f"systemd.verity_root_options: {printable(option)[:80]} is not understood")
    return VerityWords(
        line.text("roothash"),
        line.text("systemd.verity_root_data"),
        line.text("systemd.verity_root_hash"),
        tuple(options),
    )


def normal_hash(text: str) -> str:
    """A root hash in lower case; empty when it is none: pairs of hexadecimal digits, 128 bits at least."""
    digits = text.lower()
    return digits if re.fullmatch("([0-9a-f]{2}){16,64}", digits, re.ASCII) else ""


def halves(roothash: str) -> tuple[str, str]:
    """The UUIDs of the partitions with the root and its hashes (Discoverable Partitions Specification)."""
    return _uuid(roothash[:32]), _uuid(roothash[-32:])


def _uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
