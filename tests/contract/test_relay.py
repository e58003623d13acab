"""The terminal of the rescue shell, with real pseudo-terminals and the shell of this system."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinit.kernel.process import Children
from pyinit.record import Record
from pyinit.rescue.relay import NOBODY

REPOSITORY = Path(__file__).parents[2]
START = "from pyinit.rescue.relay import main;main()"
PROMPT = "here# "


class Person:
    """Somebody at a terminal that has a relayed shell."""

    def __init__(self, shell: str = "/bin/sh") -> None:
        self.controller, device = os.openpty()
        self.path = os.ttyname(device)
        self.before = termios.tcgetattr(device)
        self.device = device
        termios.tcsetwinsize(device, (24, 80))
        self.children = Children(Record("1", "6"))
        environment = {"PS1": PROMPT, "PYTHONPATH": str(REPOSITORY), "TERM": "vt220", "HISTFILE": ""}
        argv = [sys.executable, "-S", "-s", "-P", "-B", "-c", START, shell]
        self.pid = self.children.start(argv, environment=environment, terminal=self.path)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.controller, keys.encode())

    def see(self, pattern: str) -> re.Match[str]:
        """Wait until it is shown, behind what was seen before."""
        while not (found := re.search(pattern, self.text)):
            assert select.select([self.controller], [], [], 30)[0], f"never shown: {pattern}; {self.text!r}"
            self.text += os.read(self.controller, 65536).decode().replace("\r\n", "\n")
        self.text = self.text[found.end() :]
        return found

    def status(self) -> int | None:
        return self.children.wait(self.pid, 30)


@pytest.fixture
def person() -> Iterator[Person]:
    person = Person()
    person.see(PROMPT)
    yield person
    for end in (person.controller, person.device):
        os.close(end)
    person.status()


def test_lines_are_edited_remembered_and_completed(person: Person) -> None:
    person.type("echo wrld\x1b[D\x1b[D\x1b[Do\n")
    person.see(rf"\nworld\n{PROMPT}")
    person.type("\x1b[A\x17again\n")
    person.see(rf"\nagain\n{PROMPT}")
    person.type("cd /pro\t\n")
    person.see(rf"cd /proc/\n{PROMPT}")
    person.type("cat self/comm\t\n")
    person.see(rf"\ncat\n{PROMPT}")
    person.type("exit 7\n")
    assert person.status() == 0
    assert termios.tcgetattr(person.device) == person.before


def test_jobs_are_controlled(person: Person) -> None:
    person.type("sh -c 'echo in''terruptible; exec sleep 1000'\n")
    person.see("\ninterruptible\n")
    person.type("\x03")
    person.see(rf"\^C\n{PROMPT}")
    person.type("sh -c 'echo st''oppable; exec sleep 1000'\n")
    person.see("\nstoppable\n")
    person.type("\x1a")
    person.see(rf"Stopped[^\n]*\n{PROMPT}")
    person.type("jobs; kill -9 %1\n")
    person.see(rf"sleep 1000[^\0]*\n{PROMPT}")
    person.type("half a command\x03")
    person.see(rf"half a command\^C\n(?:.*\n)*{PROMPT}")
    # The first one only warns as long as the shell has not noticed that the job is gone.
    person.type("\x04\x04")
    assert person.status() == 0


def test_what_reads_lines_has_editing_and_a_history_of_its_own(person: Person) -> None:
    person.type("sh -c 'echo re''ady; exec cat'; echo th''en\n")
    person.see("\nready\n")
    person.type("oen\x7f\x7f\x7fone\n")
    person.see("one\none\n")
    person.type("\x1b[A\n")
    person.see("one\none\n")
    person.type("\x04")
    person.see(rf"then\n{PROMPT}")
    person.type("\x1b[A\x15echo $?\n")
    person.see(rf"\n0\n{PROMPT}")


def test_a_password_is_not_shown(person: Person) -> None:
    person.type("stty -echo; echo re''ady; read secret; stty echo; echo got $secret\n")
    person.see("\nready\n")
    person.type("open\tsesame\x7fE\n")
    assert person.see(rf"got [^\n]*\n{PROMPT}")[0] == f"got opensesamE\n{PROMPT}"
    person.type("\x1b[A")
    person.see("stty -echo; echo")


def test_a_program_that_takes_keys_gets_each(person: Person) -> None:
    program = "stty -icanon -echo min 1; echo re''ady; dd bs=1 count=4 2>/dev/null | od -An -c; stty sane\n"
    person.type(program)
    person.see("\nready\n")
    person.type("\x1b[A\r")
    person.see(r"033 +\[ +A +\\n\n")
    # "stty sane" took the mode away that makes lines here; it comes back with the prompt.
    person.see(PROMPT)
    person.type("echo lines\x1b[D\x1b[D\x7f\n")
    person.see(rf"\nlies\n{PROMPT}")


def test_what_is_pasted_reaches_who_it_is_for(person: Person) -> None:
    person.type("cat > /dev/null\nnot a command\n\x04echo af''ter\n")
    person.see(rf"after\n{PROMPT}")


def test_plenty_of_output_comes_through(person: Person) -> None:
    person.type("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done\n")
    person.see(rf"line 2998\nline 2999\n{PROMPT}")


def test_a_terminal_that_goes_away_has_nobody(person: Person) -> None:
    os.close(person.controller)
    assert person.status() in (NOBODY, -signal.SIGHUP)
    person.controller = os.open("/dev/null", os.O_RDONLY)


def test_a_shell_that_ends_before_a_key_was_pressed_has_nobody() -> None:
    person = Person("/bin/true")
    assert person.status() == NOBODY
    os.close(person.controller)
    os.close(person.device)


def test_a_shell_that_is_not_there_is_told() -> None:
    person = Person("/nonexistent")
    person.see("pyinit: no line editing here: No such file or directory\n")
    assert person.status() == 1
    assert termios.tcgetattr(person.device) == person.before
    os.close(person.controller)
    os.close(person.device)


def test_a_relay_that_is_killed_takes_the_shell_along(person: Person) -> None:
    person.type("echo $$ pid\n")
    shell = int(person.see(r"\n(\d+) pid\n")[1])
    os.kill(person.pid, signal.SIGKILL)
    assert person.status() == -signal.SIGKILL
    handle = -1
    try:
        handle = os.pidfd_open(shell)
        assert select.select([handle], [], [], 60)[0]
    except ProcessLookupError:
        pass
    finally:
        if handle >= 0:
            os.close(handle)
