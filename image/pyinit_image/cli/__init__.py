"""The command ``pyinit-image``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyinit import VERSION
from pyinit.errors import BootError
from pyinit.text import printable

from .. import archive, configuration
from ..errors import BuildError
from . import looking, making, manual, verifying

EPILOG = """\
examples:
  pyinit-image build -o /boot/initrd.img-pyinit
  pyinit-image build -o small.img --mode list --module ext4 --module virtio_blk --module virtio_pci
  pyinit-image ls --by-reason small.img
  pyinit-image explain small.img libcrypto.so.3
  pyinit-image verify --replay small.img

exit status: 0 done, 1 it could not be done, 2 the command was not understood; diff and verify: see there
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BuildError as error:
        print(f"pyinit-image: {error}", file=sys.stderr)
        if error.hint:
            print(f"pyinit-image: {error.hint}", file=sys.stderr)
        return 1
    except BootError as error:
        print(f"pyinit-image: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, a pager for example, has seen enough. Nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        name = printable(str(error.filename)) + ": " if error.filename else ""
        print(f"pyinit-image: {name}{error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyinit-image: interrupted; no image was written", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, from which the manual page and the completion are made, too."""
    top = argparse.ArgumentParser(
        prog="pyinit-image",
        description="Build initramfs images with pyinit as init, and look into images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pyinit-image {VERSION}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    command = commands.add_parser(
        "build",
        help="build an image",
        description="Build an image for a kernel of this system, or of another one below --sysroot.",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="the image; the old one: IMAGE.old. With --format list a new directory",
    )
    configuration.add_arguments(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=making.build_image)

    command = commands.add_parser("config", help="print the effective configuration and where it is from")
    configuration.add_arguments(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=making.print_configuration)

    command = commands.add_parser(
        "devices",
        help="record what an image for this machine must know of it",
        description="Print the devices of this machine as JSON, for --mode host --devices and verify "
        "--devices on another one. No serial numbers and no addresses are in it.",
    )
    command.set_defaults(run=making.print_devices)

    command = commands.add_parser(
        "hash-password",
        help="make the hash of a password for the rescue shell",
        description="Ask for a password, or read it from standard input, and print its hash (yescrypt), for "
        "build --rescue-password-file. Take another one than for any login: who has the image has the hash.",
    )
    command.set_defaults(run=making.hash_password)

    command = _reader(commands, "ls", "list an image")
    command.add_argument("-l", "--long", action="store_true", help="with modes, sizes and targets of links")
    command.add_argument(
        "--by-reason",
        action="store_true",
        help="how much of the image is there for what; packed sizes are estimates",
    )
    command.add_argument("--json", action="store_true", help="as JSON, with reasons")
    command.set_defaults(run=looking.ls)

    command = _reader(commands, "cat", "print a file of an image")
    command.add_argument("path", metavar="PATH")
    command.set_defaults(run=looking.cat)

    command = _reader(commands, "explain", "why something is in an image, or is not")
    command.add_argument("what", metavar="PATH|MODULE|NAME", help="a path, a kernel module or a file name")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=looking.explain)

    command = commands.add_parser(
        "diff",
        help="what changed between two images, and why",
        epilog="exit status: 0 the same content, 1 there are differences, 2 an image could not be read",
    )
    command.add_argument("old", type=Path, metavar="OLD")
    command.add_argument("new", type=Path, metavar="NEW")
    command.add_argument("--json", action="store_true", help="as JSON")
    _limit(command)
    command.set_defaults(run=looking.compare)

    command = _reader(commands, "extract", "unpack an image into a new directory")
    command.add_argument("directory", type=Path, metavar="DIR")
    command.set_defaults(run=looking.extract)

    command = _reader(commands, "verify", "check whether an image can boot")
    verifying.add_arguments(command)
    command.set_defaults(run=verifying.verify)

    command = commands.add_parser("man", help="print the manual page")
    command.set_defaults(run=lambda options: manual.page(parser()))

    command = commands.add_parser("completion", help="print the completion for a shell")
    command.add_argument("shell", choices=manual.SHELLS)
    command.set_defaults(run=lambda options: manual.completion(parser(), options.shell))
    return top


def _reader(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("image", type=Path, metavar="IMAGE")
    _limit(command)
    return command


def _limit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-size",
        type=int,
        default=archive.LIMIT >> 20,
        metavar="MIB",
        help="refuse an image that unpacks to more (default: %(default)s)",
    )
