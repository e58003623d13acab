"""What the witness (``guest/witness.py``) of a test root found, as values to assert on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinit_qemu.moments import moments


class WitnessError(Exception):
    """A frame that is not a witness's, or in which the witness says that it could not read something."""


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    id: int
    parent: int
    dev: str
    """Device number, ``major:minor``."""
    root: str
    target: str
    options: frozenset[str]
    """Those of the mount and those of the file system; ``ro`` is in it when either says so, else ``rw``."""
    type: str
    source: str


@dataclass(frozen=True)
class Process:
    """A process besides the witness that is no kernel thread."""

    pid: int
    ppid: int
    state: str
    """As in /proc/PID/stat: ``Z`` for one that has ended and was not reaped yet."""
    comm: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Root:
    """The mounted root file system."""

    dev: str
    type: str
    read_only: bool
    options: frozenset[str]
    device: str
    """Kernel name of the block device, ``vda1``."""
    links: tuple[str, ...]
    """udev's links to it below /dev/disk."""
    properties: Mapping[str, str]
    """What the udev database has on it, ``ID_FS_UUID`` and so on; nothing if its records were cleaned up."""


@dataclass(frozen=True)
class Witness:
    """Everything the real init was handed.

    Text was bytes in the guest; what is not UTF-8 is surrogate-escaped.
    """

    argv: tuple[str, ...]
    environ: tuple[str, ...]
    """The words as they stood in memory, in order."""
    fds: Mapping[int, str]
    """Open file descriptors and what they lead to."""
    signals_blocked: frozenset[int]
    signals_ignored: frozenset[int]
    pid: int
    ppid: int
    sid: int
    pgid: int
    tty: int
    """Device number of the controlling terminal, 0 for none."""
    uids: tuple[int, ...]
    """Real, effective, saved."""
    gids: tuple[int, ...]
    umask: int
    cwd: str
    limits: Mapping[str, tuple[str, str]]
    """Soft and hard limit by the name in /proc/self/limits, ``Max open files``."""
    cmdline: str
    mounts: tuple[Mount, ...]
    memory: Mapping[str, int]
    """/proc/meminfo in bytes, after children were reaped: ``MemAvailable``, ``Shmem``, ``Unevictable``..."""
    tainted: int
    release: str
    root: Root
    processes: tuple[Process, ...]
    """At the very start."""
    leftovers: tuple[Process, ...]
    """What was not gone after children were reaped for two seconds."""
    run: tuple[str, ...]
    """Every path below /run."""
    dev: tuple[str, ...]
    """Paths below /dev, without those of terminals and those named by number."""
    boot: Mapping[str, Any] | None
    """The boot record, decoded; None when there is none."""
    kernel_log: tuple[str, ...]
    """Its last lines."""
    started: int
    """When the witness's interpreter ran, in microseconds since the kernel started."""
    executed: int
    """When the real init was executed, likewise; from a clock of 10 ms when the kernel's log lacks it."""
    run_init: int | None
    """When the kernel executed /init, likewise; None when its log no longer holds the line."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment as a table; the first word wins, as in getenv(3)."""
        pairs = [word.partition("=") for word in reversed(self.environ)]
        return {name: value for name, _, value in pairs}

    @property
    def udev_database(self) -> tuple[str, ...]:
        """Names of the records in /run/udev/data."""
        prefix = "/run/udev/data/"
        return tuple(path.removeprefix(prefix) for path in self.run if path.startswith(prefix))

    def mount(self, target: str) -> Mount | None:
        """The mount that is on top at ``target``."""
        return next((mount for mount in reversed(self.mounts) if mount.target == target), None)

    @classmethod
    def parse(cls, frame: Mapping[str, Any]) -> Witness:
        """Read a frame of kind ``witness``; :class:`WitnessError` says what is wrong with it."""
        if frame.get("kind") != "witness":
            raise WitnessError(f"a frame of kind {frame.get('kind')!r}, not a witness's")
        if errors := frame.get("errors"):
            raise WitnessError(f"the witness could not read everything: {errors}")
        try:
            return _parse(frame)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WitnessError(f"not a witness's report: {type(error).__name__}: {error}") from error


