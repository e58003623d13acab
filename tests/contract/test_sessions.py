"""Shells on several terminals at once, with real ones: who leaves, who goes away, who was never there."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STAGE = Path(__file__).with_name("sessions_stage.py")
PROMPT = "here# "


class Room:
    """Two people at two terminals."""

    def __init__(self) -> None:
        pairs = [os.openpty() for _ in range(2)]
        self.controllers = [controller for controller, _ in pairs]
        self.devices = [device for _, device in pairs]
        self.before = [termios.tcgetattr(device) for device in self.devices]
        self.paths = [os.ttyname(device) for device in self.devices]
        self.seen = ["", ""]
        self.process: subprocess.Popen[str] | None = None

    def start(self, shell: str, relay_path: str = str(REPOSITORY)) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(STAGE), shell, *self.paths],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PYTHONPATH": str(REPOSITORY), "RELAY_PATH": relay_path},
        )

    def type(self, who: int, keys: str) -> None:
        os.write(self.controllers[who], keys.encode())

    def see(self, who: int, pattern: str) -> None:
        while not (found := re.search(pattern, self.seen[who])):
            ready = select.select([self.controllers[who]], [], [], 30)[0]
            assert ready, f"never shown: {pattern}; {self.seen[who]!r}"
            self.seen[who] += os.read(self.controllers[who], 65536).decode().replace("\r\n", "\n")
        self.seen[who] = self.seen[who][found.end() :]

    def ending(self) -> str:
        assert self.process is not None
        return self.process.communicate(timeout=60)[0]

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        for end in (*self.controllers, *self.devices):
            os.close(end)


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.close()


@pytest.mark.fault("P7")
def test_the_first_who_leaves_ends_the_others_and_terminals_are_as_before(room: Room) -> None:
    room.start("/bin/sh")
    for who in (0, 1):
        room.see(who, PROMPT)
    room.type(1, "cat\n")
    room.type(0, "exit 3\n")
    assert room.ending() == "left\n"
    room.see(1, rf"\npyinit: the rescue shell was left on {room.paths[0]}\n")
    for device, before in zip(room.devices, room.before, strict=True):
        assert termios.tcgetattr(device) == before


@pytest.mark.fault("P7")
def test_who_goes_away_takes_nobody_along(room: Room) -> None:
    room.start("/bin/sh")
    for who in (0, 1):
        room.see(who, PROMPT)
    os.close(room.controllers[0])
    room.type(1, "echo st''ill here\n")
    room.see(1, rf"still here\n{PROMPT}")
    os.close(room.controllers[1])
    room.controllers.clear()
    assert room.ending() == "nobody\n"


def test_a_shell_that_ends_by_itself_is_nobody(room: Room) -> None:
    room.start("/bin/true")
    assert room.ending() == "nobody\n"


def test_no_terminal_no_shell(room: Room) -> None:
    room.paths = ["/nonexistent/terminal"]
    room.start("/bin/sh")
    said = room.ending()
    assert "/bin/sh cannot be started on /nonexistent/terminal: No such file or directory" in said
    assert said.endswith("failed\n")


@pytest.mark.fault("P7")
def test_without_line_editing_there_is_a_plain_shell(room: Room) -> None:
    room.start("/bin/sh", relay_path="/nonexistent")
    room.see(0, PROMPT)
    room.type(0, "echo pl''ain\n")
    room.see(0, rf"plain\n{PROMPT}")
