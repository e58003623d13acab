"""Nothing that a disk, a network, a program or a command line can say is a surprise to a parser.

Each target of targets.py is tried with 10,000 examples in CI and with 100 elsewhere; scripts/fuzz tries it
with as many as one likes, led by coverage.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from targets import TARGETS, Target

EXAMPLES = 10_000 if os.environ.get("CI") == "true" else 100
LONG = 20_000
PYINIT = Path(__file__).parents[2] / "pyinit"


def made(target: Target, recipe: bytes) -> bytes:
    """Plain bytes, the words of the format in any order, or a good input with some places replaced.

    Which of these, and all the rest, is in ``recipe``: with one draw ten thousand examples take seconds.
    """
    kind, rest = recipe[0] % 4, recipe[1:]
    if kind == 0:
        return rest
    if kind == 1:
        return b"".join(piece(target, byte) for byte in rest)
    data = target.seeds[rest[0] % len(target.seeds)] if rest else target.seeds[0]
    for high, low, length, byte in zip(*(rest[start::4] for start in range(1, 5)), strict=False):
        at = (high << 8 | low) % (len(data) + 1)
        data = data[:at] + piece(target, byte) + data[at + length % 8 :]
    return data


def piece(target: Target, byte: int) -> bytes:
    """What one byte of a recipe stands for: mostly words of the format."""
    number = byte % (len(target.words) * 3 // 2 + 1)
    return target.words[number] if number < len(target.words) else bytes((byte,))


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_a_surprise(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES)
    @given(st.binary(min_size=1, max_size=40))
    def run(recipe: bytes) -> None:
        data = made(target, recipe)
        note(repr(data))
        target.run(data)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_and_long_ones_end(name: str) -> None:
    """Repeated, each word and each good input would keep a parser busy for hours that takes cubic time."""
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    for word in (*target.words, *target.seeds):
        target.run((word * (LONG // len(word) + 1))[:LONG])


def readers_of_bytes() -> set[str]:
    """The public functions and methods of pyinit that make something of bytes: the words of others."""
    found = set()
    for path in PYINIT.rglob("*.py"):
        module = ".".join(path.relative_to(PYINIT.parent).with_suffix("").parts)
        tree = ast.parse(path.read_bytes())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for top in (tree, *classes):
            owner = f"{top.name}." if isinstance(top, ast.ClassDef) else ""
            for node in top.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    named = [argument for argument in node.args.args if argument.arg != "self"]
                    first = ast.unparse(named[0].annotation) if named and named[0].annotation else ""
                    result = ast.unparse(node.returns) if node.returns else ""
                    if "bytes" in first and result != "None":
                        found.add(f"{module}.{owner}{node.name}")
    return found


def test_every_parser_of_pid_1_is_tried() -> None:
    tried = {
        f"{parser.__module__}.{parser.__qualname__}"
        for target in TARGETS.values()
        for parser in target.parsers
    }
    assert readers_of_bytes() - tried == set(), "give each a target in tests/fuzz/targets.py"
