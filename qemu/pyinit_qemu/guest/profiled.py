"""PID 1 with a watch: times every import, and has the kernel tell who gets the CPU.

It stands in an image as ``/usr/lib/pyinit/pyinit_profiled.py``, and its ``/init`` starts this instead of
pyinit (:mod:`pyinit_qemu.profile_boot`). What was timed goes into the boot record as ``imports``:
name, start and end in microseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import sys
from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TRACING = "/sys/kernel/tracing"
EVENTS = "sched:sched_switch"

imports: list[tuple[str, int, int]] = []


def watch() -> None:
    """Take the place of what the interpreter calls for every module that is not loaded yet."""
    bootstrap: Any = sys.modules["_frozen_importlib"]
    find_and_load = bootstrap._find_and_load

    def timed(name: str, import_: object) -> object:
        start = monotonic_ns() // 1000
        try:
            return find_and_load(name, import_)
        finally:
            imports.append((name, start, monotonic_ns() // 1000))
            if name == "pyinit.boot":
                _join_in()

    bootstrap._find_and_load = timed


def _join_in() -> None:
    """Add to what PID 1 does: tracing when /sys is there, the imports to the record."""
    from pyinit import record

    boot: Any = sys.modules["pyinit.boot"]
    mount_all = boot.mount_api_filesystems
    encode = record.Record.encode

    def mount_and_trace(warn: Any) -> None:
        mount_all(warn)
        from pyinit.kernel.syscalls import mount

        try:
            mount("tracefs", TRACING, "tracefs")
            with open(f"{TRACING}/set_event", "w") as file:
                file.write(EVENTS)
        except OSError as error:
            warn(f"no tracing: {error.strerror}")

    def encode_all(self: record.Record, *, messages: bool = True) -> bytes:
        self.data["imports"] = imports
        return encode(self, messages=messages)

    boot.mount_api_filesystems = mount_and_trace
    record.Record.encode = encode_all  # type: ignore[method-assign]


def main() -> None:
    watch()
    from pyinit.__main__ import main as run

    run()
