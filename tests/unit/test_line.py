"""A line that is typed key by key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.kernel.line import Line


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
    assert (bytes(line.value), line.state) == (value, state)


def test_a_secret_is_not_echoed() -> None:
    line = Line(secret=True)
    assert line.feed("pä\x7fx\r".encode())[0] == b"**\b \b*\r\n"
    assert Line(secret=False).feed("pä\x1b[2J\r".encode())[0] == b"p?\r\n"


def test_what_follows_the_line_is_kept_for_the_next() -> None:
    assert Line(secret=True).feed(b"one\rtwo\r")[1] == b"two\r"


@given(st.binary(max_size=200), st.integers(1, 199), st.booleans())
def test_any_bytes_in_any_pieces_give_the_same_and_nothing_that_drives_a_terminal(
    data: bytes, cut: int, secret: bool
) -> None:
    whole, pieces = Line(secret=secret), Line(secret=secret)
    echo, rest = whole.feed(data)
    first, rest_of_first = pieces.feed(data[:cut])
    if pieces.state == "open":
        second, after = pieces.feed(data[cut:])
    else:
        second, after = b"", rest_of_first + data[cut:]
    assert (echo, rest) == (first + second, after)
    assert (whole.value, whole.state) == (pieces.value, pieces.state)
    assert all(byte in b"\r\n\b" or 0x20 <= byte <= 0x7E for byte in echo)
    whole.wipe()
    assert not whole.value
