"""The words for a writable layer over the root: ``rd.overlay`` and its older spellings."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine, Word, is_on
from pyinit.config.options import OLD_SPELLINGS
from pyinit.text import printable

# tmpfs(5): a number of bytes, blocks or inodes with a suffix, of the size also a part of the memory.
_NUMBER = "[0-9]{1,15}[kKmMgG]?"
_LIMITS = {"size": f"{_NUMBER}|[0-9]{{1,3}}%", "nr_blocks": _NUMBER, "nr_inodes": _NUMBER}


class Overlay(NamedTuple):
    """What is laid over the root."""

    device: str = ""
    """What holds the changes, named as in ``root=``; empty: memory."""
    data: str = ""
    """Options of the tmpfs in memory: ``size=50%``."""
    reset: bool = False
    """Forget the changes of earlier boots."""
    readonly: bool = False
    """Show the changes of earlier boots and allow no new ones."""


def overlay_words(line: CommandLine, live: bool, warnings: list[str]) -> Overlay | None:
    """Read the words; None when there is no overlay. ``warnings`` gets hints and what is not understood.

    ``live``: without a word about it there is one, for a live system is of no use that cannot be written.
    """
    asked: Word | None = None
    switches = {"rd.overlay.reset": False, "rd.overlay.readonly": False}
    for word in line.words:
        ours = OLD_SPELLINGS.get(word.key, word.key)
        if ours != word.key:
            hint = f"{word.key} is an old spelling; the word is {ours}"
            if hint not in warnings:
                warnings.append(hint)
        if ours in switches:
            switches[ours] = is_on(word)
        elif ours == "rd.overlay":
            asked = word
    reset, readonly = switches.values()
    if asked is None:
        return Overlay("", "", reset, readonly) if live else None
    value = asked.value
    if asked.key == "overlayroot":
        value = _of_overlayroot(value or "")
    if value in ("0", "no", "off", "none"):
        return None
    if value in (None, "", "1", "yes", "on", "tmpfs"):
        return Overlay("", "", reset, readonly)
    assert value is not None
    kind, colon, rest = value.partition(":")
    if kind == "tmpfs" and colon:
        return Overlay("", _limits(rest, asked, warnings), reset, readonly)
    return Overlay(value, "", reset, readonly)


def _of_overlayroot(value: str) -> str:
    """A value of ``overlayroot=`` as one of ``rd.overlay=``; what is neither is refused later."""
    kind, _, rest = value.partition(":")
    if kind in ("", "disabled"):
        return "off"
    if kind == "tmpfs":
        return kind
    if kind == "device":
        for option in rest.split(","):
            if option.startswith("dev="):
                return option.removeprefix("dev=")
    # overlayroot.conf(5) allows a device alone.
    return value


def _limits(text: str, word: Word, warnings: list[str]) -> str:
    kept = []
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name in _LIMITS and re.fullmatch(_LIMITS[name], value, re.ASCII):
            kept.append(option)
        else:
            warnings.append(
                f"{printable(word.raw)[:80]}: {printable(option)[:40]} is not understood: "
                "expected are size=, nr_blocks= and nr_inodes= with a number as in tmpfs(5)"
            )
    return ",".join(kept)
