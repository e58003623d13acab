"""The fault matrix: what can go wrong, what has to come of it, and the tests that show it.

A test says with the marker ``fault("K1", ...)`` which cases it shows. ``scripts/faults`` writes
docs/faults.md from the table below, from the markers, and from what the tests came to when they ran last.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
DOCUMENT = REPOSITORY / "docs" / "faults.md"
RESULTS = TESTS / "fault-results.json"
LAST_RUN = REPOSITORY / "build" / "fault-results.json"
MARKER = "fault"


class Case(NamedTuple):
    """One fault."""

    id: str
    fault: str
    expected: str
    untested: str = ""
    """Why no test shows it; a case that a test shows has no such reason."""


class Result(NamedTuple):
    """What a test came to when it was run last."""

    outcome: str
    """``passed``, ``failed`` or ``skipped``; of a test with parameters the worst."""
    commit: str
    date: str


_NOT_YET = "no test shows it yet"

SECTIONS: dict[str, tuple[Case, ...]] = {
    "Kernel command line": (
        Case("K1", "no `root=` at all", "`E-NOROOT`; the block devices that are there are listed"),
        Case(
            "K2",
            "`root=` with one wrong character",
            "`E-DEV` at the deadline; the nearest device, and how it differs",
        ),
        Case(
            "K3",
            "quotes, blanks in a label, `--`, a word given twice",
            "read as the kernel reads them; the last one counts",
        ),
        Case("K4", "bytes 0x80 to 0xFF; a line of 2,047 bytes", "boots"),
        Case(
            "K5",
            "words that would change the interpreter or the loader (`PYTHONHOME=`, `LD_PRELOAD=`...)",
            "boots; the real init gets none of them",
        ),
        Case(
            "K6",
            "numbers that are none, negative or huge",
            "the default counts, and a warning says so",
        ),
        Case(
            "K7",
            "`init=` that is not there, a directory, or not a whole path",
            "`E-INIT` before any mount is moved; the shell works",
        ),
    ),
    "Devices": (
        Case(
            "D1",
            "the root's disk is plugged in 5, 40 or 170 s late",
            "booted as soon as udev has processed it; told every 10 s until then",
        ),
        Case(
            "D2",
            "the root's disk never comes",
            "`E-DEV` at the deadline; devices without a driver and the module that would claim them",
        ),
        Case(
            "D3",
            "the disk comes, goes, and comes back under another name",
            "booted from the new one; the old node is not used",
        ),
        Case("D4", "the disk goes between the mount and the switch", "`E-IO`, then the policy"),
        Case("D5", "two devices with one UUID, one LABEL, one PARTUUID", "`E-AMBIG` names both"),
        Case("D6", "a copy of the disk arrives after the root is mounted", "booted from the first"),
        Case("D7", "a storm of events: two hundred disks", "the root is found"),
        Case(
            "D8",
            "the driver is not in the image, is for another kernel, or may not be loaded",
            "`E-DEV` names the module and what the kernel said to it",
        ),
        Case(
            "D9",
            "a disk stops answering while its driver is loaded, or while a volume on it is opened",
            "`E-HANG` names the disk and what waits for it; the boot goes on when it answers",
        ),
    ),
    "File systems": (
        Case("F1", "a journal that was not replayed (power cut)", "replayed by the kernel; booted"),
        Case("F2", "fsck ends with any status from 0 to 255", "each status means what fsck(8) says"),
        Case("F3", "fsck is killed, or takes for ever", "never ended in silence; said after a while"),
        Case(
            "F4",
            "damage that fsck cannot correct by itself",
            "not mounted for writing; the command that corrects it is named",
        ),
        Case(
            "F5",
            "unknown type, unknown option, unreadable superblock",
            "`E-MOUNT` with the kernel's own words and the type that was found",
        ),
        Case(
            "F6",
            "a root without `/dev` or `/proc`, an empty one, a medium that cannot be written",
            "`E-ROOTFS` names what is missing; read-only media boot",
        ),
        Case("F7", "/usr is on a file system of its own that is not there", "explained, then the policy"),
    ),
    "Volume groups and arrays": (
        Case("S1", "a mirror lacks one of its disks", "started after 30 s, and that is said"),
        Case(
            "S2",
            "members of an array are out of date",
            "never used by force: the newest alone if that is enough, else the boot says which are there",
        ),
        Case(
            "S3",
            "a btrfs lacks one of its devices",
            "explained; with `rootflags=degraded` mounted after 30 s, and that is said",
        ),
        Case(
            "S4",
            "a volume group lacks one of its disks",
            "the missing disk is named by its UUID; nothing incomplete is activated",
        ),
    ),
    "Encrypted volumes": (
        Case(
            "S5",
            "a wrong passphrase three times, Ctrl-D, no key file",
            "`E-UNLOCK`; never a shell that the policy does not allow",
        ),
        Case(
            "S6",
            "a LUKS header is damaged: the first copy, or both",
            "the second copy is used and that is said; `E-LUKS`",
        ),
        Case(
            "S8",
            "a key derivation needs more memory than there is",
            "`E-OOM-KDF` with the figures, before anybody types",
        ),
        Case(
            "H5",
            "a LUKS header was changed to a cipher that encrypts nothing",
            "`E-LUKS-CIPHER`, before anybody types",
        ),
    ),
    "The switch to the root": (
        Case(
            "R1", "further mounts, tmpfs and bind mounts in the initramfs", "none of their files is deleted"
        ),
        Case("R2", "links in the new root that lead out of it", "resolved inside the root, or refused"),
        Case(
            "R3",
            "open files, processes left over, udevd running",
            "all ended and closed; the real init has 0, 1 and 2",
        ),
        Case("R4", "a file of the initramfs that cannot be deleted", "a warning; booted"),
        Case(
            "R5",
            "init is a script whose interpreter is missing",
            "`E-INIT` before anything is moved",
        ),
        Case(
            "R6",
            "the kernel refuses to execute init after the switch",
            "said on the console, then the machine ends as `panic=` asks",
        ),
    ),
    "Process 1": (
        Case("P1", "5,000 orphans end", "none is left at the switch; no status of ours is lost"),
        Case("P2", "every signal in every stage", "survived"),
        Case("P3", "Ctrl-Alt-Del", "disks are written, then the machine restarts"),
        Case(
            "P4",
            "any exception anywhere, no memory, no stack",
            "`E-INTERNAL` with a traceback, or `E-MEM`, then the policy; the kernel does not panic",
        ),
        Case("P5", "udevd is killed, stopped, or absent", "started again; `E-UDEV` when that does not help"),
        Case("P6", "no console, a closed one, one that fails", "boots in silence"),
        Case("P7", "the rescue shell ends with any status", "the stage is tried again"),
        Case("P8", "the clock jumps from 1970 to 2038", "deadlines hold"),
    ),
    "Resources": (
        Case("X1", "memory from 96 to 512 MiB", "each size boots, or says why not; none hangs"),
        Case("X2", "/run or the root of the initramfs is full", "boots; the log is cut"),
        Case("X3", "no process can be started", "tried again, then explained"),
        Case(
            "X4",
            "the kernel kills a child because memory ran out",
            "the program is named and tried again",
        ),
        Case("X5", "a watchdog, and a child that hangs", "the watchdog resets the machine"),
    ),
    "Hostile input": (
        Case(
            "H1",
            "labels and serials with escape sequences, control characters, right-to-left marks",
            "shown escaped",
        ),
        Case(
            "H2",
            "a second disk with a hundred damaged superblocks",
            "never mounted; the root boots",
        ),
        Case("H3", "device events that did not come from the kernel or udevd", "dropped"),
    ),
    "Access to the rescue shell": (
        Case("A1", "no shell is allowed, and every key is tried", "no prompt; the machine ends"),
        Case(
            "A2",
            "a password is asked for: none, wrong ones, a mebibyte, Ctrl-C, Ctrl-Z, Ctrl-\\",
            "three tries with growing delay, then the machine ends",
        ),
        Case("A3", "the command line asks for more than the image allows", "refused, and logged"),
        Case("A4", "the interpreter or the loader is gone", "the machine ends; no `/bin/sh` opens"),
        Case(
            "A5",
            "the shell opens after a volume was unlocked",
            "the volume is closed and the keys are gone before it opens",
        ),
        Case("A6", "a second console", "the same rule there"),
    ),
    "Weaknesses that initramfs programs had": (
        Case(
            "row-1",
            "a shell after many empty passphrases (CVE-2016-4484)",
            "giving up on unlocking never ends in a shell that the policy does not allow",
        ),
        Case(
            "row-2",
            "a shell provoked on purpose changes the image",
            "an image can be sealed without any shell",
        ),
        Case(
            "row-3",
            "one word opens what another closed",
            "the command line only tightens the sealed policy",
        ),
        Case("row-4", "an emergency password that fails open", "a damaged hash denies"),
        Case(
            "row-6",
            "LUKS2 headers are not authenticated (CVE-2025-59054)",
            "every copy of the header is looked at before the volume is opened",
        ),
        Case(
            "row-7",
            "keys stay in memory when the boot fails after the unlock (CVE-2025-4382)",
            "volumes are closed before any shell",
        ),
        Case(
            "row-8",
            "an image with keys that anybody can read (CVE-2012-4453, CVE-2016-8637)",
            "images have mode 0600 from the first byte",
        ),
        Case(
            "row-9",
            "device nodes with loose modes (CVE-2010-4176)",
            "every node in /dev has an expected mode at the switch",
        ),
        Case(
            "row-10",
            "words of the command line in the environment of process 1",
            "none reaches the interpreter or a child",
        ),
        Case("row-11", "bytes of the command line that are no text", "read as bytes; no exception"),
        Case("row-12", "words that open a shell", "ignored on a sealed image"),
        Case(
            "row-14",
            "the kernel looks for another init when /init cannot be executed",
            "an image has no `/bin/sh` or `/sbin/init` where the kernel looks",
        ),
        Case(
            "row-17",
            "the switch deletes the real root",
            "nothing outside the initramfs is deleted; init is checked before",
        ),
        Case("row-18", "links in the new root lead mounts elsewhere", "mounts go to directories of the root"),
        Case("row-19", "two devices with one UUID, the last one wins", "refused, both named"),
        Case("row-20", "device events from user space (CVE-2009-1185)", "dropped"),
        Case(
            "row-21",
            "udev rules of the machine run programs in the image",
            "an allow list of rules; missing programs are told",
        ),
        Case(
            "row-22",
            "metadata of foreign disks reaches kernel parsers",
            "nothing but what was asked for is mounted or assembled",
        ),
        Case("row-23", "escape sequences from disks on the console", "shown escaped"),
        Case(
            "row-24",
            "secrets in memory or in /run after the boot went on or failed",
            "keys and passphrases are overwritten before the switch and before any shell",
        ),
    ),
}

CASES: Mapping[str, Case] = {case.id: case for cases in SECTIONS.values() for case in cases}


def marked(folder: Path = TESTS) -> dict[str, list[str]]:
    """The cases that tests are marked with: test (``tests/boot/test_late.py::test_x``) to identifiers.

    The files are read, not imported: the marker must be written out, ``@pytest.mark.fault("K1")``, above a
    test, in the ``marks`` of a parameter or in ``pytestmark``.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        module = ast.parse(path.read_bytes())
        general = [name for node in module.body if _is_pytestmark(node) for name in _identifiers(node)]
        for function in module.body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                own = [name for decorator in function.decorator_list for name in _identifiers(decorator)]
                if names := [*general, *own]:
                    test = f"{path.relative_to(folder.parent).as_posix()}::{function.name}"
                    found[test] = list(dict.fromkeys(names))
    return found


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
    )


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{MARKER}":
            for argument in node.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise ValueError(f"{ast.unparse(node)}: identifiers are written out as strings")
                yield argument.value


