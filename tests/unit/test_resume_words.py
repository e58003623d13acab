"""Hibernation: what is asked for, what a swap header says, and what comes of each case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.options import boot_config
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import Want
from pyinit.errors import BootError
from pyinit.kernel import mountinfo
from pyinit.kernel.console import Console
from pyinit.kernel.patience import Patience
from pyinit.record import Record
from pyinit.root import resume as module
from pyinit.root.resume import Memory, Resume, parse_header

MARKED, PLAIN = b"SWAPSPACE2S1SUSPEND\0".rjust(4096, b"\0"), b"SWAPSPACE2".rjust(4096, b"\0")


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("", ("", 0)),
        ("resume=UUID=5a5a-1", ("UUID=5a5a-1", 0)),
        ("resume=/dev/vda2 resume_offset=4294967297", ("/dev/vda2", 4294967297)),
        ("resume=/dev/vda2 resume=", ("", 0)),
        ("resume=none", ("", 0)),
        ("resume=off", ("", 0)),
        ("noresume resume=/dev/vda2", ("", 0)),
        ("resume=/dev/vda2 hibernate=noresume", ("", 0)),
        ("resume=/dev/vda2 hibernate=no", ("", 0)),
        ("resume=/dev/vda2 nohibernate", ("", 0)),
        ("resume=/dev/vda2 hibernate=nocompress", ("/dev/vda2", 0)),
    ],
)
def test_words(line: str, asked: tuple[str, int]) -> None:
    config = boot_config(line.encode())
    assert (config.resume, config.resume_offset) == asked


def test_an_offset_that_is_no_number_is_told() -> None:
    config = boot_config(b"resume=/dev/vda2 resume_offset=0x10")
    assert config.resume_offset == 0
    assert "resume_offset=0x10 is not understood" in config.warnings[0]


def test_the_image_says_it_and_the_boot_loader_counts_more() -> None:
    assert boot_config(b"resume=UUID=1", b"resume=UUID=2").resume == "UUID=2"
    assert boot_config(b"resume=UUID=1", b"noresume").resume == ""


@pytest.mark.parametrize(
    ("mark", "writer"),
    [
        (b"S1SUSPEND\0", "kernel"),
        (b"S1SUSPENDx", ""),
        (b"S2SUSPEND\0", "uswsusp"),
        (b"ULSUSPEND\0", "uswsusp"),
        (b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c\0\0", "TuxOnIce"),
        (b"SWAPSPACE2", ""),
    ],
)
def test_marks(mark: bytes, writer: str) -> None:
    found = parse_header(b"SWAPSPACE2".rjust(4086, b"\0") + mark)
    assert found == (Memory(writer, b"SWAPSPACE2") if writer else None)
    assert parse_header(mark) is None


@given(st.binary(max_size=40), st.sampled_from([b"", b"S1SUSPEND\0", b"LINHIB0001"]))
def test_any_page(start: bytes, mark: bytes) -> None:
    found = parse_header(start + mark)
    if found is None:
        assert not mark or len(start) < 10 or start.endswith(mark)
    else:
        assert found.writer.isprintable() and found.before in (b"", b"SWAPSPACE2", b"SWAP-SPACE")


class Try:
    """A try to resume from a file in place of a device."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record = Record("1", "6")
        self.disk, self.kernel, self.offset = (folder / name for name in ("disk", "resume", "offset"))
        self.kernel.touch()
        self.offset.touch()
        self.rested = 0
        monkeypatch.setattr(module, "RESUME", str(self.kernel))
        monkeypatch.setattr(module, "OFFSET", str(self.offset))
        monkeypatch.setattr(module, "kernel_messages", lambda count: ["x", "PM: Image mismatch: memory size"])
        monkeypatch.setattr(module.mountinfo, "read", lambda: ())
        monkeypatch.setattr(module.os, "sysconf", lambda name: 4096)

    def __call__(self, content: bytes, offset: int = 0, **properties: str) -> list[str]:
        """What is warned about."""
        self.disk.write_bytes(content)
        console = Console(self.record)
        view = DeviceView("/sys/d", "vda2", "block", "disk", str(self.disk), (254, 2), (), properties, True)
        Resume("/dev/vda2", offset, console, Patience(console)).go(view, self.rest)
        return self.warnings()

    def rest(self) -> None:
        self.rested += 1

    def warnings(self) -> list[str]:
        return [m["text"] for m in self.record.data["messages"] if m["level"] == "warning"]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    return Try(tmp_path, monkeypatch)


