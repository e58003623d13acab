"""The kernel command line is split as the kernel splits it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pyinit.config.cmdline import CommandLine, parse

# What init got from Linux 6.1 and 7.2 (Debian, x86-64, QEMU) for these command lines, /init, HOME= and TERM=
# left out. Bytes are written as the Latin-1 characters of the same number.
KERNEL = json.loads((Path(__file__).parent / "kernel_cmdlines.json").read_text())

# Latin-1 again; the interesting characters often.
_LINES = st.lists(
    st.sampled_from(['"', "=", " ", "\t", "\n", "\xa0", "--", "a", "b", "\xff", "\x00", "\x85"])
)
LINES = st.one_of(_LINES.map("".join).map(lambda text: text.encode("latin-1")), st.binary())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _init_words(line: CommandLine) -> tuple[list[bytes], list[bytes]]:
    """Make argv and environment of init, as init/main.c does of words that the kernel does not know."""
    argv: list[bytes] = []
    env: dict[bytes, bytes] = {}
    for word in line.words:
        key = _bytes(word.key)
        if key in (b"quiet", b"panic", b"root"):
            continue
        if word.value is None:
            argv.append(key)
        else:
            env[key] = key + b"=" + _bytes(word.value)
    return argv + [_bytes(arg) for arg in line.init_args], list(env.values())


@pytest.mark.parametrize(
    "case", KERNEL, ids=lambda case: case["kernel"] + " " + ascii(case["cmdline"][15:40])
)
def test_the_kernel_gives_init_the_same_words(case: dict[str, object]) -> None:
    line = str(case["cmdline"]).encode("latin-1")
    argv, env = _init_words(parse(line))
    assert [arg.decode("latin-1") for arg in argv] == case["argv"]
    assert [word.decode("latin-1") for word in env] == case["env"]


def _model(data: bytes) -> tuple[list[tuple[bytes, bytes | None]], list[tuple[bytes, bytes | None]]]:
    """Another way to the same words: mark the protected bytes first, then cut."""
    data = data.split(b"\0")[0]
    if data.endswith(b"\n"):
        data = data[:-1]
    quotes = 0
    pieces: list[bytearray] = [bytearray()]
    for byte in data:
        quotes += byte == ord('"')
        if byte in b" \t\n\v\f\r\xa0" and quotes % 2 == 0:
            pieces.append(bytearray())
        else:
            pieces[-1].append(byte)
    words: list[tuple[bytes, bytes | None]] = []
    for piece in (bytes(piece) for piece in pieces if piece):
        whole = piece.startswith(b'"')
        body = piece[whole:]
        name, equals, value = body[1:].partition(b"=")
        key = body[:1] + name
        if not equals:
            words.append((key[:-1] if whole and key.endswith(b'"') else key, None))
            continue
        inner = value.startswith(b'"')
        value = value[inner:]
        if (whole or inner) and value.endswith(b'"'):
            value = value[:-1]
        words.append((key, value))
    if (b"--", None) not in words:
        return words, []
    cut = words.index((b"--", None))
    args = words[cut + 1 :]
    return words[:cut], args[: args.index((b"--", None))] if (b"--", None) in args else args


@given(LINES)
@example(b'"')
@example(b'a="')
@example(b'"a="b" c"')
@example(b"=a=b")
@example(b'"--" x -- y')
def test_two_implementations_agree(data: bytes) -> None:
    letters = data.decode("utf-8", "ignore")
    assume(not any(b"\xa0" in letter.encode() for letter in letters))
    words, args = _model(data)
    line = parse(data)
    assert [(_bytes(w.key), None if w.value is None else _bytes(w.value)) for w in line.words] == words
    assert [_bytes(a) for a in line.init_args] == [k if v is None else k + b"=" + v for k, v in args]


@given(LINES)
def test_any_bytes_are_accepted_and_no_byte_is_invented(data: bytes) -> None:
    line = parse(data)
    for word in line.words:
        assert _bytes(word.raw) in data
        assert _bytes(word.key) in data
        assert word.value is None or _bytes(word.value) in data


_PLAIN = st.text(st.characters(codec="utf-8", exclude_characters='"\0'), min_size=1)


@given(_PLAIN.filter(lambda key: "=" not in key), st.one_of(st.none(), _PLAIN | st.just("")))
def test_a_quoted_word_comes_back_as_it_was(key: str, value: str | None) -> None:
    word = key if value is None else f"{key}={value}"
    line = parse(f'before "{word}" after'.encode())
    if word != "--":
        assert [(w.key, w.value) for w in line.words] == [("before", None), (key, value), ("after", None)]


@given(_PLAIN | st.just(""))
def test_a_quoted_value_comes_back_as_it_was(value: str) -> None:
    assert parse(f'root="{value}" after'.encode()).last("root") == ("root", value, f'root="{value}"')


def test_a_label_with_blanks_and_quotes() -> None:
    line = parse(b'"root=LABEL=my "big" disk" ro')
    assert [(w.key, w.value) for w in line.words] == [("root", 'LABEL=my "big" disk'), ("ro", None)]
    line = parse(b'"root=LABEL=a"b" quiet\n')
    assert line.words[0].value == 'LABEL=a"b" quiet'
    assert parse(b'root=LABEL="my disk" ro').last("root") == (
        "root",
        'LABEL="my disk"',
        'root=LABEL="my disk"',
    )


def test_a_letter_is_not_a_blank() -> None:
    # "à" ends in byte 0xa0, which by itself is a blank.
    assert parse("root=LABEL=voilà ro".encode()).words[0].value == "LABEL=voilà"
    assert [word.key for word in parse(b"a\xa0b").words] == ["a", "b"]


def test_the_last_word_counts_and_all_are_kept() -> None:
    line = parse(b"root=a console=tty0 root=b console=ttyS0 root")
    assert [word.value for word in line.all("console")] == ["tty0", "ttyS0"]
    assert line.last("root") == ("root", None, "root")
    assert line.last("Root") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", True),
        (b"x=0", False),
        (b"x=no", False),
        (b"x=off", False),
        (b"x=No", True),
        (b"x", True),
        (b"x=", True),
        (b"x=1", True),
        (b"x=00", True),
        (b"x=0 x", True),
        (b"x x=0", False),
    ],
)
def test_switches(text: bytes, expected: bool) -> None:
    assert parse(text).flag("x", True) is expected


def test_hyphen_and_underscore_differ() -> None:
    assert parse(b"rd.luks.allow_discards").last("rd.luks.allow-discards") is None


def test_what_follows_two_dashes_belongs_to_init() -> None:
    line = parse(b'init=/bin/x quiet -- single "two words" k="v w" -- lost\n')
    assert [word.key for word in line.words] == ["init", "quiet"]
    assert line.init_args == ("single", "two words", "k=v w")