def _parse(frame: Mapping[str, Any]) -> Witness:
    identity = frame["identity"]
    signals = dict(_pairs(frame["signals"]))
    mounts = tuple(parse_mount(line) for line in frame["mountinfo"].splitlines())
    facts = frame["root"]
    top = next(mount for mount in reversed(mounts) if mount.target == "/")
    stat = frame["stat"]
    boot = frame["boot"]
    if boot is not None and not isinstance(boot, dict):
        raise TypeError("the boot record is no table")
    run_init = frame["kmsg"]["run_init"]
    executed = moments("", frame).executed
    if executed is None:
        raise ValueError("no time of execution")
    return Witness(
        argv=_texts(frame["arguments"]["argv"]),
        environ=_texts(frame["arguments"]["environ"]),
        fds={int(number): _text(target) for number, target in frame["fds"].items()},
        signals_blocked=signal_set(signals["SigBlk"]),
        signals_ignored=signal_set(signals["SigIgn"]),
        pid=int(identity["pid"]),
        ppid=int(identity["ppid"]),
        sid=int(identity["sid"]),
        pgid=int(identity["pgid"]),
        tty=int(stat[stat.rindex(")") + 2 :].split()[4]),
        uids=tuple(map(int, identity["uids"])),
        gids=tuple(map(int, identity["gids"])),
        umask=int(identity["umask"]),
        cwd=_text(identity["cwd"]),
        limits=_limits(frame["limits"]),
        cmdline=_text(frame["cmdline"]).removesuffix("\n"),
        mounts=mounts,
        memory={name: int(value.split()[0]) * 1024 for name, value in _pairs(frame["meminfo"])},
        tainted=int(frame["tainted"]),
        release=_text(frame["release"]),
        root=Root(
            dev=_text(facts["dev"]),
            type=top.type,
            read_only=bool(facts["read_only"]),
            options=top.options,
            device=_text(facts["device"]),
            links=_texts(facts["links"]),
            properties=_properties(facts["udev"]),
        ),
        processes=tuple(map(_process, frame["processes"])),
        leftovers=tuple(map(_process, frame["leftovers"])),
        run=_texts(frame["run"]),
        dev=_texts(frame["dev"]),
        boot=boot,
        kernel_log=_texts(frame["kmsg"]["tail"]),
        started=int(frame["started"]),
        executed=executed.time,
        run_init=None if run_init is None else int(run_init),
    )


def _process(entry: Mapping[str, Any]) -> Process:
    return Process(
        int(entry["pid"]),
        int(entry["ppid"]),
        _text(entry["state"]),
        _text(entry["comm"]),
        tuple(_text(entry["argv"]).split("\0")[:-1]),
    )


def parse_mount(line: str) -> Mount:
    """Read a line of mountinfo whose characters are bytes; ``ValueError`` when it is none."""
    fields = line.split(" ")
    end = fields.index("-", 6)
    kind, source, options = fields[end + 1 : end + 4]
    merged = set(fields[5].split(",")) | set(options.split(","))
    if "ro" in merged:
        merged.discard("rw")
    return Mount(
        int(fields[0]),
        int(fields[1]),
        fields[2],
        _unescape(fields[3]),
        _unescape(fields[4]),
        frozenset(map(_unescape, merged)),
        _unescape(kind),
        _unescape(source),
    )


def signal_set(mask: str) -> frozenset[int]:
    """The numbers in a signal mask as /proc/PID/status shows it: bit 0 is signal 1."""
    value = int(mask, 16)
    return frozenset(number + 1 for number in range(value.bit_length()) if value >> number & 1)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value.encode("latin-1").decode("utf-8", "surrogateescape")


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _unescape(field: str) -> str:
    return _text(re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), field))


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [line.partition(":") for line in text.splitlines()]
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _limits(text: str) -> dict[str, tuple[str, str]]:
    rows = [re.split(r"\s{2,}", line) for line in text.splitlines()[1:]]
    return {row[0]: (row[1], row[2]) for row in rows}


def _properties(database: str) -> dict[str, str]:
    pairs = [line[2:].partition("=") for line in _text(database).splitlines() if line.startswith("E:")]
    return {name: value for name, _, value in pairs}
