"""A failure as a person reads it."""

from __future__ import annotations

from pyinit.errors import BootError
from pyinit.kernel import memory

FAILURE_PATH = "/run/pyinit/failure"


def render(error: BootError, stage: str) -> list[str]:
    """The lines of an explanation: cause, what was tried, what is there instead, what to do."""
    lines = [f"{error.code} {error.cause}", f"  in stage {stage}"]
    for heading, items in (("tried", error.tried), ("found", error.found), ("to do", error.advice)):
        for number, item in enumerate(items):
            lines.append(f"  {heading + ':' if number == 0 else '':<7} {item}")
    return lines


def internal_error(exception: BaseException) -> BootError:
    """Turn any exception into an explanation, its traceback included; never raises."""
    if isinstance(exception, MemoryError):
        return memory.too_small("pyinit itself ran out of memory")
    try:
        import traceback

        from pyinit.text import printable

        trace = traceback.format_exception(exception)
        lines = tuple(printable(line) for part in trace[-12:] for line in part.rstrip().split("\n"))
        summary = printable(f"{type(exception).__name__}: {exception}")[:300]
    except BaseException:
        # No memory or no stack left to tell more.
        lines, summary = (), type(exception).__name__
    return BootError(
        "E-INTERNAL",
        f"pyinit itself failed: {summary}",
        found=lines,
        advice=(
            "A defect of pyinit, or a damaged image. `pyinit report --to PLACE` copies a report to a stick.",
        ),
    )
