"""The keyboard layout of the target's consoles, for passphrases and the rescue shell."""

from __future__ import annotations

import gzip
import posixpath
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator

from pyinit.kernel.keymap import PATH
from pyinit.text import printable

from ..errors import BuildError
from ..plan import Plan
from ..sysroot import Sysroot
from ..tools import DIRECTORIES
from .base import Feature, Need, Target

LOADKEYS = tuple(f"{directory}/loadkeys" for directory in DIRECTORIES)

#: What console-setup(5) has worked out from /etc/default/keyboard.
CACHED = re.compile(r"cached_.*\.kmap\.gz")
CONSOLE_SETUP = "/etc/console-setup"

#: Where the keymaps that vconsole.conf(5) names are.
KEYMAPS = ("/usr/share/kbd/keymaps", "/usr/lib/kbd/keymaps", "/lib/kbd/keymaps", "/usr/share/keymaps")
SUFFIXES = (".map", ".map.gz", ".kmap", ".kmap.gz", ".inc", ".inc.gz", "", ".gz")
VCONSOLE = "/etc/vconsole.conf"
MAX_KEYMAP = 1 << 20

_INCLUDE = re.compile(rb'^\s*include\s+"([^"]+)"\s*$', re.MULTILINE)


class Keymap(Feature):
    """loadkeys(1) and one keymap, wanted by every image for a system that has a layout of its own."""

    name = "keymap"
    summary = "sets the keyboard layout of the consoles"

    def wanted(self, target: Target) -> str:
        found = configured(target.sysroot)
        return f"the keyboard layout of the system: {printable(found)}" if found else ""

    def needs(self, target: Target) -> Iterable[Need]:
        yield Need(LOADKEYS, package="kbd")

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        place = configured(target.sysroot)
        if not place:
            raise BuildError(
                "the target system has no keyboard layout: "
                f"no keymap in {CONSOLE_SETUP}, no KEYMAP in {VCONSOLE}"
            )
        loadkeys = target.sysroot.find(*LOADKEYS)
        assert loadkeys is not None  # It is among the needs.
        path = plan.file(loadkeys, reason)
        plan.data(PATH, read(target.sysroot, place), f"{printable(place)}: {reason}", path)


def configured(sysroot: Sysroot) -> str:
    """The file with the keymap of the target's consoles; empty when it has the kernel's."""
    cached = [name for name in sysroot.list(CONSOLE_SETUP) if CACHED.fullmatch(name)]
    if cached:
        # One for UTF-8 consoles comes first: that is what the kernel starts with.
        return f"{CONSOLE_SETUP}/{min(cached, key=lambda name: ('UTF-8' not in name, name))}"
    for line in sysroot.read_text(VCONSOLE).splitlines():
        key, _, value = line.strip().partition("=")
        if key == "KEYMAP":
            try:
                words = shlex.split(value)
            except ValueError:
                words = []
            if words and words[0] not in ("us", "@kernel"):
                return _find(sysroot, words[0], ())
    return ""


def read(sysroot: Sysroot, place: str, inside: tuple[str, ...] = ()) -> bytes:
    """A keymap in one piece, unpacked, with what it includes."""
    if place in inside:
        raise BuildError(f"{printable(place)}: it includes itself")
    data = sysroot.read(place)
    if place.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise BuildError(f"{printable(place)} cannot be unpacked: {printable(str(error))}") from error

    def include(match: re.Match[bytes]) -> bytes:
        name = match[1].decode("utf-8", "surrogateescape")
        found = _find(sysroot, name, (posixpath.dirname(place),))
        if not found:
            raise BuildError(f"{printable(place)}: {printable(name)}, which it includes, is missing")
        return read(sysroot, found, (*inside, place))

    result = _INCLUDE.sub(include, data)
    if len(result) > MAX_KEYMAP:
        raise BuildError(f"{printable(place)} is too long for a keymap")
    return result


def _find(sysroot: Sysroot, name: str, near: tuple[str, ...]) -> str:
    """The file of a keymap by its name; empty when there is none."""
    places = [f"{place}/{name}{suffix}" for place in _directories(sysroot, near) for suffix in SUFFIXES]
    return next((place for place in places if sysroot.is_file(place)), "")


def _directories(sysroot: Sysroot, near: tuple[str, ...]) -> Iterator[str]:
    for place in near:
        yield place
        yield f"{place}/../include"
        yield f"{place}/include"
    todo = [place for place in KEYMAPS if sysroot.is_dir(place)]
    for place in todo:
        yield place
        todo += [f"{place}/{name}" for name in sysroot.list(place) if sysroot.is_dir(f"{place}/{name}")]
