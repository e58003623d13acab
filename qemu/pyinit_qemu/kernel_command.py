"""``pyinit-qemu kernel``: fetch a kernel of Debian, and say where it is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyinit.text import printable
from pyinit_qemu.debian import SUITES
from pyinit_qemu.disks.tools import terminal_progress
from pyinit_qemu.kernels import FLAVOURS, KEYRING, FetchedKernel, KernelFetchError, fetch, fetched

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Add the command to a parser's."""
    command = commands.add_parser(
        "kernel",
        help="fetch a kernel of Debian into the cache",
        description="Fetch the newest kernel of a Debian suite into the cache, without installing it, and "
        "print where its files are. Signature and hashes are checked as apt does.",
    )
    command.add_argument("suite", nargs="?", metavar="SUITE", help=", ".join(SUITES))
    command.add_argument(
        "--flavour", default="amd64", help=f"such as {' or '.join(FLAVOURS)} (default: amd64)"
    )
    command.add_argument("--offline", action="store_true", help="take what was fetched last; ask nobody")
    command.add_argument("--mirror", metavar="URL", help="default: the one this system uses")
    trust = command.add_mutually_exclusive_group()
    trust.add_argument("--keyring", type=Path, default=KEYRING, metavar="FILE", help=f"default: {KEYRING}")
    trust.add_argument("--unsigned", action="store_true", help="do not check the archive's signature")
    command.add_argument("--list", action="store_true", help="only show what has been fetched")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.list:
        if options.suite is not None:
            print("pyinit-qemu: --list takes no suite: it shows all kernels", file=sys.stderr)
            return 2
        kernels = fetched()
    elif options.suite is None:
        print(f"pyinit-qemu: which suite? Known are {', '.join(SUITES)}; or --list", file=sys.stderr)
        return 2
    else:
        try:
            kernels = [
                fetch(
                    options.suite,
                    flavour=options.flavour,
                    offline=options.offline,
                    mirror=options.mirror,
                    keyring=None if options.unsigned else options.keyring,
                    progress=terminal_progress(),
                )
            ]
        except KernelFetchError as error:
            print(f"pyinit-qemu: {error}", file=sys.stderr)
            return 1
    for kernel in kernels:
        for note in kernel.notes:
            print(f"pyinit-qemu: note: {printable(note)}", file=sys.stderr)
    tables = [_table(kernel) for kernel in kernels]
    if options.json:
        print(json.dumps(tables if options.list else tables[0], indent=1))
    else:
        blocks = ("".join(f"{name:11} {value}\n" for name, value in table.items()) for table in tables)
        print("\n".join(blocks), end="")
    return 0


def _table(kernel: FetchedKernel) -> dict[str, str | None]:
    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return {
        "suite": kernel.suite,
        "flavour": kernel.flavour,
        "version": kernel.version,
        "release": kernel.release,
        "kernel": str(kernel.kernel),
        "modules": str(kernel.modules),
        "config": text(kernel.config),
        "system map": text(kernel.system_map),
    }
