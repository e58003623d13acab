"""``rd.memdebug``: what the memory is used for, before each stage.

What dracut has from memstrack at levels 4 and 5 is here what the kernel itself tells of modules, processes
and free pages.
"""

from __future__ import annotations

import os

from pyinit.kernel.files import read_if_there
from pyinit.text import printable

PATH = "/run/initramfs/memdebug.txt"
# proc_meminfo(5): what is free, what could be, and what is not for programs.
_SUMMARY = (b"MemFree", b"MemAvailable", b"Cached", b"Slab")
_TABLES = (
    (2, "/proc/meminfo"),
    (3, "/proc/slabinfo"),
    (4, "/proc/modules"),
    (5, "/proc/buddyinfo"),
    (5, "/proc/vmstat"),
)


def summary(meminfo: bytes) -> str:
    """The figures of level 1 from /proc/meminfo, in KiB."""
    values = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(b":")
        values[name] = printable(rest.strip())
    return ", ".join(f"{name.decode()} {values[name]}" for name in _SUMMARY if name in values)


def write(stage: str, level: int, proc: str = "/proc", path: str = PATH) -> str:
    """Add what ``level`` asks for to the file; returns the summary. A full /run is no error."""
    meminfo = read_if_there(f"{proc}/meminfo")
    text = summary(meminfo)
    lines = [f"=== before {stage}: {text}".encode()]
    for least, source in _TABLES:
        if level >= least:
            lines += [
                f"--- {source}".encode(),
                read_if_there(f"{proc}{source.removeprefix('/proc')}").rstrip(),
            ]
    if level >= 4:
        lines += [b"--- resident memory of processes", *_processes(proc)]
    try:
        with open(path, "ab") as file:
            file.write(b"\n".join(lines) + b"\n")
    except OSError:
        pass
    return text


def _processes(proc: str) -> list[bytes]:
    """Those that have memory of their own, the largest first (proc_pid_status(5), VmRSS)."""
    found = []
    for pid in filter(str.isdigit, os.listdir(proc)):
        for line in read_if_there(f"{proc}/{pid}/status").splitlines():
            name, _, value = line.partition(b":")
            size = value.split()[:1]
            if name == b"VmRSS" and size and size[0].isdigit():
                command = printable(read_if_there(f"{proc}/{pid}/comm").strip())
                found.append((int(size[0]), f"{pid:>7} {command}"))
    return [f"{size:>8} kB {text}".encode() for size, text in sorted(found, reverse=True)]
