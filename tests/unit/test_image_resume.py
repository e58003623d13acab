"""To which device a system hibernates, as the builder finds out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_image_luks import System

from pyinit.config.options import boot_config
from pyinit_image import features
from pyinit_image.facts import Facts, Line
from pyinit_image.features import luks, lvm, resume
from pyinit_image.features.base import Target

DEBIAN = "/etc/initramfs-tools/conf.d/resume"


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path / "root")


def machine(system: System, *specs: str) -> Target:
    """This machine, with these swap devices in its fstab, all of them in use."""
    lines = tuple(
        Line(number, spec, "none", "swap", ("sw",), (spec.rpartition("/")[2] or "sda2",))
        for number, spec in enumerate(specs, 1)
    )
    facts = Facts("", (), (), lines, (), (), (), (), (), (), ())
    return replace(system.target(), mode="host", kernel=cast(Any, None), facts=facts)


def test_what_debians_installer_wrote_counts(system: System) -> None:
    assert resume.Resume().wanted(system.target()) == ""
    system.file(DEBIAN, "RESUME=UUID=5a5a-1\n")
    target = system.target()
    assert resume.Resume().wanted(target) == f"{DEBIAN}: UUID=5a5a-1"
    assert (
        features.words(target, [features.Chosen(resume.Resume(), "x")], "quiet") == "resume=UUID=5a5a-1 quiet"
    )
    assert resume.place(machine(system, "/dev/sda2"))[0] == "UUID=5a5a-1"
    system.file(DEBIAN, "RESUME=none\n")
    assert resume.place(machine(system, "/dev/sda2")) == ("", "")


def test_of_this_machine_the_first_swap_device_that_keeps_its_content(system: System) -> None:
    system.file("/etc/crypttab", "random /dev/sda3 /dev/urandom swap\nkept UUID=1 none luks\n")
    target = machine(system, "/dev/mapper/random", "/dev/zram0", "/dev/mapper/kept", "UUID=5a5a-1")
    assert resume.place(target) == ("/dev/mapper/kept", "/etc/fstab line 3")
    assert resume.place(machine(system, "/swapfile")) == ("", "")
    # Nobody knows whether the machine that a generic image boots is this one.
    assert resume.place(replace(target, facts=None, mode="generic")) == ("", "")


@pytest.mark.parametrize("words", ["resume=/dev/sda2", "noresume", "quiet resume=none"])
def test_who_seals_a_word_of_their_own_gets_no_other(words: str, system: System) -> None:
    system.file(DEBIAN, "RESUME=UUID=5a5a-1\n")
    assert resume.Resume().wanted(replace(system.target(), cmdline=words)) == ""


def test_the_encrypted_volume_that_it_lies_on_comes_along_beside_the_roots(system: System) -> None:
    system.file("/etc/crypttab", "root UUID=1 none luks\nsleep UUID=2 /etc/key luks,nofail\n")
    system.file(DEBIAN, "RESUME=/dev/mapper/sleep")
    assert [entry.name for entry in luks.entries(system.target())] == ["root", "sleep"]
    system.file("/etc/fstab", "/dev/mapper/root / ext4 defaults 0 1\n")
    assert [entry.name for entry in luks.entries(system.target())] == ["root", "sleep"]
    assert lvm.Lvm().wanted(system.target()) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("# RESUME=x\n", ""),
        ("RESUME=/dev/sda2 # swap\n", "/dev/sda2"),
        ('RESUME="UUID=1"\nRESUME=auto\n', "auto"),
        ("RESUME=\n", ""),
        ("RESUME='x\n", ""),
    ],
)
def test_files_of_initramfs_tools(text: str, value: str) -> None:
    assert resume.parse_conf(text.encode()) == value


@given(st.binary(max_size=60) | st.text(alphabet="RESUME=\n'\"# x", max_size=40).map(str.encode))
def test_any_file(data: bytes) -> None:
    value = resume.parse_conf(b"RESUME=" + data)
    if resume._is_word(value):
        assert boot_config(f"resume={value}".encode("utf-8", "surrogateescape")).resume == value
