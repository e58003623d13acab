"""What is worked out at build time is what kmod works out at run time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinit_image import kmods
from pyinit_image.sysroot import Sysroot

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
