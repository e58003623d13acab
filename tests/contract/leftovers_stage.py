"""Runs as PID 1 of new namespaces: starts processes of every kind and ends them. argv[1]: where to tell."""

from __future__ import annotations

import json
import os
import signal
import sys

from pyinit.kernel.leftovers import end_leftovers
from pyinit.kernel.syscalls import MS, mount

SLEEP = "/usr/bin/sleep"


def start(name: str, *, ignore: int | None = None, stop: bool = False, orphan: bool = False) -> int:
    """Start a sleeping process called ``name`` and wait until it is what it shall be."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        if orphan and os.fork():
            os._exit(0)
        if ignore is not None:
            signal.signal(ignore, signal.SIG_IGN)
        os.write(writing, b"%d" % os.getpid())
        os.set_inheritable(writing, False)
        os.execv(SLEEP, [name, "1000"])
    os.close(writing)
    if orphan:
        os.waitpid(pid, 0)
    pid = int(os.read(reading, 20))
    os.read(reading, 1)  # Ends when exec has closed the other side.
    os.close(reading)
    if stop:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    return pid


def main() -> None:
    directory = json.loads(sys.argv[1])
    mount(None, "/", None, MS.REC | MS.PRIVATE)
    mount("proc", "/proc", "proc")
    facts: dict[str, object] = {"nothing": end_leftovers(5), "imported": "psutil" in sys.modules}
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    facts["zombie"] = end_leftovers(5)
    facts["pids"] = {
        "plain": start("plain\x1b"),
        "stopped": start("stopped", stop=True),
        "orphan": start("orphan", orphan=True),
        "@daemon": start("@daemon"),
    }
    facts["willing"] = end_leftovers(60)
    start("stubborn", ignore=signal.SIGTERM)
    facts["stubborn"] = end_leftovers(0.1)
    facts["alive"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    with open(f"{directory}/facts.json", "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main()
