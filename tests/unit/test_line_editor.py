"""The line editor: what keys do to the line, and that the screen shows it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.rescue.editor import MAX_LINE, Editor

KEYS = (
    "\x01 \x02 \x04 \x05 \x06 \x07 \x08 \t \x0b \x0c \x0e \x10 \x12 \x14 \x15 \x17 \x19 \x7f \x1b[A \x1b[B "
    "\x1b[C \x1b[D \x1bOH \x1bOF \x1b[3~ \x1bb \x1bf \x1bd \x1b\x7f \x1b. \x1b[1;5C a bc é \udcff / \n"
).split(" ")


class Terminal:
    """One line of a terminal, as far as the editor's output goes; a width that nothing may reach."""

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.line: list[str] = []
        self.cursor = 0
        self.above: list[str] = []

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.DOTALL):
            match = re.fullmatch(r"\x1b\[([0-9]*)([A-Z])", part)
            if part == "\r":
                self.cursor = 0
            elif part == "\n":
                self.above.append("".join(self.line))
                self.line, self.cursor = [], 0
            elif match and match[2] in "CD":
                self.cursor += int(match[1]) if match[2] == "C" else -int(match[1])
                assert self.cursor >= 0
            elif match and match[2] == "K":
                del self.line[self.cursor :]
            elif match and match[2] in "HJ":
                self.line, self.cursor = [], 0
            elif part != "\a":
                assert not part.startswith("\x1b")
                self.line[self.cursor : self.cursor + 1] = [part]
                self.cursor += 1

    @property
    def text(self) -> str:
        return "".join(self.line)


def typed(keys: str, *, history: tuple[str, ...] = (), editor: Editor | None = None) -> Editor:
    editor = editor or Editor()
    editor.history = list(history)
    editor.feed(keys)
    return editor


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("abc\x7f\x08x", "ax"),
        ("ac\x1b[Db", "abc"),
        ("ac\x1bODb\x05d", "abcd"),
        ("world\x01hello ", "hello world"),
        ("abc\x01\x04\x1b[3~", "c"),
        ("one two\x17three", "one three"),
        ("one two/x\x1b\x7f", "one two/"),
        ("one two\x01\x1bf!", "one! two"),
        ("one two\x1bb-", "one -two"),
        ("one two\x01\x1bd", " two"),
        ("one two\x02\x02\x02\x0b\x19\x19", "one twotwo"),
        ("one\x15two", "two"),
        ("ab\x14", "ba"),
        ("a\x1b[1;5Db\x1b[99~c\x1b\x1b[Dd", "bdca"),
        ("\x1b[A", "last words"),
        ("\x1b[A\x1b[A", "first"),
        ("\x1b[A\x1b[A\x1b[A\x1b[A", "first"),
        ("new\x10\x0e", "new"),
        ("echo \x1b.", "echo words"),
        ("\x12fi", "first"),
        ("\x12s\x12", "first"),
        ("\x12st\x7f\x05!", "last words!"),
        ("\x12zz", ""),
        ("x\x12fi\x07", ""),
        ("\x12fi\x1b[D\x7f", "firt"),
    ],
)
def test_keys(keys: str, line: str) -> None:
    assert typed(keys, history=("first", "last words")).text == line


def test_a_line_ends_and_what_follows_is_kept() -> None:
    editor = Editor()
    assert editor.feed("ls -l\rnext") == ("ls -l\r\n", "line", "next")
    assert editor.text == "ls -l"
    editor.remember(editor.text)
    editor.remember("ls -l")
    editor.remember("  ")
    editor.begin()
    assert (editor.text, editor.history) == ("", ["ls -l"])
    assert editor.feed("\x04x") == ("", "end-of-file", "x")
    assert editor.feed("x\x01\x04")[1] == ""


def test_a_secret_is_neither_shown_nor_remembered() -> None:
    editor = Editor(lambda text: (0, ["completed"]))
    editor.history = ["before"]
    editor.secret = True
    assert editor.feed("sec\t\x1b[A\x12\x7fcret\r") == ("\r\n", "line", "")
    assert editor.text == "secret"
    editor.remember(editor.text)
    assert editor.history == ["before"]


