"""What a word on the command line of the rescue shell could be: commands, their words, options, files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from pyinit.kernel.files import names
from pyinit.kernel.process import ENVIRONMENT

_BUILTINS = "alias bg cd command echo eval exec exit export fg jobs kill printf pwd read set trap umask wait"
_ENDS = ";|&("


def complete(text: str, directory: str = ".") -> tuple[int, list[str]]:
    """Where the last word of ``text`` begins, and what it could be; ``directory`` is where the shell is."""
    start = max(text.rfind(character) for character in f" {_ENDS}<>") + 1
    command = max(text.rfind(character) for character in _ENDS) + 1
    words = text[command:start].split()
    word = text[start:]
    if not words and "/" not in word:
        found: Iterable[str] = _commands()
    elif words[:1] == ["pyinit"]:
        found = _words_of_pyinit(words[1:], word)
        if "=" in word:
            start += word.index("=") + 1
            word = text[start:]
            if text[command:start].endswith("root="):
                return start, _matching(_devices(), word)
            return start, []
    else:
        return _files(text, start, word, directory)
    return start, _matching(found, word)


def _matching(words: Iterable[str], start: str) -> list[str]:
    return sorted({word for word in words if word.startswith(start)})


def _commands() -> Iterable[str]:
    yield from _BUILTINS.split()
    for folder in ENVIRONMENT["PATH"].split(":"):
        yield from names(folder)


def _words_of_pyinit(words: list[str], word: str) -> Iterable[str]:
    from pyinit.config.options import OPTIONS
    from pyinit.errors import CODES
    from pyinit.rescue.cli import COMMANDS

    match words:
        case []:
            return COMMANDS
        case ["set", *_]:
            return [option.name + "=" * option.value.startswith("=") for option in OPTIONS]
        case ["explain"]:
            return CODES
        case ["mount-root"] | ["report", "--to"]:
            return _devices()
        case ["report"]:
            return ["--to"]
        case ["report", "--to", _]:
            return ["--force"]
    return []


def _devices() -> Iterable[str]:
    """Names that udev gave the block devices, as root= and our commands take them."""
    for kind in ("uuid", "label", "partuuid", "partlabel"):
        for name in names(f"/dev/disk/by-{kind}"):
            if "\\" not in name:
                yield f"{kind.upper()}={name}"
    for name in names("/sys/class/block"):
        yield f"/dev/{name}"


def _files(text: str, start: int, word: str, directory: str) -> tuple[int, list[str]]:
    folder, slash, name = word.rpartition("/")
    start += len(folder) + len(slash)
    place = folder if word.startswith("/") else os.path.join(directory, folder)
    found = []
    for entry in names(place or "/"):
        if entry.startswith(name) and (name or not entry.startswith(".")):
            found.append(f"{entry}/" if _is_folder(f"{place}/{entry}") else entry)
    return start, found


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
