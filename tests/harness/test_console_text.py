from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.console import Cleaner, Console

PIECES = [b"a", b"text", b"\r", b"\n", b"\r\n", b"\x1b", b"[", b"31", b"m", b"\x1b]0;t", b"\x07", b"\x1b\\"]
PIECES += [b"\xc3\xa9", b"\xff", b"\x00", b"\t", b"\x1bc", b"\x1b(B", b"\xc2\x9b"]
terminal_bytes = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def clean(*pieces: bytes) -> str:
    cleaner = Cleaner()
    return "".join(map(cleaner.feed, pieces)) + cleaner.close()


@given(terminal_bytes | st.binary(max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_text_does_not_depend_on_the_pieces(data: bytes, first: int, second: int) -> None:
    first, second = sorted((first, second))
    assert clean(data[:first], data[first:second], data[second:]) == clean(data)


@given(terminal_bytes | st.binary(max_size=60))
def test_text_has_no_control_characters(data: bytes) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean(data))


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"one\r\ntwo\r\r\nthree", "one\ntwo\nthree"),
        (b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS", "SeaBIOS"),
        (b"[\x1b[0;32m  OK  \x1b[0m] Started", "[  OK  ] Started"),
        (b"wait 1\rwait 2\x1b[K\r\n", "wait 1\nwait 2\n"),
        (b"\x1b]0;title\x07shell", "shell"),
        (b"\x1b]0;never ended\nshell", "\nshell"),
        (b"caf\xc3\xa9 \xff", "café �"),
        (b"a\n\rb", "a\nb"),
    ],
)
def test_plain_text(raw: bytes, text: str) -> None:
    assert clean(raw) == text


def test_lines_carry_the_time_they_came() -> None:
    now = 1.0
    console = Console(clock=lambda: now)
    console.feed(b"one\r\ntw")
    now = 2.5
    console.feed(b"o\r\nprompt")
    assert console.lines == [(1.0, "one"), (2.5, "two")]
    assert console.tail() == "[    1.000] one\n[    2.500] two\n[         ] prompt"


@pytest.mark.parametrize(
    "line, name",
    [
        ("[    0.5] Kernel panic - not syncing: Attempted to kill init!", "panic"),
        ("[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs on x", "no-root"),
        ("[    0.5] Oops: 0000 [#1] PREEMPT SMP", "oops"),
        ("[    0.5] BUG: unable to handle page fault for address: 00", "oops"),
        ("Traceback (most recent call last):", "traceback"),
        ("E-DEV the root device did not appear", "banner"),
        ("[   12.0] E-DEV the root device did not appear", "banner"),
        ("pyinit: E-INTERNAL pyinit itself failed", "banner"),
    ],
)
def test_failures_are_recognised(line: str, name: str) -> None:
    console = Console()
    for byte in line.encode() + b"\r\n":
        console.feed(bytes([byte]))
    assert [failure.name for failure in console.failures] == [name]
    assert console.failure(allow=[name]) is None


def test_ordinary_lines_are_no_failures() -> None:
    console = Console()
    console.feed(
        b"Command line: console=ttyS0 panic=-1 oops=panic\r\n[    1.0] Panic timeout\r\n"
        b"pyinit: waiting for root\r\nCPU model E-2176M\r\nNOTE-X E-DEV\r\n"
    )
    assert console.failures == []


WORDS = st.lists(
    st.sampled_from(["Linux version 6.1.0-50-cloud", "login", "=", "[1.5]", "ü", "a b"]), min_size=1
)


@given(st.lists(WORDS.map(" ".join), min_size=1), st.data())
def test_a_match_does_not_depend_on_the_pieces(lines: list[str], data: st.DataObject) -> None:
    text = "\n".join(lines) + "\n"
    pattern = re.compile(
        data.draw(st.sampled_from([r"version \S+", r"\d+\.\d+", r"^login$", r"[a-z ]+", r"=.*"])), re.M
    )
    console = Console()
    found = None
    raw = text.encode()
    while raw and found is None:
        count = data.draw(st.integers(1, len(raw)))
        console.feed(raw[:count])
        raw = raw[count:]
        found = console.search(pattern, growing=True)
    found = found or console.search(pattern)
    whole = pattern.search(text)
    assert (found and found.span()) == (whole and whole.span())