def test_swap_space_without_memory_is_where_the_kernel_hibernates_to(attempt: Try) -> None:
    assert attempt(PLAIN) == []
    assert (attempt.kernel.read_bytes(), attempt.offset.read_bytes()) == (b"254:2", b"0")
    assert attempt.disk.read_bytes() == PLAIN
    assert attempt.rested == 0


def test_memory_that_the_kernel_leaves_there_is_never_resumed_later(attempt: Try) -> None:
    told = attempt(bytes(8192) + MARKED, offset=2)
    assert attempt.rested == 1
    assert (attempt.kernel.read_bytes(), attempt.offset.read_bytes()) == (b"254:2", b"2")
    assert (
        f"the system that is hibernated on {attempt.disk} was not resumed: the kernel refused it" in told[0]
    )
    assert told[1:] == ["warning: kernel: PM: Image mismatch: memory size"]
    assert attempt.disk.read_bytes()[-10:] == b"SWAPSPACE2"


def test_a_header_that_was_no_swap_space_is_left_and_told(attempt: Try) -> None:
    page = MARKED.replace(b"SWAPSPACE2", b"nonsense..")
    assert "use mkswap" in attempt(page)[-1]
    assert attempt.disk.read_bytes() == page


def test_a_kernel_without_hibernation(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OFFSET", str(attempt.offset.parent / "missing" / "offset"))
    assert "this kernel is built without hibernation" in attempt(MARKED)[0]
    assert attempt.disk.read_bytes()[-10:] == b"SWAPSPACE2"


def test_memory_of_other_programs_is_left_alone(attempt: Try) -> None:
    (told,) = attempt(MARKED.replace(b"S1", b"UL"))
    assert "written by uswsusp" in told
    assert attempt.kernel.read_bytes() == b""


def test_a_file_system_without_an_offset(attempt: Try) -> None:
    (told,) = attempt(bytes(4096), ID_FS_USAGE="filesystem", ID_FS_TYPE="ext4")
    assert "resume_offset= is needed" in told
    assert attempt.kernel.read_bytes() == b""


def test_a_mounted_disk_forbids_it(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = mountinfo.parse(
        b"22 1 0:5 / /dev rw - devtmpfs devtmpfs rw\n30 1 8:1 / /tmp/x ro - ext4 /dev/sda1 ro\n"
    )
    monkeypatch.setattr(module.mountinfo, "read", lambda: mounts)
    with pytest.raises(BootError, match="E-RESUME .* cannot be resumed any more: /dev/sda1 was mounted"):
        attempt(MARKED)
    assert attempt.kernel.read_bytes() == b""
    assert attempt.disk.read_bytes() == MARKED


def test_a_disk_that_cannot_be_read(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module.os, "pread", fail)
    (told,) = attempt(MARKED)
    assert "cannot be read for a hibernated system: Input/output error" in told


def find(asked: str, wait: Callable[[Want], DeviceView], limit: float | None) -> tuple[object, list[str]]:
    record = Record("1", "6")
    console = Console(record)
    found = Resume(asked, 0, console, Patience(console)).find(wait, limit)
    return found, [m["text"] for m in record.data["messages"]]


@pytest.mark.parametrize(("limit", "seconds"), [(None, 35.0), (180, 35.0), (5, 5)])
def test_the_device_is_waited_for_a_while(limit: float | None, seconds: float) -> None:
    swap = DeviceView(
        "/s", "vda2", "block", "disk", "/dev/vda2", (8, 2), (),
        {"ID_FS_TYPE": "swap", "ID_FS_UUID": "5a5a-2"}, True,
    )  # fmt: skip

    def wait(want: Want) -> DeviceView:
        assert want.timeout == seconds
        assert want.resolve([swap]) == []
        raise BootError("E-DEV", f"resume: {want.spec} did not appear within 5 s")

    found, told = find("UUID=5a5a-1", wait, limit)
    assert found is None
    assert "a hibernated system would not be resumed; the boot goes on" in told[0]
    assert any("swap space here: /dev/vda2" in line for line in told)


def test_another_failure_is_one_of_the_boot() -> None:
    def wait(want: Want) -> DeviceView:
        raise BootError("E-UNLOCK", "vault cannot be unlocked")

    with pytest.raises(BootError, match="E-UNLOCK"):
        find("/dev/mapper/vault", wait, None)


@given(st.text(max_size=100))
def test_any_name(asked: str) -> None:
    def wait(want: Want) -> DeviceView:
        raise BootError("E-DEV", "x")

    found, told = find(asked, wait, 1)
    assert found is None and told
    assert all(line.isascii() and line.isprintable() for line in told)
