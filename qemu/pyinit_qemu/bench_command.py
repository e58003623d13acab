"""``pyinit-qemu bench``: boot several images with one kernel and disk, and compare them."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyinit import VERSION
from pyinit.text import printable
from pyinit_image.errors import BuildError
from pyinit_qemu.accel import decide
from pyinit_qemu.bench import (
    TOLERANCE,
    BenchError,
    Headers,
    Result,
    Rows,
    as_json,
    bench,
    boot_table,
    markdown,
    sources,
)
from pyinit_qemu.chart import svg
from pyinit_qemu.debian import SUITES, DebianRoot, ProvisionError, provision
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.tools import Progress, ToolError, silent, version
from pyinit_qemu.icount import instant_disks
from pyinit_qemu.images import initramfs
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.peers import MODULES, PEERS, Workshop, installed_versions, workshop
from pyinit_qemu.smallroot import LABEL, small_image
from pyinit_qemu.spec import MIB, Disk, VmSpec
from pyinit_qemu.verdict import MachineError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

OURS = {"pyinit list": "list", "pyinit generic": "generic"}
"""Our images, and the builder's mode for each."""

UUID = "6f0a3b5e-5d0c-4c53-9c0e-2f7a6d1b9e42"
"""Of the disk that is booted if no other is given."""

# Nobody looks for file system damage: some would, some would not.
WORDS = "ro fsck.mode=skip"
ENOUGH = 512
"""MiB that a machine has."""

_PEERS = {peer.name: peer for peer in PEERS}


def slug(name: str) -> str:
    """The name of one of the known images as a word of the command line."""
    return name.replace(" ", "-")


KNOWN = {slug(name): name for name in (*OURS, *_PEERS)}


def known(word: str) -> str:
    """The image that a word means: its name, or the beginning of just one. ``ValueError`` names choices."""
    found = [word] if word in KNOWN else [name for name in KNOWN if name.startswith(word) and word]
    if len(found) != 1:
        choices = ", ".join(found or KNOWN)
        raise ValueError(f"{word!r} {'may be each of' if found else 'is none of'} {choices}")
    return KNOWN[found[0]]


def named(text: str) -> tuple[str, Path]:
    """Read ``NAME=FILE``; a FILE alone is its own name. ``ValueError`` when there is no such file."""
    name, equals, file = text.partition("=")
    path = Path(file if equals else text)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no file; an image is given as NAME=FILE")
    return (name or path.name) if equals else path.name, path


def our_disk(debian: DebianRoot, progress: Progress = silent) -> Path:
    """The small root, whose init is the witness, as ext4 with the label and UUID that the words ask for."""
    return small_image(debian, lambda tree: Ext4(tree, label=LABEL, uuid=UUID)).build(progress=progress)


def image_of(
    name: str, debian: DebianRoot, shop: Callable[[], Workshop], progress: Progress = silent
) -> Path:
    """One of the known images; the Debian with the other programs is asked for when it is needed."""
    if mode := OURS.get(name):
        modules = MODULES if mode == "list" else ()
        return initramfs(debian, mode=mode, modules=modules, progress=progress)
    return shop().image(_PEERS[name], debian, progress=progress)


def words_for(name: str, root: bool = True) -> str:
    """Kernel command line words for one of the known images, or for any other."""
    peer = _PEERS.get(name)
    words = [WORDS, f"root=UUID={UUID}" if root else "", peer.words if peer else ""]
    return " ".join(filter(None, words))


