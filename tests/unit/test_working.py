"""Who is at work while a boot waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyinit.rescue.working import Process, describe_work, parse_stat


def stat(pid: int, name: bytes, state: str, parent: int, ticks: int) -> bytes:
    fields = [state, str(parent), *["0"] * 17, str(ticks), *["0"] * 30]
    return b"%d (%s) %s\n" % (pid, name, " ".join(fields).encode())


def test_a_name_may_have_any_character() -> None:
    process = parse_stat(stat(7, b"a) R 1 (b\n\x1b", "D", 3, 1250), ("/dev/sda",))
    assert process == Process(7, "a) R 1 (b\\x0a\\x1b", "D", 3, 12.5, ("/dev/sda",))


@given(st.binary())
def test_no_bytes_surprise_it(data: bytes) -> None:
    parse_stat(data)


@given(
    st.integers(1, 1 << 22), st.binary(max_size=20), st.sampled_from("RSDTtZXI"), st.integers(0, 1 << 22),
    st.integers(0, 1 << 40),
)  # fmt: skip
def test_what_the_kernel_writes_is_read(pid: int, name: bytes, state: str, parent: int, ticks: int) -> None:
    process = parse_stat(stat(pid, name, state, parent, ticks))
    assert process is not None
    assert (process.pid, process.state, process.parent) == (pid, state, parent)
    assert process.name.isprintable() and process.name.isascii()


def child(pid: int, *argv: str, start: float = 1.0, end: float | None = None) -> dict[str, object]:
    return {"pid": pid, "argv": list(argv), "start": start * 1e6, "end": end}


UDEVD = child(20, "/usr/lib/systemd/systemd-udevd", "--resolve-names=never")


def test_programs_and_busy_workers_are_told_and_idle_ones_are_not() -> None:
    children = [UDEVD, child(21, "/sbin/lvm", "pvscan", start=4), child(22, "/sbin/mdadm", end=3)]
    processes = [
        Process(20, "systemd-udevd", "S", 1, 1.0, ()),
        Process(30, "(udev-worker)", "D", 20, 2.0, ("/dev/sda",)),
        Process(31, "(udev-worker)", "S", 20, 2.0, ()),
        Process(32, "(udev-worker)", "S", 20, 8.0, ("/dev/sdb",)),
        Process(40, "sh", "R", 1, 2.0, ()),
    ]
    assert describe_work(children, processes, True, 10.0) == [
        "/sbin/lvm pvscan (process 21) runs since 6 s",
        "worker 30 of udevd, started 8 s ago, in uninterruptible sleep: a device does not answer, "
        "with /dev/sda open",
        "worker 32 of udevd, started 2 s ago, with /dev/sdb open",
        "udevd has not finished all events: /run/udev/queue is there",
    ]


def test_a_stopped_udevd_is_told() -> None:
    assert describe_work([UDEVD], [Process(20, "systemd-udevd", "T", 1, 1.0, ())], False, 9.0) == [
        "udevd (process 20) is stopped"
    ]


def test_a_worker_that_runs_without_anything_to_do_is_about_to_end() -> None:
    workers = [Process(30, "(udev-worker)", "R", 20, 2.0, ())]
    assert describe_work([UDEVD], workers, False, 9.0) == []
    assert describe_work([UDEVD], workers, True, 9.0)[0] == "worker 30 of udevd, started 7 s ago, running"


def test_when_nobody_works_nothing_is_said() -> None:
    assert describe_work([UDEVD], [Process(20, "systemd-udevd", "S", 1, 1.0, ())], False, 9.0) == []
