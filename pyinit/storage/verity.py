"""dm-verity: a root whose every block is checked against one hash, opened with the target's veritysetup."""

from __future__ import annotations

import os
from collections.abc import Collection
from math import inf
from typing import TYPE_CHECKING

from pyinit.config import devspec
from pyinit.config.verity import DEVICE, NAME, VerityWords, halves, normal_hash
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children, find_program
from pyinit.storage.job import Job, run
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

    def __init__(self, words: VerityWords, children: Children, modules: Modules, console: Console) -> None:
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
        self._console = console
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
        if self._devices:
            self._lacks = ()
            return
        for view in known:
            # What somebody else has opened under this name was not checked against this hash.
            if view.properties.get("DM_NAME") == NAME and os.path.exists(view.sys_path):
                self._take_away(view)
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
        for name in on_encrypted("CRYPT-VERITY-") if program else ():
            status, said = run(self._children, [program, "close", name], _CLOSE_TIMEOUT)
            if status != 0:
                self._console.warning(f"{printable(name)} stays open: {'; '.join(said)}")
            self._devices = ()

    def forget(self) -> None:
        """There is no secret."""

    def _take_away(self, view: DeviceView) -> None:
        """Close a mapping that has the name of the root, if it is one of this kind; else ``E-VERITY``."""
        program = find_program("veritysetup")
        if view.properties.get("DM_UUID", "").startswith("CRYPT-VERITY-") and program:
            status, said = run(self._children, [program, "close", NAME], _CLOSE_TIMEOUT)
            if status == 0:
                return
        else:
            said = [f"its UUID is {printable(view.properties.get('DM_UUID', '')) or 'not known'}"]
        raise BootError(
            "E-VERITY",
            f"{DEVICE} is there already, and was not checked against roothash={self._hash}",
            tried=("only a root that is opened with this hash is used",),
            found=(describe(view), *said[-_SHOWN:]),
            advice=(
                f"Close it, and give it another name: {NAME} is that of the checked root.",
                _UNCHECKED,
            ),
        )

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
            ended, more = run(self._children, [job.argv[0], "close", NAME], _CLOSE_TIMEOUT)
            said += more if ended != 0 else []
        raise BootError(
            "E-VERITY",
            f"the root is not the one that roothash={self._hash} belongs to"
            if corrupt
            else f"the root cannot be opened with its hashes (status {status})",
            tried=(printable(" ".join(job.argv)),),
            found=(
                *(f"veritysetup: {line}" for line in said[-_SHOWN:]),
                *list(dict.fromkeys(f"kernel: {m}" for m in kernel_messages(500) if "verity" in m))[-_SHOWN:],
                *map(describe, devices),
            ),
            advice=(
                "Compare roothash= with what veritysetup format printed for this root; one that was changed "
                "by anybody has another.",
                f"To check all of it: veritysetup verify {' '.join(nodes)} {self._hash}",
                _UNCHECKED,
            ),
        )


def explain_damage(error: BootError, roothash: str) -> BootError:
    """``E-VERITY`` in place of an error that comes of blocks which do not fit the hash; else the error."""
    said = [line for line in kernel_messages(500) if "verity" in line and "corrupted" in line]
    if not said:
        return error
    return BootError(
        "E-VERITY",
        f"the root does not fit roothash={roothash}: parts of it were changed or are damaged",
        tried=(error.cause, *error.tried),
        found=tuple(f"kernel: {line}" for line in list(dict.fromkeys(said))[-_SHOWN:]),
        advice=(
            "Boot another version of the root, or write this one anew from where it came.",
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
    return Verity(words, context.children, context.modules, context.console)
