"""dm-verity: a root whose every block is checked against one hash, opened with the target's veritysetup."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import TYPE_CHECKING

from pyinit.config import devspec
from pyinit.config.verity import DEVICE, NAME, VerityWords, halves, normal_hash
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.errors import BootError
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children, find_program
from pyinit.storage.job import Job
from pyinit.storage.mappings import on_encrypted
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.context import Context

_CLOSE_TIMEOUT = 10.0
_SHOWN = 4
# What veritysetup says of a device that it has opened and that the hash does not fit; it ends with 0.
_CORRUPT = "corruption"


class Verity:
    """Opens the root when its data and its hashes are there."""

    name = "verity"

    def __init__(self, words: VerityWords, children: Children, modules: Modules) -> None:
        """``E-CMDLINE`` when the words make no sense: a root that was to be checked is not used unchecked."""
        self._hash = normal_hash(words.roothash)
        if not self._hash:
            raise BootError(
                "E-CMDLINE",
                f"roothash={printable(words.roothash)[:140]} is no hash: pairs of hexadecimal digits are",
                advice=("veritysetup format prints it when it makes the hashes.", _UNCHECKED),
            )
        data, hashes = halves(self._hash)
        self._specs = (
            _device("systemd.verity_root_data", words.data or f"PARTUUID={data}"),
            _device("systemd.verity_root_hash", words.hashes or f"PARTUUID={hashes}"),
        )
        self._options = words.options
        self._children = children
        self._modules = modules
        self._job: Job | None = None
        self._devices: tuple[DeviceView, ...] = ()
        self._lacks: tuple[str, ...] = ()

    def react(self, known: Collection[DeviceView]) -> None:
        """Open it when both devices are there."""
        if self._job is not None:
            status = self._job.status()
            if status is not None:
                self._ended(status)
            return
        if self._devices or any(view.properties.get("DM_NAME") == NAME for view in known):
            self._lacks = ()
            return
        found = []
        lacks = []
        for spec, what in zip(self._specs, ("the data of the root", "the hashes of the root"), strict=True):
            views = devspec.carriers(spec, known)
            if len(views) > 1:
                raise BootError(
                    "E-AMBIG",
                    f"{len(views)} devices match {what}: {devspec.describe(spec)}",
                    found=tuple(map(describe, views)),
                    advice=("Remove the copy, or name the devices: systemd.verity_root_data=/dev/...",),
                )
            found += views
            if not views:
                lacks.append(f"no device with {what}, {devspec.describe(spec)}")
        self._lacks = tuple(lacks)
        if not lacks:
            self._start(tuple(found))

    def wake(self) -> float:
        """Nothing is due by time."""
        return inf

    def holds(self) -> bool:
        """While it is being opened."""
        return self._job is not None

    def waits_for(self) -> tuple[str, ...]:
        """Which of the two is missing."""
        return ("the root is being opened",) if self._job is not None else self._lacks

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """Close what lies on an encrypted volume, so that this one can be closed."""
        program = find_program("veritysetup")
        for name in on_encrypted(b"CRYPT-VERITY-") if program else ():
            self._children.wait(self._children.start([program, "close", name]), _CLOSE_TIMEOUT)
            self._devices = ()

    def forget(self) -> None:
        """There is no secret."""

    def _start(self, devices: tuple[DeviceView, ...]) -> None:
        program = find_program("veritysetup")
        if not program:
            raise BootError(
                "E-VERITY",
                "the root cannot be checked: there is no veritysetup in the image",
                found=tuple(map(describe, devices)),
                advice=("Build the image with --feature verity.", _UNCHECKED),
            )
        for module in ("dm-mod", "dm-verity"):
            self._modules.load(module)
        data, hashes = (view.node for view in devices)
        argv = [program, "open", data, NAME, hashes, self._hash, *(f"--{word}" for word in self._options)]
        try:
            self._job = Job(self._children, argv)
        except OSError as error:
            raise BootError(
                "E-VERITY", f"{printable(program)} cannot be started: {error.strerror}"
            ) from error
        self._devices = devices

    def _ended(self, status: int) -> None:
        job, self._job = self._job, None
        assert job is not None
        said = job.close()
        corrupt = any(_CORRUPT in line.lower() for line in said)
        if status == 0 and not corrupt:
            return
        devices, self._devices = self._devices, ()
        nodes = [printable(view.node) for view in devices]
        if status == 0:
            # Of a root that is not what it should be nothing is read.
            self._children.wait(self._children.start([job.argv[0], "close", NAME]), _CLOSE_TIMEOUT)
        raise BootError(
            "E-VERITY",
            f"the root is not the one that roothash={self._hash} belongs to"
            if corrupt
            else f"the root cannot be opened with its hashes (status {status})",
            tried=(printable(" ".join(job.argv)),),
            found=(
                *(f"veritysetup: {line}" for line in said[-_SHOWN:]),
                *[f"kernel: {line}" for line in kernel_messages(500) if "verity" in line][:_SHOWN],
                *map(describe, devices),
            ),
            advice=(
                "Compare roothash= with what veritysetup format printed for this root; one that was changed "
                "by anybody has another.",
                f"To check all of it: veritysetup verify {' '.join(nodes)} {self._hash}",
                _UNCHECKED,
            ),
        )


_UNCHECKED = (
    "To boot it unchecked, whatever was done to it: pyinit set systemd.verity=0 root=DEVICE, then leave the "
    "shell."
)


def _device(word: str, text: str) -> devspec.DeviceSpec:
    try:
        return devspec.parse_spec(text)
    except BootError as error:
        cause = f"{word}={printable(text)[:120]} names no device"
        raise BootError("E-CMDLINE", cause, advice=error.advice) from error


def make(context: Context) -> Verity:
    """The assembler for a root that is checked; ``E-CMDLINE`` when root= names another."""
    words, root = context.config.verity, context.config.root
    assert words is not None
    if context.spec is None or context.spec.value != DEVICE:
        raise BootError(
            "E-CMDLINE",
            f"roothash= makes the root {DEVICE}, but root={printable(root)[:120]} names another device",
            advice=(
                f"Leave root= out, or: pyinit set root={DEVICE}; the device with the data is named with "
                "systemd.verity_root_data=.",
                _UNCHECKED,
            ),
        )
    return Verity(words, context.children, context.modules)
