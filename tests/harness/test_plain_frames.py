"""Frames of shells and C programs: what is noticed of the damage a line can do, and what sends them."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tty
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinit_qemu import channel, plain
from pyinit_qemu.channel import Damage, Decoder, Frames, parse_line
from pyinit_qemu.cli import main
from pyinit_qemu.guest_command import SOURCES

words = st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True).filter(lambda kind: kind != "done")
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]*", fullmatch=True).filter(lambda key: key != "kind")
texts = st.text(st.characters(codec="utf-8"))
values = st.dictionaries(keys, texts, max_size=4)
plain_frames = st.tuples(words, values)


def sent(frames: list[tuple[str, dict[str, str]]]) -> bytes:
    return b"".join(plain.encode(number, *frame) for number, frame in enumerate(frames, 1))


def received(data: bytes) -> Frames:
    frames = Frames()
    frames.feed(data)
    frames.close()
    return frames


@given(st.lists(plain_frames, max_size=4), st.booleans())
def test_frames_arrive_as_they_were_sent(frames: list[tuple[str, dict[str, str]]], crlf: bool) -> None:
    data = sent(frames)
    assert data.isascii()
    got = received(data.replace(b"\n", b"\r\n") if crlf else data)
    assert got.items == [{"kind": kind, **facts} for kind, facts in frames]
    assert not got.damage


@given(st.lists(plain_frames.map(lambda frame: sent([frame])) | st.binary(max_size=20)), st.data())
def test_pieces_make_no_difference(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(lines)
    whole = received(stream)
    pieces = Frames()
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        pieces.feed(stream[:size])
        stream = stream[size:]
    pieces.close()
    assert (pieces.items, pieces.damage) == (whole.items, whole.damage)


@given(st.binary(max_size=200), st.sampled_from([b"", b"pyinit ", b"pyinit 5 1 ", b"1 0 ", b"2 0d4cbb29 "]))
def test_any_bytes_are_frames_or_damage(data: bytes, start: bytes) -> None:
    for item in Decoder().feed(start + data + b"\n"):
        assert isinstance(item, Damage) or isinstance(item["kind"], str)


@given(st.text(max_size=60), st.integers(0, 1 << 32))
def test_any_text_that_is_whole_is_a_frame_or_damage(text: str, number: int) -> None:
    from zlib import adler32

    body = text.encode()
    found = parse_line(b"pyinit %d %d %s" % (len(body), adler32(body), body))
    assert isinstance(found, Damage) or found["kind"]


@given(st.lists(plain_frames, min_size=1, max_size=3), st.data())
def test_any_changed_byte_is_damage(frames: list[tuple[str, dict[str, str]]], data: st.DataObject) -> None:
    line = bytearray(sent(frames))
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    assert received(bytes(line)).damage


@given(plain_frames, st.data())
def test_any_two_changed_bytes_of_a_text_are_damage(
    frame: tuple[str, dict[str, str]], data: st.DataObject
) -> None:
    line = bytearray(sent([frame]))
    text = len(line) - 1 - len(line.split(b" ", 3)[3].rstrip(b"\n"))
    first, second = (data.draw(st.integers(text, len(line) - 2)) for _ in range(2))
    line[first], line[second] = line[second], line[first]
    if bytes(line) == sent([frame]):
        line[first] ^= data.draw(st.integers(1, 255))
        if second != first:
            line[second] ^= data.draw(st.integers(1, 255))
    assert received(bytes(line)).damage


@given(plain_frames, st.data())
def test_lost_and_added_bytes_are_damage(frame: tuple[str, dict[str, str]], data: st.DataObject) -> None:
    line = sent([frame])
    start = data.draw(st.integers(1, len(line) - 2))
    end = data.draw(st.integers(start + 1, len(line) - 1))
    assert received(line[:start] + line[end:]).damage
    noise = data.draw(st.binary(min_size=1, max_size=20).filter(lambda noise: noise.strip(b"\r\n")))
    assert received(line[:start] + noise + line[start:]).damage


json_frames = st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=3).map(
    lambda rest: {**rest, "kind": "json"}
)


@given(st.lists(plain_frames.map(lambda f: sent([f])) | json_frames.map(channel.encode)), st.integers(0))
def test_any_cut_is_noticed(lines: list[bytes], place: int) -> None:
    data = b"".join(lines) + plain.encode(1, "done")
    cut = received(data[: place % len(data)])
    assert not cut.done
    assert received(data).done and not received(data).damage


@given(st.lists(plain_frames, min_size=2, max_size=6), st.data())
def test_a_lost_line_leaves_a_gap(frames: list[tuple[str, dict[str, str]]], data: st.DataObject) -> None:
    lines = sent(frames).splitlines(keepends=True)
    lost = data.draw(st.integers(0, len(lines) - 2))
    got = received(b"".join(lines[:lost] + lines[lost + 1 :]))
    assert [damage.reason for damage in got.damage] == [f"frame {lost + 2} where {lost + 1} was due"]
    assert len(got.items) == len(lines) - 1


def test_a_new_sender_counts_from_one_and_both_forms_mix() -> None:
    first, second = plain.encode(1, "a") + plain.encode(2, "b"), plain.encode(1, "c", {"x": "1"})
    got = received(first + channel.encode({"kind": "json"}) + second + plain.encode(2, "done"))
    assert [frame["kind"] for frame in got.items] == ["a", "b", "json", "c", "done"]
    assert not got.damage and got.done


@pytest.mark.parametrize(
    "text, reason",
    [
        ("1 result a=1 a=2", "a is given twice"),
        ("1 result kind=x", "kind is given twice"),
        ("1 result two words", "not a number, a kind and key=value words"),
        ("0 result", "not a number, a kind and key=value words"),
        ("1 result a=%4", "not a number, a kind and key=value words"),
        ("1 result  a=1", "not a number, a kind and key=value words"),
    ],
)
def test_damage_says_what_is_wrong(text: str, reason: str) -> None:
    from zlib import adler32

    found = parse_line(f"pyinit {len(text)} {adler32(text.encode())} {text}".encode())
    assert isinstance(found, Damage)
    assert found.reason == reason


@pytest.mark.parametrize("kind, key", [("", "a"), ("two words", "a"), ("a", ""), ("a", "kind"), ("a", "b=")])
def test_what_cannot_be_sent_is_refused(kind: str, key: str) -> None:
    with pytest.raises(ValueError):
        plain.encode(1, kind, {key: "value"})


class Line:
    """A serial line whose other end is a program's."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        self.device = os.ttyname(self.theirs)

    def sent_by(self, *argv: str, **environment: str) -> bytes:
        """Run a program; return what it wrote to the line, up to the frame ``done``."""
        result = subprocess.run(argv, env=environment, capture_output=True, timeout=60)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
        data = b""
        while b" done\n" not in data and select.select([self.ours], [], [], 30)[0]:
            data += os.read(self.ours, 65536)
        return data


