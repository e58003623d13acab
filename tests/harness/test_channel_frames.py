from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.report import frame as guest_frame
from pyinit_qemu.channel import Damage, Decoder, Frames, encode, parse_line

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
frames = st.builds(
    lambda kind, rest: {**rest, "kind": kind},
    st.text().filter(lambda kind: kind != "done"),
    st.dictionaries(st.text(), json_values, max_size=4),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def decode(pieces: list[bytes]) -> list[object]:
    decoder = Decoder()
    found: list[object] = []
    for piece in pieces:
        found += decoder.feed(piece)
    return found + decoder.close()


@given(st.lists(frames, max_size=5), st.lists(st.integers(0), max_size=8), st.booleans())
def test_frames_survive_any_cut_and_the_tty(
    sent: list[dict[str, object]], places: list[int], crlf: bool
) -> None:
    data = b"".join(map(encode, sent))
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    assert decode(cut(data, places)) == sent


@given(st.binary(max_size=300), st.lists(st.integers(0), max_size=8))
def test_any_bytes_decode_alike_however_cut(data: bytes, places: list[int]) -> None:
    assert decode(cut(data, places)) == decode([data])


@given(frames, frames, st.binary(min_size=1, max_size=80).filter(lambda b: b.strip(b"\r\n")))
def test_garbage_costs_its_own_lines_only(
    before: dict[str, object], after: dict[str, object], garbage: bytes
) -> None:
    found = decode([encode(before) + garbage + b"\n" + encode(after)])
    assert found[0] == before
    assert found[-1] == after
    assert any(isinstance(item, Damage) for item in found)


@given(frames, st.data())
def test_one_changed_byte_is_damage(frame: dict[str, object], data: st.DataObject) -> None:
    line = bytearray(encode(frame)[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    found = decode([bytes(line) + b"\n"])
    assert found and all(isinstance(item, Damage) for item in found)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"hello", "not a frame"),
        (b'99 00000000 {"kind":"x"}', "12 bytes where 99 were announced"),
        (b'12 00000000 {"kind":"x"}', "wrong checksum"),
        (b"2 0d4cbb29 []", "not an object with a kind"),
    ],
)
def test_damage_says_what_is_wrong(line: bytes, reason: str) -> None:
    found = parse_line(line)
    assert isinstance(found, Damage)
    assert found.reason == reason


def test_deep_nesting_is_damage() -> None:
    body = b'{"kind":' + b"[" * 100_000
    from zlib import crc32

    assert isinstance(parse_line(b"%d %08x %s" % (len(body), crc32(body), body)), Damage)


def test_a_channel_is_done_only_after_its_last_frame() -> None:
    channel = Frames()
    channel.feed(encode({"kind": "hello"}) + encode({"kind": "done"})[:-1])
    assert not channel.done
    channel.feed(b"\r\n")
    assert channel.done
    assert not channel.damage
    channel.feed(encode({"kind": "late"}))
    assert [damage.reason for damage in channel.damage] == ["a frame after the last one"]
    assert channel.done


def test_a_cut_off_line_is_damage() -> None:
    channel = Frames()
    channel.feed(b'12 0000 {"ki')
    channel.close()
    assert [damage.reason for damage in channel.damage] == ["cut off inside a line"]


def test_the_reader_reads_what_pid_1_writes() -> None:
    assert decode([b"\n" + guest_frame("hello", {"text": "ä\n"})]) == [{"kind": "hello", "text": "ä\n"}]


def test_a_frame_needs_a_kind() -> None:
    with pytest.raises(ValueError, match="kind"):
        encode({"no": "kind"})
