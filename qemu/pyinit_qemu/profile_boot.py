"""Boots an image of ours once with everything timed, to see where its time goes (:mod:`.waterfall`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyinit_image import archive
from pyinit_image.trampoline import CODE
from pyinit_qemu.appended import with_files
from pyinit_qemu.bench import ICOUNT_SLOWNESS, steady
from pyinit_qemu.machine import Machine
from pyinit_qemu.moments import record_lines
from pyinit_qemu.slots import Slots
from pyinit_qemu.spec import VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.waterfall import WORDS, Waterfall, WaterfallError, waterfall

GUEST = Path(__file__).with_name("guest") / "profiled.py"
PLACE = "/usr/lib/pyinit/pyinit_profiled.py"
_CODE = "from pyinit_profiled import main;main()"


def profiled(image: Path) -> Path:
    """The same image with a PID 1 that is timed; WaterfallError for an image that is not pyinit's."""
    init = archive.tree(archive.read(image.read_bytes())).get("/init")
    if init is None or CODE.encode() not in init.data:
        raise WaterfallError(f"{image}: its /init is not pyinit's")
    # The program is made of tables of addresses: what it executes must keep its length.
    code = _CODE.ljust(len(CODE)).encode()
    assert len(code) == len(CODE)
    return with_files(image, {"/init": init.data.replace(CODE.encode(), code), PLACE: GUEST.read_bytes()})


def profile(spec: VmSpec, scale: TimeScale) -> Waterfall:
    """Boot a machine whose image is one of :func:`profiled` to the witness, and say where the time went.

    Raises :class:`pyinit_qemu.MachineError` when it does not boot, :class:`WaterfallError` when it leaves too
    little behind.
    """
    return plain(spec.replace(append=f"{WORDS} {spec.append}"), scale)


def plain(spec: VmSpec, scale: TimeScale) -> Waterfall:
    """The same of a machine as it is, whose kernel tells less: the phases, and what the boot record has."""
    spec = steady(spec)
    slots = Slots()
    slots.acquire()
    try:
        with Machine(spec, scale=TimeScale(scale.factor * ICOUNT_SLOWNESS)) as machine:
            machine.run()
            outcome = machine.finish(Timeout.BOOT).check()
    finally:
        slots.release()
    frame = next((frame for frame in outcome.frames if frame["kind"] == "witness"), None)
    if frame is None:
        raise WaterfallError("the witness sent nothing")
    return read(frame)


def read(frame: Mapping[str, Any]) -> Waterfall:
    """The waterfall of a boot from what its witness sent; WaterfallError when that is not enough."""
    try:
        lines = list(record_lines(frame["kmsg"]["all"] or frame["kmsg"]["moments"]))
        record, trace = frame["boot"], frame["trace"]
        return waterfall(lines, record, record.get("imports", ()) if record else (), trace)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WaterfallError(f"not a witness's report: {type(error).__name__}: {error}") from error
