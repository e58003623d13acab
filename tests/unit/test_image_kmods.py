"""Kernel modules: the parsers, the loading order, and kmod's own index format."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyinit_image import kmodindex, kmods
from pyinit_image.errors import BuildError
from pyinit_image.sysroot import Sysroot

ASCII = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=12)
RELEASE = "6.1.0-test"

DEP = """\
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/fs/jbd2/jbd2.ko.xz: kernel/fs/mid.ko
kernel/fs/mid.ko: kernel/fs/low.ko
kernel/fs/low.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mid.ko kernel/fs/low.ko
kernel/drivers/scsi/virtio_scsi.ko:
kernel/drivers/scsi/scsi_debug.ko:
"""


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    """A system with a kernel whose ext4 asks for an alias, as that of Debian 12 does."""
    directory = tmp_path / "lib/modules" / RELEASE
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text(DEP)
    (directory / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    (directory / "modules.alias").write_text(
        "alias fs-ext4 ext4\n"
        "alias crypto-crc32c crc32c_intel\n"
        "alias crypto-crc32c crc32c_generic\n"
        "alias virtio:d00000008v* virtio_scsi\n"
    )
    (directory / "modules.softdep").write_text("# comment\nsoftdep ext4 pre: crypto-crc32c\n")
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    (tmp_path / "usr/lib/modprobe.d").mkdir(parents=True)
    return Sysroot(tmp_path)


def test_dependencies_come_in_loading_order(sysroot: Sysroot) -> None:
    kernel = kmods.Kernel(sysroot, RELEASE)
    assert kernel.needs("ext4") == ("crc32c_intel", "crc32c_generic", "low", "mid", "jbd2")


def test_aliases_and_names_with_dashes_are_understood(sysroot: Sysroot) -> None:
    kernel = kmods.Kernel(sysroot, None)
    assert kernel.find("fs-ext4") == ["ext4"]
    assert kernel.find("crc32c-intel") == ["crc32c_intel"]
    assert kernel.find("virtio:d00000008v00001AF4") == ["virtio_scsi"]
    assert kernel.find("virtio_pci") == []
    assert kernel.find("no-such-thing") == []


def test_an_alias_comes_before_what_is_built_in(sysroot: Sysroot) -> None:
    directory = sysroot.root / "lib/modules" / RELEASE
    (directory / "modules.builtin").write_text("kernel/lib/crc32.ko\n")
    with (directory / "modules.alias").open("a") as aliases:
        aliases.write("alias crc32 crc32c_generic\n")
    assert kmods.Kernel(sysroot, RELEASE).find("crc32") == ["crc32c_generic"]


def test_modprobe_settings(sysroot: Sysroot) -> None:
    (sysroot.root / "etc/modprobe.d/a.conf").write_text("options ext4 debug=1\noptions ext4 \\\n  more=2\n")
    (sysroot.root / "usr/lib/modprobe.d/a.conf").write_text("options ext4 hidden=1\n")
    (sysroot.root / "usr/lib/modprobe.d/b.conf").write_text(
        "blacklist crc32c-intel\nsoftdep jbd2 pre: virtio_scsi\ninstall scsi_debug /bin/false\n"
    )
    kernel = kmods.Kernel(sysroot, RELEASE)
    assert kernel.modprobe.options == {"ext4": "debug=1 more=2"}
    assert kernel.modprobe.blacklist == {"crc32c_intel", "scsi_debug"}
    # A blacklist hides the aliases of a module, not its name (modprobe.d(5)).
    assert kernel.find("crypto-crc32c") == ["crc32c_generic"]
    assert kernel.find("crc32c_intel") == ["crc32c_intel"]
    assert kernel.needs("ext4") == ("crc32c_generic", "low", "mid", "virtio_scsi", "jbd2")


def test_soft_dependencies_in_a_circle(sysroot: Sysroot) -> None:
    (sysroot.root / "etc/modprobe.d/a.conf").write_text("softdep low pre: ext4\n")
    kernel = kmods.Kernel(sysroot, RELEASE)
    assert set(kernel.needs("low")) == {"ext4", "jbd2", "mid", "crc32c_intel", "crc32c_generic"}


def test_list_mode_takes_what_is_named_and_its_closure(sysroot: Sysroot) -> None:
    kernel = kmods.Kernel(sysroot, RELEASE)
    selected = kmods.select(kernel, "list", ["mid", "virtio-pci"])
    assert selected == {"mid": ("--module mid", None), "low": ("dependency", "mid")}


def test_generic_mode_takes_disks_and_file_systems(sysroot: Sysroot) -> None:
    selected = kmods.select(kmods.Kernel(sysroot, RELEASE), "generic", [])
    assert {"ext4", "jbd2", "crc32c_generic", "virtio_scsi"} <= set(selected)
    assert "scsi_debug" not in selected
    assert selected["virtio_scsi"] == ("generic mode: SCSI disks and controllers", None)


def test_a_misspelt_module_is_answered_with_the_nearest(sysroot: Sysroot) -> None:
    with pytest.raises(BuildError, match="has no module ext5") as caught:
        kmods.select(kmods.Kernel(sysroot, RELEASE), "list", ["ext5"])
    assert caught.value.hint == "Did you mean ext4?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel/a.ko", "line 1: no module and colon"),
        ("kernel/a.ko:\n\nkernel/b.ko: kernel/b.ko", "line 3: b depends on itself"),
        ("kernel/a.ko: kernel/gone.ko", "a needs gone, which is not listed"),
    ],
)
def test_a_damaged_modules_dep_is_named(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        kmods.parse_dep(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    try:
        kmods.parse_dep(text)
    except BuildError as error:
        assert str(error).isprintable()
    kmods.parse_alias(text)
    kmods.parse_softdep(text.split())
    kmods.parse_modprobe([text])


@given(st.binary(max_size=400), st.binary(max_size=120))
@example(b"", b"\xff" * 100)
def test_no_module_breaks_modinfo(start: bytes, rest: bytes) -> None:
    list(kmods.modinfo(start))
    list(kmods.modinfo(b"\x7fELF\x02\x01" + rest))


def test_modinfo_is_read_from_its_section() -> None:
    info = b"firmware=a.bin\0depends=x,y\0firmware=b.bin\0"
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64
    body = table + 3 * 64
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, body, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, body + len(info), len(names), 0, 0, 1, 0),
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    assert list(kmods.modinfo(header + b"".join(sections) + info + names)) == [
        ("firmware", "a.bin"),
        ("depends", "x,y"),
        ("firmware", "b.bin"),
    ]


@given(st.lists(st.tuples(ASCII, ASCII, st.integers(0, 2**32 - 1)), max_size=30))
def test_index_round_trip(rows: list[tuple[str, str, int]]) -> None:
    expected: dict[str, list[tuple[int, str]]] = {}
    for key, value, priority in rows:
        expected.setdefault(key, []).append((priority, value))
    found = kmodindex.read(kmodindex.write(rows))
    assert found == {key: sorted(values) for key, values in expected.items()}


@given(st.lists(st.tuples(ASCII, ASCII, st.integers(0, 9)), max_size=10), st.data())
def test_a_damaged_index_is_an_error_of_our_own(
    rows: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    index = bytearray(kmodindex.write(rows))
    for _ in range(data.draw(st.integers(1, 4))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    try:
        kmodindex.read(bytes(index[: data.draw(st.integers(0, len(index)))]))
    except BuildError as error:
        assert str(error).isprintable()


def test_several_kernels_are_a_question(sysroot: Sysroot) -> None:
    other = sysroot.root / "lib/modules/6.2"
    other.mkdir()
    (other / "modules.dep").write_text("")
    with pytest.raises(BuildError, match="several kernels.*: 6.1.0-test, 6.2") as caught:
        kmods.Kernel(sysroot, None)
    assert "--kernel-version" in caught.value.hint
    with pytest.raises(BuildError, match="no modules for kernel 5.0 .*there is: 6.1.0-test, 6.2"):
        kmods.Kernel(sysroot, "5.0")