@pytest.fixture(scope="module")
def line() -> Line:
    return Line()


SCRIPT = f"""pyinit_report_device=$1
. {SOURCES["sh"]}
set -eu
shift
IFS=a
pyinit_report "$@"
IFS=' '
test -z "${{LC_ALL-}}" || test "$LC_ALL" = C.UTF-8
pyinit_report done
"""

PROGRAM = """#include "report.h"
int main(int count, char **words)
{
    (void)count;
    return pyinit_report("result", "first", words[1], "second", words[2], NULL) + pyinit_report("done", NULL);
}
"""

Sender = Callable[[str, str], bytes]
ODD_LINES = ["", " a  b ", "100 %\n\t-n\\n\\\\", "~*?[a-z]\"'`$(id)$$;|&", "-e", "äöü€𝄞", "\x01\x7f=="]
arguments = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@pytest.fixture(
    scope="module",
    params=["dash", "bash", "bash UTF-8", "busybox", "c"],
)
def sender(request: pytest.FixtureRequest, line: Line, tmp_path_factory: pytest.TempPathFactory) -> Sender:
    """A program that sends two texts in a frame of kind result, and then done."""
    environment: dict[str, str] = {}
    if request.param == "c":
        folder = tmp_path_factory.mktemp("c")
        (folder / "send.c").write_text(PROGRAM)
        device = f'-DPYINIT_REPORT_DEVICE="{line.device}"'
        strict = ("-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
        include = f"-I{SOURCES['c'].parent}"
        subprocess.run(["gcc", *strict, include, device, "-o", "send", "send.c"], cwd=folder, check=True)
        return lambda first, second: line.sent_by(str(folder / "send"), first, second)
    shell, _, language = request.param.partition(" ")
    argv = [shell, "sh"] if shell == "busybox" else [shell]
    if language:
        environment = {"LC_ALL": "C.UTF-8"}
    argv[0] = str(request.getfixturevalue("busybox")) if shell == "busybox" else str(shutil.which(shell))
    return lambda first, second: line.sent_by(
        *argv, "-c", SCRIPT, "x", line.device, "result", f"first={first}", f"second={second}", **environment
    )


def check(sender: Sender, first: str, second: str) -> None:
    empty = b"\n"
    frame = plain.encode(1, "result", {"first": first, "second": second})
    assert sender(first, second) == empty + frame + empty + plain.encode(2, "done")


@pytest.mark.parametrize("text", ODD_LINES)
def test_a_guest_sends_any_text(sender: Sender, text: str) -> None:
    check(sender, text, text)


@settings(max_examples=30)
@given(arguments, arguments)
def test_a_guest_sends_what_the_reader_would(sender: Sender, first: str, second: str) -> None:
    check(sender, first, second)


def test_what_is_no_device_is_never_written_to(tmp_path: Path) -> None:
    target = tmp_path / "disk"
    target.write_bytes(b"precious")
    for device in (str(target), str(tmp_path / "absent" / "tty")):
        subprocess.run(["sh", "-c", SCRIPT, "x", device, "result"], check=True)
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize(
    "language, has", [("sh", "pyinit_report() {"), ("c", "int pyinit_report("), ("c-init", "int main(")]
)
def test_the_command_prints_it(language: str, has: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guest", language]) == 0
    assert has in capsys.readouterr().out
