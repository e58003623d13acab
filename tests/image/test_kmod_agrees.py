"""What is worked out at build time is what kmod works out at run time."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinit.config.sealed import EMPTY_INDEX, Aliases
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.record import Record
from pyinit_image import kmods
from pyinit_image.sysroot import Sysroot
from pyinit_qemu.debian import DebianRoot

RELEASE = "6.1.0-test"

#: For each module the numbers, counted back from its own, of those that it needs.
GRAPHS = st.lists(st.frozensets(st.integers(1, 6), max_size=3), min_size=1, max_size=12)


def closure(needs: list[list[int]], number: int) -> list[int]:
    """All that ``number`` needs, in loading order."""
    order: list[int] = []
    for need in needs[number]:
        order += [item for item in (*closure(needs, need), need) if item not in order]
    return order


def shown(tree: Path, name: str) -> list[str]:
    """The modules that modprobe would load."""
    done = subprocess.run(
        ["/usr/sbin/modprobe", "-d", tree, "-S", RELEASE, "-C", tree / "none", "--show-depends", name],
        capture_output=True,
        text=True,
        check=True,
    )
    return [kmods.module_name(line.split()[1]) for line in done.stdout.splitlines()]


@settings(max_examples=25, deadline=None)
@given(GRAPHS, st.data())
def test_modprobe_loads_the_same_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, graph: list[frozenset[int]], data: st.DataObject
) -> None:
    needs = [sorted({at - back for back in row if back <= at}) for at, row in enumerate(graph)]
    tree = tmp_path_factory.mktemp("tree")
    folder = tree / "lib/modules" / RELEASE
    (folder / "kernel").mkdir(parents=True)
    (tree / "none").mkdir()
    names = [f"m{at}-x" for at in range(len(needs))]
    lines = []
    for at, name in enumerate(names):
        (folder / "kernel" / f"{name}.ko").touch()
        # depmod writes what a module needs in the order in which it would be unloaded.
        words = [f"kernel/{names[need]}.ko" for need in reversed(closure(needs, at))]
        lines.append(f"kernel/{name}.ko: {' '.join(words)}".rstrip() + "\n")
    (folder / "modules.dep").write_text("".join(data.draw(st.permutations(lines))))
    kernel = kmods.Kernel(Sysroot(tree), RELEASE)
    places = {name: path for name, (path, _) in kernel.modules.items()}
    for name, content in kmods.kmod_files(kernel, places).items():
        (folder / name).write_bytes(content)
    name = kmods.canonical(names[-1])
    assert shown(tree, names[-1]) == [*kernel.needs(name), name]


ALIAS = st.lists(st.sampled_from(["a", "b", "0", "9", "-", "_", ":", "v", "F"]), min_size=1, max_size=8).map(
    "".join
)
PATTERN = st.lists(
    st.sampled_from(["a", "b", "0", "-", "_", ":", "v", "*", "*", "?", "[0-9]", "[!a-f]", "[-b]"]), max_size=8
).map(lambda parts: "x:" + "".join(parts))


def claimed(tree: Path, alias: str) -> list[str]:
    """The modules that modprobe finds for an alias."""
    done = subprocess.run(
        ["/usr/sbin/modprobe", "-d", tree, "-S", RELEASE, "-C", tree / "none", "--resolve-alias", alias],
        capture_output=True,
        text=True,
    )
    return sorted(set(done.stdout.split()))


def find(patterns: list[tuple[str, str]], alias: str) -> list[str]:
    """The modules that PID 1 finds."""
    index = EMPTY_INDEX._replace(aliases=Aliases.of(patterns))
    return sorted(set(Modules(index, Console(Record("", ""))).matching(alias)))


@settings(max_examples=60, deadline=None)
@given(st.lists(PATTERN, min_size=1, max_size=6), st.lists(ALIAS, min_size=1, max_size=4), st.data())
def test_modprobe_finds_the_same_modules_for_a_device(
    tmp_path_factory: pytest.TempPathFactory, patterns: list[str], aliases: list[str], data: st.DataObject
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    folder = tree / "lib/modules" / RELEASE
    folder.mkdir(parents=True)
    (tree / "none").mkdir()
    rows = [(pattern, f"m{number}") for number, pattern in enumerate(patterns)]
    (folder / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for _, name in rows))
    (folder / "modules.alias").write_text("".join(f"alias {pattern} {name}\n" for pattern, name in rows))
    kernel = kmods.Kernel(Sysroot(tree), RELEASE)
    places = {name: path for name, (path, _) in kernel.modules.items()}
    for name, content in kmods.kmod_files(kernel, places).items():
        (folder / name).write_bytes(content)
    # Most aliases that are made up match nothing: some are made from the patterns.
    meant = data.draw(st.sampled_from(patterns))
    for piece, value in (("*", "a0"), ("?", "-"), ("[0-9]", "7"), ("[!a-f]", "v"), ("[-b]", "b")):
        meant = meant.replace(piece, value)
    for alias in (
        meant,
        meant.replace("-", "_"),
        meant.replace("_", "-"),
        *(f"x:{alias}" for alias in aliases),
    ):
        assert find(kernel.alias_table, alias) == claimed(tree, alias)


def test_modprobe_finds_the_same_modules_for_the_devices_of_a_whole_kernel(
    bookworm: DebianRoot, tmp_path: Path
) -> None:
    """Each hundredth alias of Debian's kernel, with something in the places that may hold anything."""
    folder = bookworm.tree / "lib/modules" / bookworm.release
    rows = kmods.parse_alias((folder / "modules.alias").read_text())
    assert len(rows) > 10_000
    known = Modules(EMPTY_INDEX._replace(aliases=Aliases.of(rows)), Console(Record("", "")))
    command = ["/usr/sbin/modprobe", "-d", bookworm.tree, "-S", bookworm.release, "-C", tmp_path, "-R"]
    for pattern, _ in rows[::100]:
        alias = re.sub(r"\[(.)[^]]*\]|\*|\?", lambda match: match[1] or "0A"[: 3 - len(match[0])], pattern)
        done = subprocess.run([*command, alias], capture_output=True, text=True)
        assert set(known.matching(alias)) == set(done.stdout.split()), alias
