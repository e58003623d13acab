"""Runs rescue shells on the terminals that are named, as PID 1 would; the last line says how it ended."""

from __future__ import annotations

import os
import sys

from pyinit.kernel.console import Console
from pyinit.kernel.process import Children
from pyinit.record import Record
from pyinit.rescue.sessions import run


def main() -> None:
    shell, *terminals = sys.argv[1:]
    record = Record("1", "6")
    environment = {"PS1": "here# ", "PYTHONPATH": os.environ["RELAY_PATH"]}
    console = Console(record)
    console._screens = [path for path in terminals if os.path.exists(path)]
    print(run(shell, terminals, environment, Children(record), console), flush=True)


main()
