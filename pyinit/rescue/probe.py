"""What is on a block device that udevd has not looked at: before it was started, after it was stopped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyinit.devices.view import DeviceView
from pyinit.kernel.files import read_if_there
from pyinit.kernel.process import Children, find_program
from pyinit.record import Record
from pyinit.storage.job import Job

# Seconds for one device; one that does not answer in this time stays as it is.
_PATIENCE = 5.0
_PROPERTY = re.compile(r"([A-Z][A-Z0-9_]*)=(.+)")


def probed(views: Iterable[DeviceView]) -> list[DeviceView]:
    """The devices, those that udevd did not see with the properties that it would have found."""
    children = Children(Record("", ""))
    program = find_program("udevadm")
    return [
        view if view.initialized or not program or _is_empty(view) else _probed(view, program, children)
        for view in views
    ]


def properties(output: bytes) -> dict[str, str]:
    """What ``udevadm test-builtin`` prints: lines ``NAME=value`` between messages (udevadm(8))."""
    lines = output.decode("utf-8", "backslashreplace").split("\n")
    return {found[1]: found[2] for line in lines if (found := _PROPERTY.fullmatch(line))}


def _probed(view: DeviceView, program: str, children: Children) -> DeviceView:
    try:
        job = Job(children, [program, "test-builtin", "blkid", view.sys_path])
    except OSError:
        return view
    if job.wait(_PATIENCE) is None:
        job.kill()
        return view
    return view._replace(properties={**view.properties, **properties(job.output())})


def _is_empty(view: DeviceView) -> bool:
    """An unused loop device, a drive without a medium."""
    return read_if_there(f"{view.sys_path}/size").strip() in (b"", b"0")
