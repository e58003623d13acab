"""Which modules are loaded, in which order, with which options."""

from __future__ import annotations

import fcntl
import lzma
import os
from errno import EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.cmdline import parse
from pyinit.config.sealed import Aliases, ModuleEntry, ModuleIndex
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules, matches
from pyinit.record import Record


class Kernel:
    """Stands in for finit_module(2): remembers what it was given, refuses what it is told to."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str, int]] = []
        self.refuses: dict[str, int] = {}
        self.live: set[str] = set()

    def load(self, fd: int, options: str, flags: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition(".")[0]
        if name in self.refuses:
            raise OSError(self.refuses[name], os.strerror(self.refuses[name]))
        self.loaded.append((name, options, flags))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.loaded]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def index(tmp_path: Path) -> ModuleIndex:
    modules = {
        "ext4": ModuleEntry("ext4.ko", ("crc16", "mbcache", "jbd2"), ""),
        "jbd2": ModuleEntry("jbd2.ko", (), ""),
        "crc16": ModuleEntry("crc16.ko.xz", (), ""),
        "mbcache": ModuleEntry("mbcache.ko", (), ""),
        "virtio_blk": ModuleEntry("virtio_blk.ko", (), "queue_depth=4"),
        "gone": ModuleEntry("gone.ko", (), ""),
    }
    for entry in modules.values():
        if entry.path != "gone.ko":
            (tmp_path / entry.path).touch()
    aliases = (
        ("fs-ext4", "ext4"),
        ("virtio:d00000002v*", "virtio_blk"),
        ("pci:v*d*sv*sd*bc01sc06i01*", "ext4"),
    )
    return ModuleIndex(str(tmp_path), modules, Aliases.of(aliases), frozenset({"vfat"}), ())


def make(index: ModuleIndex, kernel: Kernel, line: bytes = b"", blacklist: tuple[str, ...] = ()) -> Modules:
    return Modules(
        index, Console(Record("1", "6")), parse(line).words, blacklist, kernel.load, kernel.live.__contains__
    )


def test_dependencies_come_first_and_nothing_twice(index: ModuleIndex, kernel: Kernel) -> None:
    modules = make(index, kernel)
    assert modules.load("ext4") and modules.load("jbd2") and modules.load("ext4")
    assert kernel.names == ["crc16", "mbcache", "jbd2", "ext4"]


def test_a_faster_hash_is_loaded_first_and_missed_in_silence(index: ModuleIndex, kernel: Kernel) -> None:
    console = Console(Record("1", "6"))
    modules = Modules(
        index._replace(first=("crc16", "ext4")), console, (), (), kernel.load, kernel.live.__contains__
    )
    kernel.refuses["crc16"] = ENODEV
    modules.load_first()
    assert [entry["name"] for entry in console.record.data["modules"]] == ["crc16", "ext4"]
    assert [message["level"] for message in console.record.data["messages"]] == ["debug"]


def test_compressed_files_are_left_to_the_kernel(index: ModuleIndex, kernel: Kernel) -> None:
    make(index, kernel).load("ext4")
    flags = {name: flag for name, _, flag in kernel.loaded}
    assert flags["crc16"] == 4 and flags["ext4"] == 0


@pytest.mark.parametrize("errno", [EOPNOTSUPP, EINVAL])
def test_what_the_kernel_cannot_unpack_is_unpacked_for_it(errno: int, index: ModuleIndex) -> None:
    """Built without CONFIG_MODULE_DECOMPRESS, or older than the flag."""
    plain, given, refused = bytes(range(256)) * 4096, [], []

    def load(fd: int, options: str, flags: int) -> None:
        if flags:
            refused.append(fd)
            raise OSError(errno, os.strerror(errno))
        # The kernel takes no file that is open for writing, and reads from the beginning.
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        given.append((os.pread(fd, 1 << 24, 0), options))

    packed = Path(index.directory) / "crc16.ko.xz"
    packed.write_bytes(lzma.compress(plain, check=lzma.CHECK_CRC32))
    console = Console(Record("1", "6"))
    modules = Modules(index, console, parse(b"crc16.a=1").words, (), load, lambda name: False)
    assert modules.load("crc16") and given == [(plain, "a=1")] and len(refused) == 1
    for damaged in (packed.read_bytes()[:-40], b"no xz file", b""):
        packed.write_bytes(damaged)
        again = Modules(index, console, (), (), load, lambda name: False)
        assert not again.load("crc16")
        assert console.record.data["messages"][-1]["text"] == (
            "warning: module crc16 cannot be loaded: Exec format error"
        )
    assert len(given) == 1


def test_options_of_the_image_and_of_the_command_line_are_passed(index: ModuleIndex, kernel: Kernel) -> None:
    make(index, kernel, b'virtio-blk.num_request_queues=1 virtio_blk.x="a b" rd.debug ro').load("virtio_blk")
    assert kernel.loaded == [("virtio_blk", 'queue_depth=4 num_request_queues=1 x="a b"', 0)]


def test_dashes_and_underscores_are_one(index: ModuleIndex, kernel: Kernel) -> None:
    assert make(index, kernel).load("virtio-blk")


def test_what_is_built_in_or_not_there(index: ModuleIndex, kernel: Kernel) -> None:
    modules = make(index, kernel)
    assert modules.load("vfat")
    assert not modules.load("nothing")
    assert kernel.names == []


def test_blacklisted_modules_are_not_loaded(index: ModuleIndex, kernel: Kernel) -> None:
    assert not make(index, kernel, blacklist=("virtio-blk",)).load("virtio_blk")
    assert kernel.names == []


def test_a_module_that_is_there_already_counts_as_loaded(index: ModuleIndex, kernel: Kernel) -> None:
    kernel.refuses["jbd2"] = EEXIST
    assert make(index, kernel).load("jbd2")


def test_what_udevd_has_loaded_is_not_given_to_the_kernel_again(index: ModuleIndex, kernel: Kernel) -> None:
    kernel.live |= {"crc16", "jbd2"}
    assert make(index, kernel).load("ext4")
    assert kernel.names == ["mbcache", "ext4"]


def test_a_soft_dependency_that_this_processor_lacks_is_no_reason_to_worry(
    index: ModuleIndex, kernel: Kernel
) -> None:
    kernel.refuses["crc16"] = ENODEV
    record = Record("1", "6")
    assert Modules(index, Console(record), (), (), kernel.load, kernel.live.__contains__).load("ext4")
    assert {message["level"] for message in record.data["messages"]} == {"debug"}


@pytest.mark.parametrize("name", ["gone", "jbd2"])
def test_a_refusal_is_told_once_and_tried_again_after_forgetting(
    name: str, index: ModuleIndex, kernel: Kernel
) -> None:
    kernel.refuses["jbd2"] = ENOENT
    record = Record("1", "6")
    modules = Modules(index, Console(record), (), (), kernel.load, kernel.live.__contains__)
    assert not modules.load(name) and not modules.load(name)
    assert [m["text"] for m in record.data["messages"]] == [
        f"warning: module {name} cannot be loaded: No such file or directory"
    ]
    kernel.refuses.clear()
    (Path(index.directory) / "gone.ko").touch()
    modules.forget_failures()
    assert modules.load(name)


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        ("fs-ext4", ["ext4"]),
        ("fs_ext4", ["ext4"]),
        ("fs-ext", []),
        ("virtio:d00000002v00001AF4", ["virtio_blk"]),
        ("virtio:d00000001v00001AF4", []),
        ("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", ["ext4"]),
        ("", []),
        ("[", []),
    ],
)
def test_aliases(alias: str, names: list[str], index: ModuleIndex, kernel: Kernel) -> None:
    assert make(index, kernel).matching(alias) == names


_PATTERNS = st.text("ab:*?[]", min_size=1, max_size=20)


@given(st.lists(st.tuples(_PATTERNS, st.sampled_from(["one", "two"]))), st.text("ab:", max_size=20))
def test_an_alias_finds_what_every_pattern_alone_would(pairs: list[tuple[str, str]], alias: str) -> None:
    found = Modules(
        ModuleIndex("", {}, Aliases.of(pairs), frozenset(), ()), Console(Record("1", "6"))
    ).matching(alias)
    assert sorted(found) == sorted(name for pattern, name in pairs if fnmatchcase(alias, pattern))


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_patterns_are_those_of_fnmatch(pattern: str, alias: str) -> None:
    assert matches(alias, pattern) == fnmatchcase(alias, pattern)
