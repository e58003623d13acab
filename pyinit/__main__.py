"""The entry of PID 1."""

from __future__ import annotations

from time import monotonic_ns, sleep

# Before everything else: what is imported from here on is part of the boot.
STARTED = monotonic_ns() // 1000

import gc  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402


def main() -> None:
    """Run as PID 1: ``sys.argv[1:]`` are the environment words, an empty word, and the original argv."""
    words = [os.fsencode(word) for word in sys.argv[1:]]
    if os.getpid() != 1:
        sys.exit(
            "pyinit is PID 1 of an initramfs; it does nothing as another process. See pyinit-image --help."
        )
    try:
        gc.disable()  # A boot makes little garbage, and PID 1 is soon another program.
        from pyinit import lean_typing

        lean_typing.install()
        from pyinit.boot import Boot

        middle = words.index(b"") if b"" in words else len(words)
        Boot(words[:middle], words[middle + 1 :], STARTED).run()
    except BaseException as exception:
        _last_guard(exception)


def _last_guard(exception: BaseException) -> None:
    """PID 1 may not end: the kernel would panic. Say what is known, with what still works, and stay."""
    try:
        import traceback

        traceback.print_exception(exception)
    except BaseException:
        pass
    try:
        os.write(2, b"pyinit: E-INTERNAL pyinit itself failed and cannot go on; restarting in a minute\n")
    except OSError:
        pass
    while True:
        sleep(60)
        try:
            from pyinit.rescue.shell import end_machine

            end_machine("reboot")
        except BaseException:
            continue
