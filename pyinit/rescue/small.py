"""Small programs of the rescue shell where the target system has none, or one of more bytes than this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyinit.text import printable

# To the upper left corner, and all away, what has scrolled out included: console_codes(4), xterm's ED 3.
_CLEAR = b"\x1b[H\x1b[2J\x1b[3J"
_CHUNK = 65536
_LINES = 10


class Misuse(Exception):
    """The words after a program are not what it takes."""


def run(name: str, words: Sequence[str]) -> int:
    """Run one; 0 when it worked, 1 when not, 2 when it was not understood."""
    try:
        return PROGRAMS[name](list(words))
    except Misuse as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough; nothing is left that Python would try to write at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror}", file=sys.stderr)
        return 1


def _clear(words: list[str]) -> int:
    if words:
        raise Misuse("takes no words")
    _out(_CLEAR)
    return 0


def _chroot(words: list[str]) -> int:
    """chroot [DIR [COMMAND...]]: a shell of the root, whose prompt says that it is one."""
    if words and words[0].startswith("-"):
        raise Misuse("takes a directory and a command, and no options")
    directory = words[0] if words else "/sysroot"
    command = words[1:] or ["/bin/sh", "-i"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PS1"] = f"chroot {directory}:${{PWD}}# "
    os.chroot(directory)
    os.chdir("/")
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{command[0]} in {directory}") from None


def _head(words: list[str]) -> int:
    """head [-n LINES] [FILE...]"""
    lines = _LINES
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        number = words.pop(0) if word == "-n" and words else word.removeprefix("-").removeprefix("n")
        if not number.isdecimal() or len(number) > 9:
            raise Misuse(f"takes -n LINES and files, and not {printable(word)}")
        lines = int(number)
    for name in words or ["-"]:
        if len(words) > 1:
            _out(f"==> {printable(name)} <==\n".encode("ascii"))
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            for _ in range(lines):
                line = file.readline()
                if not line:
                    break
                _out(line)
    return 0


def _ps(words: list[str]) -> int:
    """All processes, whatever options were typed."""
    print(f"{'PID':>7} {'PPID':>7} S {'RSS':>7} COMMAND")
    for name in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                facts = file.read()
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words_of = file.read()
        except OSError:
            continue  # It has ended meanwhile.
        print(f"{name:>7} {process(facts, words_of)}")
    return 0


def process(stat: bytes, cmdline: bytes) -> str:
    """Parent, state, resident KiB and command of a process, from /proc/PID/stat and cmdline (proc(5))."""
    comm, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    parent, state = (fields[1], fields[0]) if len(fields) > 1 else (b"?", b"?")
    pages = fields[21] if len(fields) > 21 else b""
    size = int(pages) * 4 if pages.isdigit() and len(pages) < 16 else 0
    command = b" ".join(cmdline.rstrip(b"\0").split(b"\0")) or b"[" + comm + b"]"
    return f"{printable(parent):>7} {printable(state)} {size:>7} {printable(command)}"


def _out(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


PROGRAMS = {"chroot": _chroot, "clear": _clear, "head": _head, "ps": _ps}
