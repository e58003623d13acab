"""Foreign text cannot drive the terminal, and can still be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.text import printable


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", ""),
        ("my disk", "my disk"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("é", "\\xe9"),
        ("\u202e", "\\u202e"),
        ("\U0001f600", "\\U0001f600"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("back\\slash", "back\\\\slash"),
        (b"\xff\x00a\\", "\\xff\\x00a\\\\"),
        ("é".encode(), "\\xc3\\xa9"),
    ],
)
def test_examples(value: str | bytes, shown: str) -> None:
    assert printable(value) == shown


@given(st.text(st.characters()) | st.binary())
def test_only_printable_ascii_comes_out(value: str | bytes) -> None:
    shown = printable(value)
    assert all(0x20 <= ord(character) <= 0x7E for character in shown)


@given(st.binary())
def test_bytes_can_be_read_back(value: bytes) -> None:
    assert printable(value).encode("ascii").decode("unicode_escape").encode("latin-1") == value


@given(st.binary())
def test_bytes_that_went_through_a_string_are_shown_as_bytes(value: bytes) -> None:
    text = value.decode("ascii", "surrogateescape")
    assert printable(text) == printable(value)
