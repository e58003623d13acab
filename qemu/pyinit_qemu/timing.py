"""Deadlines, and default timeouts that fit the speed of the machine they run on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum


class Timeout(Enum):
    """What a wait is for; the value is seconds on the machine of reference (:data:`REFERENCE_PROBE`)."""

    LAUNCH = 30.0
    """QEMU has started and answers on its control connection."""
    QMP = 20.0
    """One control command."""
    BOOT = 120.0
    """From power on to the real init, or to any one thing on the way there."""
    LOGIN = 300.0
    """From power on to the login prompt of a full distribution."""
    POWEROFF = 40.0
    """From the result channel's last frame to the end of QEMU."""
    STALL = 100.0
    """Neither console nor result channel said anything: the guest hangs."""


REFERENCE_PROBE = 4.0
"""Seconds that a kernel without initramfs and disk takes to give up (Debian's 6.1 under TCG) on the machine
for which the timeouts were chosen."""


@dataclass(frozen=True)
class TimeScale:
    """How much slower than the machine of reference this one is; never below 1."""

    factor: float = 1.0

    @classmethod
    def from_probe(cls, seconds: float) -> TimeScale:
        """Scale by the ``seconds`` that the probe boot took."""
        return cls(round(min(max(seconds / REFERENCE_PROBE, 1.0), 20.0), 2))

    def seconds(self, timeout: float | Timeout) -> float:
        """Return seconds: a :class:`Timeout` scaled, a number as it is."""
        return timeout.value * self.factor if isinstance(timeout, Timeout) else timeout


class Deadline:
    """A point of monotonic time."""

    __slots__ = ("end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.end - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.end
