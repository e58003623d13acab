"""A line that is typed key by key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.kernel.line import Line, wipe


@pytest.mark.parametrize(
    ("keys", "value", "state"),
    [
        (b"abc\r", b"abc", "done"),
        (b"abc\n", b"abc", "done"),
        (b"abx\x7fc\r", b"abc", "done"),
        (b"wrong\x15abc\r", b"abc", "done"),
        (b"\x08\x7fabc\r", b"abc", "done"),
        ("aü".encode() + b"\x7fbc\r", b"abc", "done"),
        (b"a\x1b[Ab\x1b[1;5Cc\x1bOP\r", b"abc", "done"),
        (b"a\x04b\x03", b"ab", "cancelled"),
        (b"\x04", b"", "cancelled"),
        (b"12345678901\r", b"1234567890", "too long"),
    ],
)
def test_what_keys_make_of_a_line(keys: bytes, value: bytes, state: str) -> None:
    line = Line(secret=True, limit=10)
    line.feed(keys)
    assert line.state == state
    assert line.take() == value


def test_a_secret_is_not_echoed() -> None:
    line = Line(secret=True)
    assert line.feed("pä\x7fx\r".encode())[0] == b"**\b \b*\n"
    assert Line(secret=False).feed("pä\x1b[2J\r".encode())[0] == b"p?\n"


def test_it_says_how_much_belongs_to_the_line() -> None:
    assert Line(secret=True).feed(b"one\rtwo\r")[1] == len(b"one\r")


def test_what_was_typed_can_be_shown_once_more() -> None:
    line = Line(secret=False)
    shown = line.feed("pä\x7fxy".encode())[0]
    assert line.shown() == b"pxy"
    assert shown == b"p?\b \bxy"
    secret = Line(secret=True)
    secret.feed(b"pxy")
    assert secret.shown() == b"***"


def test_what_was_typed_is_overwritten_where_it_lies() -> None:
    line = Line(secret=True)
    line.feed(b"secreT\x7f")
    buffer = line._typed
    assert buffer.startswith(b"secre\0")
    answer = line.take()
    assert answer == b"secre"
    assert not any(buffer)
    wipe(answer)
    assert answer == bytes(5)


@given(st.binary(max_size=200), st.integers(1, 199), st.booleans())
def test_any_bytes_in_any_pieces_give_the_same_and_nothing_that_drives_a_terminal(
    data: bytes, cut: int, secret: bool
) -> None:
    whole, pieces = Line(secret=secret), Line(secret=secret)
    echo, taken = whole.feed(data)
    first, so_far = pieces.feed(data[:cut])
    second, more = pieces.feed(data[cut:]) if pieces.state == "open" else (b"", 0)
    assert (echo, taken) == (first + second, so_far + more)
    assert (whole.state, whole.shown()) == (pieces.state, pieces.shown())
    assert whole.take() == pieces.take()
    assert all(byte in b"\n\b" or 0x20 <= byte <= 0x7E for byte in echo)
    assert not whole.take()