def add(
    commands: Commands,
    file: Callable[[str], Path],
    disk: Callable[[str], Disk],
    pattern: Callable[[str], str],
) -> None:
    """Add the command to a parser's; the last three read a file, a disk and a regular expression."""
    command = commands.add_parser(
        "bench",
        help="compare images: how long they boot, how large they are",
        description="Boot several images with one kernel and one disk, in a machine whose clock counts "
        "instructions, and compare how long they take, in seconds of the guest, and how large they are. "
        "Without --image and --peer all that are known are compared. Nothing else should run meanwhile.",
        epilog=f"Known images: {', '.join(KNOWN)}. They are built on the spot, those of other programs in a "
        "Debian in the cache; the first time takes some minutes.",
    )
    command.add_argument(
        "--image",
        action="append",
        default=[],
        type=_checked(named),
        metavar="NAME=FILE",
        help="an image (repeatable)",
    )
    command.add_argument(
        "--peer", action="append", default=[], type=_checked(known), metavar="P", help="a known image"
    )
    command.add_argument("--suite", choices=SUITES, default="bookworm", help="Debian (default: bookworm)")
    command.add_argument("--kernel", type=file, metavar="K", help="default: that Debian's")
    command.add_argument(
        "--disk",
        type=disk,
        metavar="FILE[,interface=...]",
        help="with the root; default: a small one of ours",
    )
    command.add_argument(
        "--append",
        default="",
        metavar="WORDS",
        help="kernel command line words; with --disk, root= must be one of them",
    )
    command.add_argument(
        "--until",
        type=pattern,
        metavar="PATTERN",
        help="the real init was executed when a line of the kernel's log on the console matches this "
        "regular expression; default: when the init of our disk says so",
    )
    command.add_argument("--boots", type=int, default=3, metavar="N", help="of each image (default: 3)")
    command.add_argument("--memory", action="store_true", help="find the smallest memory, too (slow)")
    command.add_argument("--ram", type=int, default=ENOUGH, metavar="MIB", help=f"default: {ENOUGH}")
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    command.add_argument("--svg", type=Path, metavar="FILE", help="draw a chart there, too")
    command.set_defaults(run=lambda options: run(options, command))


