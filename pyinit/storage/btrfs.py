"""btrfs on several devices: a file system that lacks some is mounted only when ``rootflags=degraded`` asks.

udev says of every member whether the kernel has seen all of them (its builtin ``btrfs ready``), so there is
nothing to start here. What is left is the decision to go on without the missing ones, after a while and
aloud: a file system that was once mounted without a member has to be mended afterwards (btrfs(5),
``degraded``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf
from time import monotonic

from pyinit.config import devspec
from pyinit.context import Context
from pyinit.devices.view import DeviceView
from pyinit.kernel.console import Console
from pyinit.text import printable

#: Seconds after its first member at which a file system is mounted without the others; as for arrays.
DEGRADED_AFTER = 30.0


class Btrfs:
    """Decides when a root on several devices is used without all of them."""

    name = "btrfs"

    def __init__(self, spec: devspec.DeviceSpec, accept: Callable[[], None], console: Console) -> None:
        """``accept`` is called when what is incomplete is to be used."""
        self._spec = spec
        self._accept = accept
        self._console = console
        self._members: tuple[str, ...] = ()
        self._at = inf
        self._accepted = False

    def react(self, known: Collection[DeviceView]) -> None:
        """Look whether members are missing, and since when."""
        if self._accepted:
            return
        lacking = devspec.incomplete(self._spec, known)
        self._members = tuple(printable(view.node) for view in lacking)
        if not lacking:
            self._at = inf
        elif self._at == inf:
            self._at = monotonic() + DEGRADED_AFTER
        elif monotonic() >= self._at:
            self._at, self._accepted = inf, True
            self._console.warning(
                f"{self._describe()}; it is mounted without the others after {DEGRADED_AFTER:.0f} s"
            )
            self._accept()

    def wake(self) -> float:
        """When it is used as it is."""
        return self._at

    def holds(self) -> bool:
        """There is nothing at work."""
        return False

    def waits_for(self) -> tuple[str, ...]:
        """The members that are there."""
        return (self._describe(),) if self._members and not self._accepted else ()

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """There is nothing to close."""

    def forget(self) -> None:
        """There is no secret."""

    def _describe(self) -> str:
        return f"the file system is not complete; its devices here: {', '.join(self._members)}"


def make(context: Context) -> Btrfs | None:
    """The decision for a root that may be used without all of its devices; None when it may not."""
    if context.spec is None or "degraded" not in context.config.rootflags.split(","):
        return None

    def accept() -> None:
        context.degraded = True

    return Btrfs(context.spec, accept, context.console)
