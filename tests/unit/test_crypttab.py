"""crypttab: what it says, what its options come to, and that no bytes break the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.crypttab import (
    DEFAULT_TRIES,
    Entry,
    Options,
    decode_options,
    is_name,
    parse,
    split_options,
)

PIECES = (
    *(b"/", b"#", b"\n", b" ", b"\t", b"-", b"\0", b"=", b'"', b"'", b",", b"\xff", b"none", b"UUID="),
    *(b"luks", b"tries=", b"header=/x", b"timeout=1h", b"99999999999999999999", b"..", b"\r", b"\x0b"),
)
ANY = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


def test_lines() -> None:
    entries, warnings = parse(
        b"#name device\nroot UUID=1 - luks,discard\nhome /dev/sdb /etc/home.key\n"
        b'small UUID="2-3"\nbad\na/b /dev/d\ncontrol /dev/e\n'
    )
    assert entries == (
        Entry(2, "root", "UUID=1", "none", ("luks", "discard")),
        Entry(3, "home", "/dev/sdb", "/etc/home.key", ()),
        Entry(4, "small", "UUID=2-3", "none", ()),
    )
    assert warnings == (
        "line 5: no name and encrypted device: bad",
        "line 6: a/b cannot be a name below /dev/mapper",
        "line 7: control cannot be a name below /dev/mapper",
    )


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("luks", Options()),
        ("luks,discard,x-initrd.attach", Options(discard=True)),
        ("tries=0,timeout=2min", Options(tries=0, timeout=120)),
        (
            "keyfile-offset=512,keyfile-size=64",
            Options(key_words=("--keyfile-offset=512", "--keyfile-size=64")),
        ),
        ("key-slot=3", Options(slot=3)),
        ("header=/h:UUID=1,keyfile-timeout=5s", Options(header="/h:UUID=1", key_timeout=5)),
        ("read-only,no-read-workqueue", Options(words=("--readonly", "--perf-no_read_workqueue"))),
        ("tpm2-device=auto,tpm2-pcrs=7,token-timeout=5", Options(token_timeout=5)),
    ],
)
def test_options(text: str, options: Options) -> None:
    assert decode_options(split_options(text)) == (options, ())


@pytest.mark.parametrize("text", ["swap,cipher=aes", "tmp", "plain", "noauto,luks", "bitlk"])
def test_volumes_that_are_not_for_the_initramfs(text: str) -> None:
    assert decode_options(split_options(text))[0].skip


@pytest.mark.parametrize("text", ["tries=x", "tries=-1", "keyscript=/bin/x", "header=relative", "timeout=1y"])
def test_what_is_not_understood_is_told(text: str) -> None:
    options, (warning,) = decode_options((text,))
    assert options == Options() and warning == f"{text} has no effect"


@given(ANY)
def test_any_bytes_are_understood_or_warned_about(data: bytes) -> None:
    entries, warnings = parse(data)
    numbers = [entry.line for entry in entries]
    assert numbers == sorted(set(numbers))
    for entry in entries:
        assert 1 <= entry.line <= data.count(b"\n") + 1
        assert is_name(entry.name) and entry.source
        assert "\0" not in "".join((entry.name, entry.source, entry.key, *entry.options))
        options, remarks = decode_options(entry.options)
        assert options.tries >= 0 and options.timeout >= 0
        assert all(word.startswith("--") for word in (*options.words, *options.key_words))
        warnings += remarks
    assert all(warning.isascii() and warning.isprintable() for warning in warnings)


def test_the_default_is_three_tries() -> None:
    assert decode_options(())[0].tries == DEFAULT_TRIES == 3