def run(options: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    """Run the command; return the exit status."""
    if options.boots < 1 or options.ram < 1:
        command.error("--boots and --ram: at least 1")
    if options.kernel is not None and (options.peer or not options.image):
        command.error(
            "--kernel is for images that are given with --image: a known image holds the modules "
            "of the Debian kernel that --suite names"
        )
    if options.disk is not None and "root=" not in options.append:
        command.error("--disk needs the word root=... in --append: nothing else says where its root is")
    names = [name for name, _ in options.image] + options.peer
    if twice := [name for name in names if names.count(name) > 1]:
        command.error(f"two images are called {twice[0]!r}")
    if not names:
        options.peer = list(KNOWN.values())
    try:
        return _run(options)
    except BuildError as error:
        print(f"pyinit-qemu: {error}\n{error.hint}".strip(), file=sys.stderr)
    except (ProvisionError, ToolError, MachineError, BenchError, OSError, ValueError) as error:
        print(f"pyinit-qemu: {error}", file=sys.stderr)
    return 1


@dataclass
class _Lazy:
    """What takes minutes and is not always needed."""

    suite: str
    progress: Progress
    _debian: DebianRoot | None = None
    _shop: Workshop | None = None
    used: list[str] = field(default_factory=list)

    def debian(self) -> DebianRoot:
        if self._debian is None:
            self._debian = provision(self.suite, progress=self.progress)  # type: ignore[arg-type]
        return self._debian

    def shop(self) -> Workshop:
        if self._shop is None:
            self._shop = workshop(self.suite, progress=self.progress)  # type: ignore[arg-type]
        return self._shop

    def facts(self) -> dict[str, str]:
        return facts(self._debian, self._shop)


def _run(options: argparse.Namespace) -> int:
    progress = terminal_progress()
    lazy = _Lazy(options.suite, progress)
    own = options.disk is None
    images = dict(options.image)
    for name in options.peer:
        images[name] = image_of(name, lazy.debian(), lazy.shop, progress)
    kernel = lazy.debian().kernel if options.kernel is None else options.kernel
    disk = Disk(our_disk(lazy.debian(), progress)) if own else options.disk
    scale = decide("tcg", kernel).scale
    results = []
    for name, image in images.items():
        words = [words_for(name, root=own), options.append]
        spec = VmSpec(
            kernel=unpacked(kernel),
            initrd=image,
            append=" ".join(filter(None, words)),
            disks=(disk,),
            memory=options.ram * MIB,
            icount=True,
            # What is written to a serial port takes guest time.
            report=False,
        )
        results.append(
            bench(
                name,
                spec,
                boots=options.boots,
                scale=scale,
                memory=options.memory,
                until=options.until,
                progress=progress,
            )
        )
    progress("")
    show(*boot_table(results))
    print()
    for line in remarks(results):
        print(f"- {line}")
    known_facts = {**lazy.facts(), "kernel": printable(str(kernel))}
    print("\n" + told(known_facts))
    if options.json:
        write_json(options.json, known_facts, {"images": as_json(results)})
    if options.svg:
        options.svg.write_text(svg(results, f"Boots with {kernel.name}", told(known_facts)))
    return say_failures(results)


def remarks(results: Sequence[Result], reason: str | None = None) -> list[str]:
    """What must be known to read the table.

    ``reason``: why disks are not instant on this host (:func:`pyinit_qemu.icount.instant_disks`).
    """
    lines = [f"{printable(result.name)}: {doubt}" for result in results for doubt in result.doubts]
    if not lines and any(len(result.boots) > 1 for result in results):
        lines.append(f"the two shortest boots of each image agree to {TOLERANCE:.0%} (spread)")
    reason = instant_disks() if reason is None else reason
    if reason:
        lines.append(
            f"disks take the host's time here, so the guests polled (idle=poll): {printable(reason)}"
        )
    return lines + sources(results)


def say_failures(results: Sequence[Result]) -> int:
    """Print why images did not boot; return the exit status."""
    failed = [result for result in results if result.failure]
    for result in failed:
        print(f"\n{printable(result.name)} did not boot: {result.failure}", file=sys.stderr)
    return 1 if failed else 0


def facts(debian: DebianRoot | None, shop: Workshop | None, commit: str = "") -> dict[str, str]:
    """When this was, and what was measured with what."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "pyinit": f"{VERSION} {commit}".strip(),
        "QEMU": re.sub(r"^.*version ([0-9.]+).*$", r"\1", version("qemu-system-x86_64")),
    }
    if debian is not None:
        kernel = f"linux-image-{debian.release}"
        found |= installed_versions(debian.tree, (kernel, "python3", "udev"))
    if shop is not None:
        names = ("initramfs-tools", "dracut-core", "tiny-initramfs-core", "busybox", "zstd")
        found |= shop.versions(names)
    return found


def told(known_facts: Mapping[str, str]) -> str:
    """The facts as a line."""
    return "; ".join(f"{name} {value}" for name, value in known_facts.items())


def write_json(path: Path, known_facts: Mapping[str, str], figures: Mapping[str, object]) -> None:
    """Write facts and figures as one JSON object."""
    path.write_text(json.dumps({**known_facts, **figures}, indent=1, ensure_ascii=False) + "\n")


def show(headers: Headers, rows: Rows) -> None:
    """Print a table: for a terminal, or as Markdown."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass  # it is in the extra packages of `pip install pyinit-initramfs[qemu]`
        else:
            table = Table()
            for number, header in enumerate(headers):
                table.add_column(header, justify="right" if number else "left")
            for row in rows:
                table.add_row(*map(Text, row))
            Console().print(table)
            return
    print(markdown(headers, rows))


def terminal_progress() -> Progress:
    """Say on standard error what is being done: one line that is written over; an empty text removes it."""
    if not sys.stderr.isatty():
        return silent
    return lambda message: print(f"\r\033[K{message[:100]}", end="\r", file=sys.stderr, flush=True)


def _checked(read: Callable[[str], object]) -> Callable[[str], object]:
    """Make a reader whose ValueError argparse shows as it is."""

    def checked(text: str) -> object:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked
