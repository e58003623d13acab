"""Text out of a VGA's memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.screen import COLUMNS, ROWS, decode


def memory(*lines: bytes, at: int = 0) -> bytes:
    screen = bytearray(b" \x07" * 0x4000)
    for row, line in enumerate(lines):
        for column, code in enumerate(line):
            screen[2 * ((at + row * COLUMNS + column) % 0x4000)] = code
    return bytes(screen)


def test_lines_are_what_a_person_reads() -> None:
    assert decode(memory(b"E-DEV root", b"", b"  tried: \xfe", b"")) == "E-DEV root\n\n  tried: ■"


def test_control_characters_are_the_symbols_of_the_font() -> None:
    assert decode(memory(b"\x1b[2J\x00\x7f|")) == "←[2J ⌂|"


@given(st.integers(0, 0x3FFF))
def test_a_screen_that_was_scrolled_begins_anywhere_and_wraps(start: int) -> None:
    assert decode(memory(b"first", b"second", at=start), start) == "first\nsecond"


@given(st.binary(max_size=0x8000), st.integers(0, 0xFFFF))
def test_any_memory_is_at_most_a_screen_of_printable_text(data: bytes, start: int) -> None:
    lines = decode(data, start).split("\n")
    assert len(lines) <= ROWS and all(len(line) <= COLUMNS for line in lines)
    assert all(character.isprintable() or character == "\xa0" for line in lines for character in line)
