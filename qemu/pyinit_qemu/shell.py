"""A shell on a guest's console: commands in, output and exit status back."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from pyinit_qemu.machine import Machine
from pyinit_qemu.timing import Timeout


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    output: str
    """Standard output and standard error as plain text."""


class Shell:
    """A POSIX shell that reads the console and has shown its prompt, or is about to.

    ``prompt`` is a regular expression; ``allow`` names failure patterns that may show while it is waited for.
    """

    def __init__(
        self,
        machine: Machine,
        prompt: str,
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
    ) -> None:
        self.machine = machine
        self.allow = frozenset(allow)
        self._prompt = prompt
        self.wait(timeout)

    @classmethod
    def login(cls, machine: Machine, user: str = "root") -> Shell:
        """Log in at the prompt of a full system, with an account that has no password."""
        machine.expect(r"login: ", Timeout.LOGIN)
        machine.send_line(user)
        return cls(machine, rf"{re.escape(user)}@\S+[#$] ", Timeout.LOGIN)

    @classmethod
    def rescue(
        cls, machine: Machine, stage: str = "[a-z-]+", timeout: float | Timeout = Timeout.BOOT
    ) -> Shell:
        """The rescue shell of pyinit, after the explanation of whatever failed."""
        return cls(machine, rf"^pyinit:{stage}(?:/\S*)?# ", timeout, allow=("banner",))

    def wait(self, timeout: float | Timeout = Timeout.BOOT) -> None:
        """Wait for the next prompt."""
        self.machine.expect(self._prompt, timeout, allow=self.allow)

    def run(self, command: str, timeout: float | Timeout = Timeout.BOOT) -> Result:
        """Execute one line and wait for the prompt after it.

        What the terminal echoes cannot be taken for output: the marks around it are typed in two pieces.
        """
        if "\n" in command:
            raise ValueError(f"a command of several lines: {command!r}")
        first, second = secrets.token_hex(4), secrets.token_hex(4)
        mark = first + second
        typed = f"{first}''{second}"
        self.machine.send_line(f"echo {typed}; {command}; echo {typed}=$?")
        start = self.machine.expect(f"{mark}\n", timeout, allow=self.allow)
        end = self.machine.expect(rf"{mark}=([0-9]+)\n", timeout, allow=self.allow)
        self.wait(timeout)
        return Result(int(end[1]), end.string[start.end() : end.start()])

    def check(self, command: str, timeout: float | Timeout = Timeout.BOOT) -> str:
        """Execute one line that must succeed; return its output without the last end of line."""
        result = self.run(command, timeout)
        assert result.status == 0, f"{command}: exit status {result.status}\n{result.output}"
        return result.output.removesuffix("\n")

    def leave(self) -> None:
        """Type ``exit``."""
        self.machine.send_line("exit")
