"""``pyinit-qemu debian``: a Debian system in the cache, and where it is."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pyinit_qemu.debian import SUITES, ProvisionError, provision
from pyinit_qemu.disks.tools import ToolError, terminal_progress

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Add the command to a parser's."""
    command = commands.add_parser(
        "debian",
        help="install a Debian system into the cache",
        description="Print the directory of the Debian system that scripts/boot boots: a tree for "
        "pyinit-image build --sysroot, with a kernel in boot/. What is not in the cache is installed into it "
        "first, which takes some minutes. Nothing may write to the tree.",
    )
    command.add_argument("suite", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    try:
        print(provision(options.suite, progress=terminal_progress()).tree)
    except (ProvisionError, ToolError) as error:
        print(f"pyinit-qemu: {error}", file=sys.stderr)
        return 1
    return 0
