"""The way back at shutdown: what is copied for it, and how a stack of devices is taken apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit import shutdown
from pyinit.kernel import mountinfo

SOURCE = Path(shutdown.__file__).parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shutdown, "PLACE", str(tmp_path / "place"))
    monkeypatch.setattr(shutdown, "UNITS", str(tmp_path / "units"))
    return tmp_path


def test_what_is_left_is_small_and_wanted_by_every_start(place: Path) -> None:
    (place / "root/usr/bin").mkdir(parents=True)
    (place / "root/usr/bin/python3").touch()
    for _ in range(2):  # The boot may come by again.
        shutdown.leave(str(place / "root"), str(SOURCE))
    left = [path for path in (place / "place").rglob("*") if path.is_file()]
    assert len(left) == len(shutdown.FILES)
    assert sum(path.stat().st_size for path in left) < 64 << 10
    wanted = place / "units/sysinit.target.wants" / shutdown.UNIT
    assert "ExecStop=/usr/bin/python3" in wanted.read_text()


def test_without_one_of_its_files_nothing_is_promised_to_systemd(place: Path) -> None:
    (place / "root/usr/bin").mkdir(parents=True)
    (place / "root/usr/bin/python3").touch()
    shutil.copytree(SOURCE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "source/kernel/mountinfo.py").unlink()
    with pytest.raises(FileNotFoundError):
        shutdown.leave(str(place / "root"), str(place / "source"))
    assert not (place / "units").exists()


def test_a_root_without_python_gets_nothing(place: Path) -> None:
    shutdown.leave(str(place / "root"), str(SOURCE))
    assert not (place / "place").exists() and not (place / "units").exists()


@pytest.mark.effects
def test_the_interpreter_works_where_it_was_copied_to(place: Path) -> None:
    """All of it but the change of the root directory: its own libraries and modules are found there."""
    shutdown.PLACE = str(place / "place")
    (place / "root/usr/bin").mkdir(parents=True)
    (place / "root/usr/bin/python3").touch()
    shutdown.leave(str(place / "root"), str(SOURCE))
    ramfs = place / "ramfs"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pyinit import shutdown;"
        "shutdown.PLACE = sys.argv[1]; shutdown.prepare(sys.argv[2])"
    )
    python = os.path.realpath(sys.executable)
    subprocess.run([python, "-IsSBc", code, str(place / "place"), str(ramfs)], check=True)
    assert os.access(ramfs / "shutdown", os.X_OK)
    for path in shutdown.mapped_files(Path("/proc/self/maps").read_bytes()):
        if "libc.so" in path or "ld-linux" in path:
            assert (ramfs / path.lstrip("/")).read_bytes() == Path(path).read_bytes()
    for module in ("encodings/__init__.py", "ctypes/__init__.py", "os.py"):
        folder = os.path.dirname(os.__file__)
        assert (ramfs / folder.lstrip("/") / module).is_file()
    assert sum(path.stat().st_size for path in ramfs.rglob("*") if path.is_file()) < 40 << 20


def test_mapped_files() -> None:
    maps = (
        b"00400000-00401000 r-xp 00000000 08:01 1    /usr/bin/env\n"
        b"7f00-7f01 rw-p 00000000 00:00 0\n"
        b"7ffc-7ffd rw-p 00000000 00:00 0   [stack]\n"
        b"7f02-7f03 r--p 0000 08:01 9   /usr/lib/x.so (deleted)\n"
    )
    assert list(shutdown.mapped_files(maps)) == ["/usr/bin/env"]


@given(st.binary(max_size=100))
def test_any_maps(data: bytes) -> None:
    for path in shutdown.mapped_files(data.replace(b"\0", b"")):
        assert path.startswith("/")


@given(st.text(max_size=140))
def test_the_request_for_a_mapping(name: str) -> None:
    try:
        request = shutdown.mapping_request(name)
    except ValueError:
        encoded = name.encode("utf-8", "surrogatepass")
        assert not encoded or len(encoded) > 127 or b"\0" in encoded or not name.isascii()
        return
    assert len(request) == 312
    assert int.from_bytes(request[12:16], sys.byteorder) == 312
    assert request[48:176].rstrip(b"\0") == os.fsencode(name)


class Machine:
    """Block devices as sysfs shows them; what is taken apart goes away, with what it holds."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.gone: list[str] = []
        self.busy: set[str] = set()
        self.said: list[str] = []
        monkeypatch.setattr(shutdown, "tell", self.said.append)
        monkeypatch.setattr(shutdown, "_remove_mapping", lambda name: self.remove(self.names[name]))
        monkeypatch.setattr(
            shutdown, "_write_attribute", lambda path, value: self.remove(path.split("/")[-3])
        )
        monkeypatch.setattr(shutdown, "_control", lambda path, *words: self.remove(path[5:]))
        self.names: dict[str, str] = {}

    def add(self, name: str, attribute: str, value: str, *below: str) -> None:
        place = self.top / name / attribute
        place.parent.mkdir(parents=True)
        place.write_text(f"{value}\n")
        self.names[value] = name
        for lower in below:
            holders = self.top / lower / "holders"
            holders.mkdir(parents=True, exist_ok=True)
            (holders / name).touch()

    def remove(self, name: str) -> None:
        if name in self.busy:
            raise OSError(16, "Device or resource busy")
        self.gone.append(name)
        for holder in self.top.glob(f"*/holders/{name}"):
            holder.unlink()
        (self.top / name).rename(self.top.parent / f"gone-{name}")

    def take_apart(self) -> list[str]:
        shutdown.take_apart(str(self.top))
        return self.gone


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "block", monkeypatch)
    made.add("vda1", "size", "1")
    made.add("md0", "md/array_state", "clean", "vda1")
    made.add("dm-0", "dm/name", "sda_crypt", "md0")
    made.add("dm-1", "dm/name", "vg-root", "dm-0")
    made.add("dm-2", "dm/name", "vg-swap", "dm-0")
    return made


