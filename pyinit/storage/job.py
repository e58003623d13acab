"""A program that works while the boot waits for devices, and what it said."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyinit.kernel.process import Children
from pyinit.text import printable

_OUTPUT = 65536
_KILL_TIMEOUT = 5.0


class Job:
    """One run; its output is in memory, so that nobody has to read a pipe meanwhile."""

    def __init__(
        self, children: Children, argv: Sequence[str], environment: dict[str, str] | None = None
    ) -> None:
        """Start it; OSError when that fails."""
        self.argv = tuple(argv)
        self._children = children
        self._output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            self._pid = children.start(argv, environment=environment, stdout=self._output)
        except OSError:
            os.close(self._output)
            raise

    def status(self) -> int | None:
        """How it ended, None while it runs."""
        return self._children.status(self._pid)

    def wait(self, timeout: float) -> int | None:
        """How it ended, waiting at most so many seconds."""
        return self._children.wait(self._pid, timeout)

    def close(self) -> list[str]:
        """The printable lines that it said, after its end."""
        return [printable(line.strip()) for line in self.output().splitlines() if line.strip()]

    def output(self) -> bytes:
        """What it said, after its end; once."""
        with open(self._output, "rb", closefd=True) as file:
            file.seek(0)
            return file.read(_OUTPUT)

    def kill(self) -> None:
        """End it; one that the kernel does not let go is not waited for."""
        if self.status() is None:
            try:
                os.kill(self._pid, 9)
            except ProcessLookupError:
                pass
            self._children.wait(self._pid, _KILL_TIMEOUT)
        self.close()


def run(children: Children, argv: Sequence[str], timeout: float) -> tuple[int | None, list[str]]:
    """Run a program; how it ended, None after ``timeout`` seconds, and its printable lines. OSError."""
    job = Job(children, argv)
    status = job.wait(timeout)
    if status is None:
        job.kill()
        return None, []
    return status, job.close()
