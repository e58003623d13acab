"""``pyinit-qemu guest``: print what an init of one's own reports with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SOURCES = {
    "sh": Path(__file__).with_name("guest") / "report.sh",
    "c": Path(__file__).with_name("guest") / "report.h",
    "c-init": Path(__file__).with_name("guest") / "witness.c",
}
"""What a guest reports with on the result channel: functions for a POSIX shell, a C header, a whole init."""


def add(commands: Commands) -> None:
    """Add the command to a parser's."""
    command = commands.add_parser(
        "guest",
        help="print what an init of your own reports with",
        description="Print the functions with which a shell script, or a C program, reports on the result "
        "channel: put them into your image as a file, or into your init. How to use them is in their first "
        "lines.",
    )
    command.add_argument(
        "language",
        choices=SOURCES,
        help="sh: for any POSIX shell; c: a header, report.h; c-init: an init for a test root, which tells "
        "what it was handed",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    sys.stdout.write(SOURCES[options.language].read_text())
    return 0
