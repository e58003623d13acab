"""``pyinit-qemu image``: a kernel of Debian and another program's initramfs for it, to try things with."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyinit_qemu.debian import SUITES, ProvisionError
from pyinit_qemu.disks.tools import Progress, ToolError, silent
from pyinit_qemu.kernels import FLAVOURS, KernelFetchError, fetch
from pyinit_qemu.peers import PEERS, workshop

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MAKERS = {peer.name.replace(" ", "-"): peer for peer in PEERS}
"""The programs and their settings, by the name that the command takes."""

KERNEL, IMAGE = "vmlinuz", "initrd.img"
"""The names of the two files."""


def add(commands: Commands) -> None:
    """Add the command to a parser's."""
    command = commands.add_parser(
        "image",
        help="a kernel, and dracut's or initramfs-tools' image for it",
        description=f"Put a kernel of Debian and an image that another program makes for it into a folder, "
        f"as {KERNEL} and {IMAGE}. The program runs in a Debian of its own in the cache; nothing is "
        "installed here. The first time takes some minutes.",
    )
    command.add_argument("maker", choices=MAKERS, metavar="MAKER", help=", ".join(MAKERS))
    command.add_argument("--suite", choices=SUITES, default="bookworm", help="default: bookworm")
    command.add_argument("--flavour", default="amd64", help=f"of the kernel: {' or '.join(FLAVOURS)}, say")
    command.add_argument("--offline", action="store_true", help="take the kernel that was fetched last")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    progress: Progress = silent
    if sys.stderr.isatty():

        def progress(message: str) -> None:
            print(f"\r\033[K{message[:100]}", end="\r", file=sys.stderr, flush=True)

    for name in (KERNEL, IMAGE):
        # In the root directory of a Debian these are links to what it boots with.
        if os.path.lexists(options.output / name):
            print(f"pyinit-qemu: {options.output / name} exists: name another folder", file=sys.stderr)
            return 1
    try:
        kernel = fetch(options.suite, flavour=options.flavour, offline=options.offline, progress=progress)
        shop = workshop(options.suite, progress=progress)
        image = shop.image(MAKERS[options.maker], kernel, progress=progress)
        options.output.mkdir(parents=True, exist_ok=True)
        for source, name in ((kernel.kernel, KERNEL), (image, IMAGE)):
            shutil.copyfile(source, options.output / name)
            print(options.output / name)
    except (KernelFetchError, ProvisionError, ToolError, OSError) as error:
        print(f"pyinit-qemu: {error}", file=sys.stderr)
        return 1
    return 0