def shown(marks: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The other way round: the tests of each case."""
    return {case: [test for test, names in marks.items() if case in names] for case in CASES}


def read_results(path: Path) -> dict[str, Result]:
    """What :func:`write_results` wrote; nothing when there is no such file."""
    if not path.exists():
        return {}
    return {test: Result(*values) for test, values in json.loads(path.read_text()).items()}


#: What may come of a test, the worst last.
OUTCOMES = ("passed", "skipped", "failed")


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """Keep results, one line a test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(test)}: {json.dumps(list(result))}" for test, result in sorted(results.items()))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def worst(outcomes: Iterable[str]) -> str:
    """Of the outcomes of a test's parameters the one that counts."""
    return max(outcomes, key=OUTCOMES.index)


def document(marks: Mapping[str, Iterable[str]], results: Mapping[str, Result]) -> str:
    """docs/faults.md."""
    tests = shown(marks)
    tested = sum(bool(names) for names in tests.values())
    last = [results.get(test) for test in sorted({test for names in tests.values() for test in names})]
    came = {word: sum(result is not None and result.outcome == word for result in last) for word in OUTCOMES}
    parts = [
        "# The fault matrix",
        "",
        "What can go wrong, what has to come of it, the tests that show it, and what each came to when it",
        "was run last, at which commit. In every case no byte of a disk changes that should not. Written by",
        "`scripts/faults` from the table in [fault_matrix.py](../tests/fault_matrix.py), from the marker",
        '`fault("K1")` of the tests, and from the results that `scripts/test` left.',
        "",
        f"{tested} of {len(CASES)} cases are shown by a test. Of these {len(last)} tests",
        f"{came['passed']} passed when they were run last, {came['failed']} failed, {came['skipped']} were",
        f"skipped, {last.count(None)} were not run yet.",
        "Random combinations of faults, moments, disks and kernels: `scripts/soak`, [soak.md](soak.md).",
    ]
    for title, cases in SECTIONS.items():
        parts += ["", f"## {title}", "", "| | fault | expected | test | result |", "|---|---|---|---|---|"]
        for case in cases:
            names = tests[case.id]
            links = "<br>".join(_link(test) for test in names) or case.untested
            outcomes = "<br>".join(_outcome(results.get(test)) for test in names)
            parts.append(f"| {case.id} | {case.fault} | {case.expected} | {links} | {outcomes} |")
    return "\n".join(parts) + "\n"


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})"


def _outcome(result: Result | None) -> str:
    return "not run yet" if result is None else f"{result.outcome} {result.date} {result.commit}"
