"""The sealed configuration and the module index survive the way into the image, and damage is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.sealed import (
    EMPTY_INDEX,
    Aliases,
    ModuleEntry,
    ModuleIndex,
    SealedConfig,
    dump_config,
    dump_modules,
    parse_config,
    parse_modules,
)
from pyinit.errors import BootError

PARSERS: list[Callable[[bytes], object]] = [parse_config, parse_modules]

CONFIG = SealedConfig(
    "6.1.0", "list", "open", "", "root=/dev/vda", "/lib/systemd/systemd-udevd", "/bin/sh", {"c": "x"}
)
INDEX = ModuleIndex(
    "/usr/lib/modules/6.1.0",
    {
        "ext4": ModuleEntry("kernel/fs/ext4.ko", ("crc16", "mbcache"), "a=1"),
        "crc16": ModuleEntry("crc16.ko", (), ""),
    },
    Aliases.of((("fs-ext4", "ext4"), ("virtio:d00000002v*", "virtio_blk"))),
    frozenset(("vfat", "aesni")),
    ("ext4",),
    ("sha256_ssse3",),
)

# What a path or a command line can hold.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\udc80\udcff"))
NAMES = st.lists(TEXT, max_size=3).map(tuple)
CONFIGS = st.builds(
    SealedConfig,
    *[TEXT] * 7,
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=3),
)
# The files of depmod and modprobe.d are split at blanks, so that no name or alias has one.
WORD = TEXT.map(lambda text: "".join(text.replace(",", "").split())).filter(bool)
WORDS = st.lists(WORD, max_size=3).map(tuple)
INDEXES = st.builds(
    ModuleIndex,
    TEXT,
    st.dictionaries(WORD, st.builds(ModuleEntry, WORD, WORDS, WORDS.map(" ".join)), max_size=3),
    st.lists(st.tuples(WORD, WORD), max_size=3).map(Aliases.of),
    st.frozensets(WORD, max_size=3),
    NAMES,
    NAMES,
    NAMES,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def damage(parser: Callable[[bytes], object], data: bytes) -> BootError:
    with pytest.raises(BootError) as caught:
        parser(data)
    assert caught.value.code == "E-IMAGE"
    for line in (caught.value.cause, *caught.value.advice):
        assert line.isascii() and line.isprintable()
    return caught.value


@given(CONFIGS)
def test_a_configuration_comes_back(config: SealedConfig) -> None:
    assert parse_config(dump_config(config)) == config


@given(INDEXES)
def test_a_module_index_comes_back(index: ModuleIndex) -> None:
    assert parse_modules(dump_modules(index)) == index


def test_equal_values_give_equal_bytes() -> None:
    other = CONFIG._replace(libraries={"udev": "u", "c": "x"})
    assert dump_config(other) == dump_config(CONFIG._replace(libraries={"c": "x", "udev": "u"}))
    turned = INDEX._replace(
        modules=dict(reversed(INDEX.modules.items())), builtin=frozenset(("aesni", "vfat"))
    )
    assert dump_modules(turned) == dump_modules(INDEX)
    assert dump_modules(EMPTY_INDEX).isascii()


@pytest.mark.parametrize("parser", PARSERS)
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_other_bytes_are_a_damaged_image(parser: Callable[[bytes], object], data: bytes) -> None:
    damage(parser, data)


@pytest.mark.parametrize("parser", PARSERS)
def test_nesting_without_end_is_a_damaged_image(parser: Callable[[bytes], object]) -> None:
    damage(parser, b"[" * 200_000)


@pytest.mark.parametrize("good", [dump_config(CONFIG), dump_modules(INDEX)], ids=["config", "modules"])
@given(data=st.data())
def test_a_document_with_one_wrong_value(good: bytes, data: st.DataObject) -> None:
    parser: Callable[[bytes], Any] = parse_config if b"udevd" in good else parse_modules
    raw = json.loads(good)
    key = data.draw(st.sampled_from(sorted(raw)))
    raw[key] = data.draw(JSON)
    changed = json.dumps(raw).encode()
    try:
        parser(changed)
    except BootError:
        damage(parser, changed)
    else:
        assert key not in ("schema",) or raw[key] == 1


@pytest.mark.parametrize("good", [dump_config(CONFIG), dump_modules(INDEX)], ids=["config", "modules"])
def test_a_document_cut_anywhere(good: bytes) -> None:
    parser = parse_config if b"udevd" in good else parse_modules
    for length in range(len(good) - 1):
        damage(parser, good[:length])


@pytest.mark.parametrize(
    ("text", "why"), [("\0", "a zero byte in a string"), ("\ud800", "surrogates not allowed")]
)
def test_what_no_path_and_no_command_line_can_hold(text: str, why: str) -> None:
    assert why in damage(parse_config, dump_config(CONFIG._replace(cmdline=f"a{text}b"))).cause
    changed = INDEX._replace(aliases=Aliases.of(((text, "ext4"),)))
    assert why in damage(parse_modules, dump_modules(changed)).cause


def test_the_reason_is_told() -> None:
    assert "schema 2" in damage(parse_config, b'{"schema": 2}').cause
    assert "/etc/pyinit/config.json" in damage(parse_config, b"").cause
    assert "/usr/lib/pyinit/modules.json" in damage(parse_modules, b"").cause
    assert "kernel is not a string" in damage(parse_config, b'{"schema": 1, "kernel": 6}').cause