def test_completion() -> None:
    def complete(text: str) -> tuple[int, list[str]]:
        start = text.rfind(" ") + 1
        names = ("devices", "debug", "dir/", "explain", "root=")
        return start, [word for word in names if word.startswith(text[start:])]

    editor = Editor(complete)
    assert typed("pyinit dev\t", editor=editor).text == "pyinit devices "
    editor.begin()
    assert typed("di\tx", editor=editor).text == "dir/x"
    editor.begin()
    assert typed("ro\tx", editor=editor).text == "root=x"
    editor.begin()
    assert typed("de\t", editor=editor).text == "de"
    editor.begin()
    screen = Terminal()
    screen.feed(editor.output("# ", waiting=True) + editor.feed("de\t\t")[0])
    assert screen.above[-1] == "devices  debug"
    assert screen.text == "# de"
    editor.begin()
    assert editor.feed("zzz\t")[0] == "\azzz"
    assert typed("a\t", editor=Editor()).text == "a    "


def test_output_of_others_goes_above_the_line() -> None:
    editor, screen = Editor(), Terminal()
    screen.feed(editor.output("hello\r\npyinit:mount# ", waiting=False))
    screen.feed(editor.feed("ls x\x1b[D")[0])
    screen.feed(editor.output("[1] Done\r\n", waiting=True))
    assert (screen.above, screen.text, screen.cursor) == (["hello", "[1] Done"], "pyinit:mount# ls x", 17)
    screen.feed(editor.feed("-a \r")[0])
    assert screen.above[-1] == "pyinit:mount# ls -a x"
    editor.begin()
    # Typed ahead, while a program writes.
    screen.feed(editor.output("half", waiting=False) + editor.feed("ahead")[0])
    assert screen.text == "halfahead"
    screen.feed(editor.output(" a line\r\n# ", waiting=False))
    assert (screen.above[-1], screen.text) == ("half a line", "# ahead")


def test_a_long_line_is_scrolled_and_shown_whole_at_its_end() -> None:
    editor, screen = Editor(), Terminal(40)
    editor.columns = 40
    screen.feed(editor.output("pyinit:mount# ", waiting=True))
    line = "".join(chr(ord("a") + number % 26) for number in range(60))
    for character in line:
        screen.feed(editor.feed(character)[0])
    assert screen.text == f"pyinit:mount# {line[-25:]}"
    screen.feed(editor.feed("\x01")[0])
    assert (screen.text, screen.cursor) == (f"pyinit:mount# {line[:25]}", 14)
    screen.feed(editor.feed("\r")[0])
    assert screen.above == [f"pyinit:mount# {line}"]


def test_it_has_an_end() -> None:
    assert len(typed("x" * (MAX_LINE + 10)).text) == MAX_LINE


@given(st.lists(st.one_of(st.sampled_from(KEYS), st.text(max_size=3)), max_size=40), st.integers(30, 90))
def test_the_screen_always_shows_the_line_and_its_cursor(keys: list[str], columns: int) -> None:
    editor, screen = Editor(lambda text: (len(text), ["x", "y"])), Terminal(columns)
    editor.columns = columns
    editor.history = ["ls /dev", "cat /proc/mounts " * 8]
    screen.feed(editor.output("pyinit# ", waiting=True))
    for key in keys:
        rest = key
        while rest:
            shown, ending, rest = editor.feed(rest)
            screen.feed(shown)
            if ending:
                editor.remember(editor.text)
                editor.begin()
                screen.feed("\r\x1b[K" + editor.output("pyinit# ", waiting=True))
    assert screen.cursor <= columns - 1 and len(screen.text) <= columns - 1
    assert editor.text.isprintable() or "?" in screen.text or len(editor.text) > columns - 12
    if editor._search is None and len(editor.text) < columns - 12:
        shown = "".join(c if c.isprintable() else "?" for c in editor.text)
        assert screen.text == f"pyinit# {shown}"
        assert screen.cursor == len("pyinit# ") + editor.cursor


@given(st.binary(max_size=60))
def test_no_byte_that_is_typed_raises(data: bytes) -> None:
    editor = Editor()
    text = editor.decode(data)
    while text:
        _, ending, text = editor.feed(text)
        if ending:
            editor.begin()
    assert len(editor.take()) <= MAX_LINE + 20
