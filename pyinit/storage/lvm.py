"""LVM: logical volumes are activated when their group is complete.

Only what was asked for is activated, by name, and lvm is shown only devices that are physical volumes: a disk
that nobody named is not even opened. A volume that can do without a lost device (RAID) is activated degraded
after a while, with a loud line.

Pools, caches, mirrors and the like write to their devices when they are activated. A system that is
hibernated has their state in its memory, so they wait until it is decided that none is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from math import inf
from time import monotonic

from pyinit.config.volumes import Volume
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children, find_program
from pyinit.storage.job import Job, run
from pyinit.storage.mappings import on_encrypted
from pyinit.text import printable

MEMBER = "LVM2_member"
LOCKS = "/run/lock/lvm"
#: Seconds that a group which lacks a device is waited for; mdadm's timer is of the same length.
DEGRADED_AFTER = 30.0
_CLOSE_TIMEOUT = 10.0
_SHOWN = 4
# lvm has these run before it activates a pool, and refuses the pool when one of them is not there.
_CHECKS = ("thin_check", "cache_check")
# What lvm says of names and UUIDs that are there twice.
# Those of which nothing is written when they are activated (lvmreport(7), "Selection").
_PLAIN = "(lv_layout=[linear] || lv_layout=[striped]) && lv_role=[public]"
_TWICE = ("multiple vgs found", "duplicate pv", "not using device", "skipping volume group")


class Lvm:
    """Activates logical volumes."""

    name = "lvm"

    def __init__(
        self,
        volumes: Iterable[Volume],
        everything: bool,
        configured: bool,
        children: Children,
        modules: Modules,
        console: Console,
        may_resume: Callable[[], bool] = lambda: False,
        resumed: Volume | None = None,
    ) -> None:
        """``everything``: any group that is complete; ``configured``: lvm.conf of the image counts.

        ``may_resume``: whether a hibernated system may still be resumed, from the volume ``resumed`` if
        one is named.
        """
        self._wanted = tuple(volumes)
        self._everything = everything
        self._configured = configured
        self._children = children
        self._modules = modules
        self._console = console
        self._may_resume = may_resume
        self._resumed = resumed
        self._restricted = False
        """Whether the last run activated only what may be while a system may be resumed."""
        self._held: tuple[str, ...] = ()
        """What it left, printable."""
        self._job: Job | None = None
        self._seen: frozenset[str] = frozenset()
        """The physical volumes that the last run was shown."""
        self._lacks: tuple[str, ...] = ()
        self._degraded_at = inf
        self._degraded = False

    def react(self, known: Collection[DeviceView]) -> None:
        """Activate what is wanted when another physical volume has come, or when time is over."""
        if self._job is not None:
            status = self._job.status()
            if status is None:
                return
            self._ended(status)
        left = [volume for volume in self._wanted if not is_active(volume, known)]
        if self._restricted and not self._may_resume():
            self._restricted, self._seen = False, frozenset()
        self._held = tuple("/".join(filter(None, volume)) for volume in left) if self._restricted else ()
        members = frozenset(view.node for view in known if view.properties.get("ID_FS_TYPE") == MEMBER)
        if not members or not (left or self._everything):
            self._degraded_at = inf
            return
        overdue = monotonic() >= self._degraded_at
        if members == self._seen and not overdue:
            return
        self._seen = members
        if overdue:
            self._degraded_at, self._degraded = inf, True
            for line in self._lacks:
                self._console.warning(f"lvm: {line}")
            self._console.warning(f"after {DEGRADED_AFTER:.0f} s volumes are activated that can do without")
        self._start(left, members)

    def wake(self) -> float:
        """When a group that is not complete is activated as far as possible."""
        return self._degraded_at if self._job is None else inf

    def holds(self) -> bool:
        """What is activated may be for something else than what is waited for."""
        return False

    def waits_for(self) -> tuple[str, ...]:
        """What is being activated, and what is missing."""
        if self._job is not None:
            return ("logical volumes are being activated",)
        if not self._seen:
            groups = dict.fromkeys(volume.group for volume in self._wanted)
            return tuple(f"no physical volume of volume group {printable(group)}" for group in groups)
        wait = "is activated when it is decided whether a system is resumed"
        return (*self._lacks, *(f"{printable(name)} {wait}" for name in self._held))

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """Deactivate what lies on an encrypted volume, so that this one can be closed."""
        if self._job is not None:
            self._job.kill()
            self._job = None
        self._seen, self._degraded_at, self._degraded = frozenset(), inf, False
        program = find_program("dmsetup")
        # What others lie on is in use until they are gone.
        while program and (mappings := on_encrypted("LVM-")):
            for name in mappings:
                status, said = run(self._children, [program, "remove", "--retry", name], _CLOSE_TIMEOUT)
                if status != 0:
                    self._console.warning(f"{printable(name)} stays active: {'; '.join(said)}")
                    return

    def forget(self) -> None:
        """There is no secret."""

    def _start(self, left: list[Volume], members: frozenset[str]) -> None:
        program = find_program("lvm")
        if not program:
            raise BootError(
                "E-LVM",
                "logical volumes cannot be activated: there is no lvm in the image",
                found=tuple(f"{printable(node)} is a physical volume" for node in sorted(members)),
                advice=("Build the image with --feature lvm.",),
            )
        os.makedirs(LOCKS, 0o700, exist_ok=True)
        self._modules.load("dm-mod")
        # Of a snapshot it asks whether its origin may be activated, too.
        argv = [program, "vgchange" if self._everything else "lvchange", "--sysinit", "--yes"]
        argv += ["--activate", "y"]
        argv += ["--activationmode", "degraded" if self._degraded else "complete"]
        argv += ["--devices", ",".join(sorted(members)), "--config", _settings()]
        self._restricted = self._may_resume()
        if self._restricted:
            argv[1] = "lvchange"
            argv += ["--select", selection(self._resumed)]
        if not self._everything:
            if all(all(volume) for volume in left):
                # Whoever names a thin snapshot means it, lvmthin(7), "Thin snapshot activation".
                argv.append("--ignoreactivationskip")
            argv += ["/".join(filter(None, volume)) for volume in left]
        # Without a system directory lvm reads no lvm.conf (lvm(8), LVM_SYSTEM_DIR).
        environment = {} if self._configured else {"LVM_SYSTEM_DIR": ""}
        try:
            self._job = Job(self._children, argv, environment)
        except OSError as error:
            raise BootError("E-LVM", f"{printable(program)} cannot be started: {error.strerror}") from error

    def _ended(self, status: int) -> None:
        job, self._job = self._job, None
        assert job is not None
        said = job.close()
        twice = [line for line in said if any(words in line.lower() for words in _TWICE)]
        if twice:
            # Those who made it so are told at once: waiting does not change it.
            self._seen = frozenset()
            raise BootError(
                "E-LVM",
                "volume groups or physical volumes are there twice",
                tried=(printable(" ".join(job.argv)),),
                found=tuple(f"lvm: {line}" for line in twice),
                advice=(
                    "Unplug the copy; or rename one group by its UUID: lvm vgrename UUID NAME; "
                    "or give a cloned disk new UUIDs: vgimportclone DEVICE.",
                ),
            )
        if status == 0:
            self._lacks, self._degraded_at = (), inf
            return
        self._lacks = tuple(said[-_SHOWN:]) or (f"lvm ended with status {status}",)
        if not self._degraded and self._degraded_at == inf:
            self._degraded_at = monotonic() + DEGRADED_AFTER


def is_active(volume: Volume, known: Collection[DeviceView]) -> bool:
    """Whether udev knows a logical volume; of a whole group, any of it."""
    return any(
        view.properties.get("DM_VG_NAME") == volume.group
        and (not volume.name or view.properties.get("DM_LV_NAME") == volume.name)
        for view in known
    )


def selection(resumed: Volume | None) -> str:
    """What may be activated while a system may be resumed, in lvm's words: plain volumes, and its own."""
    if resumed is None:
        return _PLAIN
    return f'({_PLAIN}) || (vg_name="{resumed.group}" && lv_name="{resumed.name}")'


def _settings() -> str:
    missing = [check for check in _CHECKS if not find_program(check)]
    checks = " ".join(f'{check}_executable=""' for check in missing)
    return f'global{{locking_dir="{LOCKS}" {checks}}} backup{{backup=0 archive=0}}'
