"""The report that a bug report needs: ``/run/initramfs/rdsosreport.txt``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.record import Record, timeline
from pyinit.root.mount import kernel_messages
from pyinit.text import printable

REPORT_PATH = "/run/initramfs/rdsosreport.txt"


def write_report(explanation: list[str], record: Record, devices: Iterable[DeviceView]) -> None:
    """Write the report; OSError when /run is full or absent."""
    sections: list[tuple[str, list[str]]] = [
        ("failure", explanation),
        ("kernel command line", [record.data["cmdline"]]),
        ("timeline", timeline(json.loads(record.encode()))),
        ("block devices", [describe(view) for view in devices]),
        ("mounts", _lines("/proc/self/mountinfo")),
        ("modules", _lines("/proc/modules")),
        ("memory", _lines("/proc/meminfo")[:5]),
        ("kernel warnings", kernel_messages(200)),
        ("log", [message["text"] for message in record.data["messages"]]),
    ]
    fd = os.open(REPORT_PATH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii", errors="backslashreplace") as file:
        for title, lines in sections:
            file.write(f"--- {title}\n")
            file.writelines(f"{line}\n" for line in lines)


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return [printable(line) for line in file.read().splitlines()]
    except OSError as error:
        return [f"{path}: {error.strerror}"]
