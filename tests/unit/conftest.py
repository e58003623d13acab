"""Unit tests touch nothing: no process, no mount, no module, no restart of the machine that runs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pyinit.kernel import syscalls

_FORBIDDEN_EVENTS = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
)
_RESTART = "/proc/sysrq-trigger"
_HARMLESS_CALLS = frozenset({"statfs", "fstatfs"})
_HARMLESS_NUMBERS = {
    syscalls._NR_OPENAT2,
    *map(syscalls._number, (syscalls._NR_RT_SIGPROCMASK, syscalls._NR_RT_SIGACTION)),
}

_guarded = False


class ForbiddenEffect(BaseException):
    """A unit test did what only the real program may do. No ``except Exception`` swallows it."""


class _GuardedLibc:
    """Stands for the C library in ``pyinit.kernel.syscalls``: only calls that read go through."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        if name in _HARMLESS_CALLS:
            return getattr(self._real, name)
        if name == "syscall":
            return self._syscall
        raise ForbiddenEffect(f"a unit test called {name}(2)")

    def _syscall(self, number: object, *arguments: object) -> object:
        if getattr(number, "value", number) not in _HARMLESS_NUMBERS:
            raise ForbiddenEffect(f"a unit test made system call {number}")
        return self._real.syscall(number, *arguments)  # type: ignore[attr-defined]


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _guarded and (event in _FORBIDDEN_EVENTS or (event == "open" and arguments[0] == _RESTART)):
        raise ForbiddenEffect(f"a unit test caused {event}{arguments!r}")


# An audit hook stays for the life of the interpreter; it acts only while a guarded test runs.
sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def forbid_effects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Applies to every unit test but those with the marker ``effects``."""
    global _guarded
    if request.node.get_closest_marker("effects") is not None:
        yield
        return
    monkeypatch.setattr(syscalls, "_libc", _GuardedLibc(syscalls._libc))
    _guarded = True
    try:
        yield
    finally:
        _guarded = False
