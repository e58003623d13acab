"""The entry of PID 1, and what stands between an exception that nobody caught and the end of PID 1."""

from __future__ import annotations

from time import monotonic_ns, sleep

# Before everything else: what is imported from here on is part of the boot.
STARTED = monotonic_ns() // 1000

import gc  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

# Before main() can catch it, an import that fails would be the end of PID 1: no more than is needed.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pyinit.boot import Boot

_READING_TIME = 10.0
_KMSG_LIMIT = 900


def main() -> None:
    """Run as PID 1: ``sys.argv[1:]`` are the environment words, an empty word, and the original argv."""
    words = [os.fsencode(word) for word in sys.argv[1:]]
    if os.getpid() != 1:
        sys.exit(
            "pyinit is PID 1 of an initramfs; it does nothing as another process. See pyinit-image --help."
        )
    boot = None
    try:
        gc.disable()  # A boot makes little garbage, and PID 1 is soon another program.
        from pyinit import lean_typing

        lean_typing.install()
        from pyinit.boot import Boot

        middle = words.index(b"") if b"" in words else len(words)
        boot = Boot(words[:middle], words[middle + 1 :], STARTED)
        boot.run()
    except BaseException as exception:
        while True:
            try:
                last_guard(exception, boot)
            except BaseException:
                continue


def last_guard(exception: BaseException, boot: Boot | None) -> NoReturn:
    """Tell what happened with what still works, then end the machine as the policy says.

    PID 1 may not end, for the kernel would panic, and there is nothing left that could open a shell. Here
    anything may fail: memory is gone, files are missing.
    """
    try:
        _tell(exception)
    except BaseException:
        pass
    try:
        if boot is not None:
            boot.guard.policy().give_up("pyinit cannot go on", boot.console)
    except BaseException:
        _say("pyinit: what follows a failure failed, too")
    while True:
        try:
            _end_as_the_line_says()
        except BaseException:
            pass
        try:
            sleep(_READING_TIME)
        except BaseException:
            pass


def _tell(exception: BaseException) -> None:
    name = type(exception).__name__
    try:
        summary = ascii(f"{name}: {exception}")[1:-1][:300]
    except BaseException:
        summary = name
    if isinstance(exception, MemoryError):
        _say(f"pyinit: E-MEM pyinit itself ran out of memory; {_memory()}")
    else:
        _say(f"pyinit: E-INTERNAL pyinit itself failed where nothing catches it: {summary}")
        if isinstance(exception, ImportError):
            _say(f"pyinit: the image is not complete, or memory was too small to unpack it; {_memory()}")
    # The innermost frames; without traceback, which may not be there to be imported.
    frames = []
    trace = exception.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"pyinit:   {code.co_filename} line {trace.tb_lineno}, in {code.co_name}")
        trace = trace.tb_next
    for frame in frames[-12:]:
        _say(frame)


def _memory() -> str:
    # sysinfo(2), because /proc may not be mounted.
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(name) * page >> 20 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return f"this machine has {total} MiB, {free} MiB of them free"


def _end_as_the_line_says() -> NoReturn:
    """What ``rd.emergency=`` or ``panic=`` say of failures, when the policy itself cannot be asked."""
    from pyinit.kernel.ending import ACTIONS, end_machine

    action = "poweroff"
    try:
        with open("/proc/cmdline", "rb") as file:
            words = file.read().split()
        if any(word.startswith(b"panic=") and word != b"panic=0" for word in words):
            action = "reboot"
        action = next((name for name in ACTIONS if b"rd.emergency=" + name.encode() in words), action)
    except BaseException:
        pass
    _say(f"pyinit: {action} in {_READING_TIME:.0f} s")
    sleep(_READING_TIME)
    end_machine(action)


def _say(line: str) -> None:
    """Write a line to the kernel's log and to the console, which may both be missing or stopped."""
    data = line.encode("ascii", "backslashreplace")
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    # On the console already, or as an error that the kernel shows even with "quiet".
    priority = 7
    try:
        fd = os.open("/dev/console", flags)
        try:
            os.write(fd, data + b"\r\n")
        finally:
            os.close(fd)
    except OSError:
        priority = 3
    try:
        fd = os.open("/dev/kmsg", flags)
        try:
            os.write(fd, b"<%d>" % priority + data[:_KMSG_LIMIT])
        finally:
            os.close(fd)
    except OSError:
        pass
