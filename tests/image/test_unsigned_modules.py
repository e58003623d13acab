"""Modules without signature and symbols are the same modules to the kernel."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinit_image.errors import BuildError
from pyinit_image.unsign import SIGNED, check, unsigned
from pyinit_qemu.debian import DebianRoot

MODULES = ("fs/ext4/ext4", "fs/jbd2/jbd2", "drivers/virtio/virtio_pci", "arch/x86/crypto/crc32c-intel")
LOCKED = "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y"


@pytest.fixture(scope="module")
def module(debian: Callable[..., DebianRoot]) -> Callable[[str], bytes]:
    root = debian("bookworm")
    folder = root.tree / "usr/lib/modules" / root.release / "kernel"
    return lambda name: (folder / f"{name}.ko").read_bytes()


def relocations(elf: ELFFile) -> Iterator[tuple[object, ...]]:
    """What each place of each section refers to, in terms that do not depend on numbers of symbols."""
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection):
            table = elf.get_section(section["sh_link"])
            for entry in section.iter_relocations():
                symbol = table.get_symbol(entry["r_info_sym"])
                kind = entry["r_info_type"]
                target = (symbol.name, symbol["st_shndx"], symbol["st_value"], symbol["st_info"].type)
                yield section.name, entry["r_offset"], kind, entry["r_addend"], target


@pytest.mark.parametrize("name", MODULES)
def test_all_that_the_kernel_uses_is_there(name: str, module: Callable[[str], bytes]) -> None:
    before = module(name)
    after = unsigned(before, name)
    assert before.endswith(SIGNED) and SIGNED not in after and len(after) < len(before)
    old, new = (ELFFile(io.BytesIO(data)) for data in (before, after))
    assert list(relocations(old)) == list(relocations(new))
    for one, other in zip(old.iter_sections(), new.iter_sections(), strict=True):
        assert one.name == other.name and one["sh_flags"] == other["sh_flags"]
        if one["sh_type"] == "SHT_PROGBITS":
            assert one.data() == other.data()
    globals_of = [
        {
            s.name
            for s in elf.get_section_by_name(".symtab").iter_symbols()
            if s["st_info"].bind != "STB_LOCAL"
        }
        for elf in (old, new)
    ]
    assert globals_of[0] == globals_of[1]
    assert unsigned(after, name) == after


@pytest.mark.parametrize("length", [70, 1000, 50_000])
def test_a_module_that_is_cut_short_is_told(length: int, module: Callable[[str], bytes]) -> None:
    with pytest.raises(BuildError, match=r"^ext4\.ko is damaged: "):
        unsigned(module("fs/ext4/ext4")[:length].ljust(64, b"\0") + SIGNED, "ext4.ko")


@given(st.binary(), st.binary(max_size=20))
def test_any_bytes_are_a_module_or_refused(data: bytes, tail: bytes) -> None:
    for content in (data, data + tail + SIGNED, b"\x7fELF\x02\x01" + data):
        try:
            unsigned(content, "x")
        except BuildError:
            pass


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_raises_nothing_else(data: st.DataObject, module: Callable[[str], bytes]) -> None:
    content = bytearray(module("arch/x86/crypto/crc32c-intel"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    try:
        unsigned(bytes(content), "x")
    except BuildError:
        pass


def running(root: Path, enforce: str, lockdown: str) -> Path:
    for path, text in (
        ("sys/module/module/parameters/sig_enforce", enforce),
        ("sys/kernel/security/lockdown", lockdown),
    ):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    return root


FREE = "[none] integrity confidentiality\n"


def test_where_nothing_enforces_signatures_they_may_be_left_out(tmp_path: Path) -> None:
    assert check(["CONFIG_X=y"], "quiet", None) == []
    assert check(["CONFIG_X=y"], "quiet", running(tmp_path, "N\n", FREE)) == []
    assert check(["CONFIG_X=y"], "", tmp_path / "nothing known") == []
    assert check([LOCKED], "", None) == [
        "with Secure Boot this kernel is locked down and will refuse the unsigned modules of this image"
    ]


@pytest.mark.parametrize(
    ("config", "cmdline", "state", "message"),
    [
        ([], "", None, "not known without its config"),
        (["CONFIG_MODULE_SIG_FORCE=y"], "", None, "CONFIG_MODULE_SIG_FORCE=y"),
        (["CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y"], "", None, "FORCE_INTEGRITY"),
        ([LOCKED], "quiet lockdown=integrity", None, "with lockdown=integrity"),
        ([LOCKED], "module.sig_enforce", None, "with module.sig_enforce"),
        ([LOCKED], "", ("Y\n", FREE), "sig_enforce says Y"),
        ([LOCKED], "", ("N\n", "none [integrity] confidentiality\n"), "lockdown says none"),
    ],
)
def test_where_they_are_enforced_the_image_is_refused(
    config: list[str], cmdline: str, state: tuple[str, str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BuildError) as caught:
        check(config, cmdline, running(tmp_path, *state) if state else None)
    assert message in str(caught.value)
    assert caught.value.hint == "Leave --unsigned-modules out."
