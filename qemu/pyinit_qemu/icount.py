"""Makes a clock that counts instructions honest about disks, and tells when it was not.

With ``-icount shift=0,sleep=off`` an idle guest's clock jumps to the next timer. That is right while the
guest sleeps. It is wrong while it waits for a disk: QEMU hands a request to another thread of the host, the
guest has nothing to do meanwhile, and the clock jumps from timer to timer until that thread has had its turn.
So the data must be there before the guest's next instruction, which :class:`pyinit_qemu.spec.VmSpec` calls
``instant_disks``:

- The request is made by the thread that runs the guest (``ioeventfd=off``), not handed to the main loop.
- It is made with io_uring. What is in the page cache then completes within the system call, and QEMU looks
  for completed requests right after it (``ioq_submit`` in its block/io_uring.c).
- The disk image is in the page cache (:func:`warm`).

Only when the host forbids io_uring, or the image does not fit into memory, the clock can still run ahead.
How far it did is what the guest's kernel itself accounts as ``iowait`` (:func:`idle_for_disks`).
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from pyinit_qemu.spec import PROGRAM, Program, VmSpec

WARM_LIMIT = 2 << 30
"""Bytes of an image that are read ahead; what is larger may not stay in memory."""

_CHUNK = 4 << 20
_PROBE = b'{"execute":"qmp_capabilities"}{"execute":"quit"}'
_OPTIONS = "-nodefaults -no-user-config -display none -machine none -qmp stdio -blockdev"
_TICKS = 100
"""Of /proc/stat in a second: USER_HZ, the same on all architectures that we know of."""


@cache
def instant_disks(program: Program = PROGRAM) -> str:
    """Return why disks cannot be instant on this host with this QEMU; an empty text when they can.

    QEMU is asked to open a file with io_uring: the kernel (``kernel.io_uring_disabled``), a container's
    system call filter (Docker's forbids it) or QEMU itself may be without it. Takes a tenth of a second,
    once.
    """
    node = f'{{"driver":"file","node-name":"probe","filename":"{Path(__file__)}","read-only":true,'
    command = [*program, *_OPTIONS.split(), node + '"aio":"io_uring"}']
    try:
        ended = subprocess.run(command, input=_PROBE, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"QEMU could not be asked: {error}"
    said = ended.stderr.decode("utf-8", "replace").strip()
    if ended.returncode == 0 and not said:
        return ""
    return said.splitlines()[-1] if said else f"QEMU ended with status {ended.returncode}"


def steadied(spec: VmSpec, program: Program = PROGRAM) -> VmSpec:
    """Return the machine with instant disks, if its clock needs them and this host has them.

    The images are read into the page cache on the way.
    """
    if not spec.icount or not spec.disks or instant_disks(program):
        return spec
    for disk in spec.disks:
        warm(Path(disk.path))
    return spec.replace(instant_disks=True)


def warm(path: Path, limit: int = WARM_LIMIT) -> int:
    """Read what is allocated of a file, so that it is in the page cache; return how many bytes were read.

    Reading stops at ``limit`` bytes. A file that cannot be read is left to whoever opens it next.
    """
    done = end = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while done < limit:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                os.lseek(file.fileno(), start, os.SEEK_SET)
                while start < end and done < limit:
                    count = len(file.read(min(_CHUNK, end - start, limit - done)))
                    if not count:
                        return done
                    start += count
                    done += count
    except OSError:
        pass  # ENXIO: no data behind this place
    return done


def idle_for_disks(stat: str) -> float | None:
    """Read ``iowait`` out of the ``cpu`` line of /proc/stat, in seconds; None when there is no such line.

    That is how long the guest had nothing to do because a task waited for a disk, to 10 ms
    (proc_stat(5)). Disks that are instant leave nothing of it; with others, it is by how much an
    instruction-counting clock ran ahead.
    """
    found = re.search(r"\bcpu(?: +[0-9]{1,18}){4} +([0-9]{1,18})\b", stat, re.ASCII)
    return int(found[1]) / _TICKS if found else None
