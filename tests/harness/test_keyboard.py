from __future__ import annotations

import json
import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu import Machine
from pyinit_qemu.keyboard import chord, keys_of

Fake = Callable[..., Machine]


def test_keys_of_a_line() -> None:
    assert keys_of("Ab 1!\n") == (("shift", "a"), ("b",), ("spc",), ("1",), ("shift", "1"), ("ret",))
    assert keys_of("\x03\x7f\t\x1b") == (("ctrl", "c"), ("backspace",), ("tab",), ("esc",))


def test_every_printable_ascii_character_has_keys_of_its_own() -> None:
    printable = [character for character in string.printable if character.isascii() and character >= " "]
    assert len({keys_of(character) for character in printable}) == len(printable) == 95


@given(st.text(max_size=20))
def test_text_is_typed_or_refused_with_the_character(text: str) -> None:
    try:
        assert len(keys_of(text)) == len(text)
    except ValueError as error:
        assert re.fullmatch(r"a US keyboard has no key for .+ \(U\+[0-9A-F]{4,6}\)", str(error), re.DOTALL)


@pytest.mark.parametrize(
    "name, keys",
    [
        ("ctrl-alt-delete", ("ctrl", "alt", "delete")),
        ("Ctrl-Alt-Del", ("ctrl", "alt", "delete")),
        ("alt-f2", ("alt", "f2")),
        ("ret", ("ret",)),
        ("ctrl-c", ("ctrl", "c")),
        ("A", ("shift", "a")),
        ("-", ("minus",)),
    ],
)
def test_combinations(name: str, keys: tuple[str, ...]) -> None:
    assert chord(name) == keys


@given(st.text(max_size=12))
def test_a_combination_is_known_or_refused(name: str) -> None:
    try:
        assert chord(name)
    except ValueError as error:
        assert "no key" in str(error)


def test_keys_reach_qemu(fake: Fake) -> None:
    machine = fake("hang")
    machine.keyboard.press("ctrl-alt-delete")
    machine.keyboard.type("Hi")
    sent = re.findall(r'> (\{"execute": "send-key".*)', (machine.folder / "qmp.log").read_text())
    keys = [[key["data"] for key in json.loads(line)["arguments"]["keys"]] for line in sent]
    assert keys == [["ctrl", "alt", "delete"], ["shift", "h"], ["i"]]


def test_what_is_secret_is_not_logged(fake: Fake) -> None:
    machine = fake("hang")
    machine.keyboard.type("xy", secret=True)
    log = (machine.folder / "qmp.log").read_text()
    assert log.count("> send-key (arguments not shown)") == 2
    assert "qcode" not in log