def test_what_lies_above_goes_first(machine: Machine) -> None:
    assert machine.take_apart() == ["dm-1", "dm-2", "dm-0", "md0"]
    assert machine.said[-1] == "array md0 is closed"


def test_what_is_in_use_stays_and_is_named(machine: Machine) -> None:
    machine.busy.add("dm-2")
    assert machine.take_apart() == ["dm-1"]
    assert machine.said == ["vg-root (dm-1) is closed", "vg-swap (dm-2) stays: Device or resource busy"]


def test_below_the_old_root_the_highest_is_unmounted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = mountinfo.parse(
        b"1 0 0:1 / / rw - tmpfs t rw\n3 2 0:5 / /oldroot/dev rw - devtmpfs d rw\n"
        b"2 1 254:1 / /oldroot ro - ext4 /dev/mapper/vg-root ro\n4 1 0:9 / /oldroots rw - tmpfs t rw\n"
    )
    monkeypatch.setattr(shutdown.mountinfo, "read", lambda: mounts)
    done: list[tuple[str, int]] = []

    def umount2(target: str, flags: int = 0) -> None:
        done.append((target, flags))
        if target == "/oldroot/dev" and not flags:
            raise OSError(16, "Device or resource busy")

    said: list[str] = []
    monkeypatch.setattr(shutdown, "umount2", umount2)
    monkeypatch.setattr(shutdown, "tell", said.append)
    shutdown.unmount("/oldroot")
    assert done == [("/oldroot/dev", 0), ("/oldroot/dev", shutdown.MNT_DETACH), ("/oldroot", 0)]
    assert said == [
        "/oldroot/dev cannot be unmounted: Device or resource busy",
        "the root file system (/dev/mapper/vg-root) is unmounted",
    ]
