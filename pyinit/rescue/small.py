"""Small programs of the rescue shell where the target system has none, or one of more bytes than this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyinit.kernel import mountinfo
from pyinit.kernel.files import is_mounted
from pyinit.text import printable

# To the upper left corner, and all away, what has scrolled out included: console_codes(4), xterm's ED 3.
_CLEAR = b"\x1b[H\x1b[2J\x1b[3J"
_CHUNK = 65536
_LINES = 10
_SYSROOT = "/sysroot"


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
    directory = words[0] if words else _SYSROOT
    if os.path.realpath(directory) == _SYSROOT and not is_mounted(_SYSROOT):
        print(
            "chroot: nothing is mounted on /sysroot. `pyinit devices` lists what there is, "
            "`pyinit mount-root DEVICE` mounts one there, `pyinit retry` lets the boot look for it again.",
            file=sys.stderr,
        )
        return 1
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


def _df(words: list[str]) -> int:
    """The room of what is mounted, or of what files are on; sizes are for people, whatever options say."""
    from pyinit.devices.waiting import size

    paths = [word for word in words if not word.startswith("-")]
    mounts = mountinfo.read()
    print(f"{'FILE SYSTEM':<20} {'SIZE':>9} {'USED':>9} {'FREE':>9} MOUNTED ON")
    for mount in mounts:
        target = mount.target
        if paths:
            if not any(os.stat(path).st_dev == os.makedev(*mount.device) for path in paths):
                continue
        elif mountinfo.topmost(mounts, target) is not mount:
            continue  # It is covered by another one.
        try:
            room = os.statvfs(target)
        except OSError:
            continue
        if room.f_blocks:
            unit = room.f_frsize
            sizes = (room.f_blocks * unit, (room.f_blocks - room.f_bfree) * unit, room.f_bavail * unit)
            columns = " ".join(f"{size(count):>9}" for count in sizes)
            print(f"{printable(mount.source):<20} {columns} {printable(target)}")
    return 0


def _touch(words: list[str]) -> int:
    """touch FILE...: make files that are not there, and set the times of the others."""
    if not words or any(word.startswith("-") for word in words):
        raise Misuse("takes files, and no options")
    for name in words:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK, 0o666))
        os.utime(name)
    return 0


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


PROGRAMS = {
    "chroot": _chroot,
    "clear": _clear,
    "df": _df,
    "head": _head,
    "ps": _ps,
    "touch": _touch,
}
