"""The kernel's own words: the records of /dev/kmsg."""

from __future__ import annotations

import os

from pyinit.text import printable


def kernel_messages(count: int, lowest: int = 5) -> list[str]:
    """The kernel's last messages, printable, oldest first; ``lowest`` 5: notices, warnings and errors."""
    lines: list[str] = []
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return lines
    try:
        while True:
            try:
                record = parse_kernel_message(os.read(fd, 8192))
            except BrokenPipeError:
                continue  # Older records were overwritten meanwhile.
            if record is not None and record[0] <= lowest:
                lines.append(record[1])
    except OSError:
        pass
    finally:
        os.close(fd)
    return lines[-count:]


def parse_kernel_message(record: bytes) -> tuple[int, str] | None:
    """The level and the printable text of one record of /dev/kmsg, if the kernel itself wrote it.

    Format: Documentation/ABI/testing/dev-kmsg. Above level 7 the number says which program wrote it.
    """
    header, semicolon, text = record.partition(b";")
    level = header.split(b",", 1)[0]
    if not semicolon or len(level) != 1 or not b"0" <= level <= b"7":
        return None
    return int(level), printable(text.split(b"\n", 1)[0])
