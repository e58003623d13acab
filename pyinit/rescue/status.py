"""Where the boot stands, in a few lines for the person in the rescue shell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyinit.kernel import memory, mountinfo
from pyinit.kernel.files import read_if_there
from pyinit.rescue.shell import STAGE_VARIABLE
from pyinit.rescue.working import work
from pyinit.root.mount import SYSROOT
from pyinit.text import printable


class Facts(NamedTuple):
    """What :func:`status` is told from; all but ``record`` printable."""

    record: dict[str, Any]
    """The boot record, decoded."""
    stage: str
    """The stage that the shell was opened for; empty when that is not known."""
    failure: str
    """The first line of the last explanation; empty when a person asked for the shell."""
    overrides: tuple[str, ...]
    """The lines that ``pyinit set`` left."""
    root: str
    """What is mounted on /sysroot; empty when nothing is."""
    processes: tuple[str, ...]
    """Other processes than the shell's own."""
    memory: tuple[int, int]
    """Available and total memory in bytes."""
    work: tuple[str, ...] = ()
    """Who is at work, and since when."""


def status(facts: Facts) -> list[str]:
    """Tell it, one line a fact."""
    record = facts.record
    done = dict.fromkeys(stage["name"] for stage in record["stages"] if stage["outcome"] == "done")
    failed = [module for module in record["modules"] if module["result"] not in ("loaded", "present")]
    loaded = sum(module["result"] == "loaded" for module in record["modules"])
    modules = f"{loaded} loaded"
    if failed:
        modules += ", refused: " + ", ".join(f"{module['name']} ({module['result']})" for module in failed)
    last = record["stages"][-1] if record["stages"] else None
    pressed = not facts.failure and last is not None and last["outcome"] == "interrupted"
    where = "in" if facts.failure or pressed else "before"
    why = "a key was pressed while it waited" if pressed else "rd.break asks for it"
    rows = [
        ("pyinit", f"{record['version']}, Linux {record['kernel']}"),
        ("stopped", f"{where} {facts.stage or 'an unknown stage'}"),
        ("because", facts.failure or why),
        ("asked for", record["cmdline"] or "nothing: the command line is empty"),
        *(("set here", line) for line in facts.overrides),
        ("root", facts.root or f"nothing is mounted on {SYSROOT}"),
        ("done", ", ".join(done) or "nothing yet"),
        *(("waited", _want(want)) for want in record["wants"][-1:]),
        ("modules", modules),
        ("processes", ", ".join(facts.processes) or "none but this shell"),
        *(("at work", line) for line in facts.work),
        ("memory", f"{facts.memory[0] >> 20} of {facts.memory[1] >> 20} MiB available"),
    ]
    return [f"{name + ':':<11}{text}" for name, text in rows]


def gather(record: dict[str, Any], failure: Sequence[str], overrides: bytes) -> Facts:
    """Look at this machine."""
    return Facts(
        record,
        printable(os.environ.get(STAGE_VARIABLE, "")),
        failure[0] if failure else "",
        tuple(printable(line) for line in overrides.splitlines()),
        _mounted(),
        tuple(_processes()),
        (memory.available(), memory.total()),
        tuple(work(record)),
    )


def _want(want: dict[str, Any]) -> str:
    text = f"for {want['name']}: {want['spec']}"
    if not want["ended"]:
        return text
    return f"{text}, {(want['ended'] - want['asked']) / 1e6:.1f} s: {want['outcome']}"


def _mounted() -> str:
    found = mountinfo.topmost(mountinfo.read(), SYSROOT)
    if found is None:
        return ""
    return printable(f"{found.source} on {SYSROOT} ({found.fstype}, {','.join(found.options)})")


def _processes() -> list[str]:
    """Processes that have a program, but PID 1, those of this shell, and what holds shells' terminals."""
    found = []
    session = os.getsid(0)
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        words = read_if_there(f"/proc/{name}/cmdline")
        if not words or b"pyinit.rescue.relay" in words:
            continue
        try:
            if os.getsid(int(name)) == session:
                continue
        except OSError:
            continue
        found.append(f"{printable(read_if_there(f'/proc/{name}/comm').strip())} ({name})")
    return found
