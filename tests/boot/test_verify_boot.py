"""Images that are proven by booting them, and one that does not boot."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyinit.config.sealed import SENTINEL_PATH
from pyinit_image import archive, cpio
from pyinit_image.errors import BuildError
from pyinit_image.verify_boot import BUSES, boot, choose_bus, choose_filesystem
from pyinit_qemu.debian import DebianRoot


@pytest.mark.boot
def test_an_image_that_boots(image: Callable[..., Path], bookworm: DebianRoot) -> None:
    # Neither virtio_blk nor ext4: what the image has is what is tried.
    made = image(mode="list", modules=("ahci", "sd_mod", "squashfs"))
    steps: list[str] = []
    booted = boot(made, bookworm.kernel, sysroot=bookworm.tree, progress=steps.append)
    assert (booted.bus, booted.filesystem) == ("ahci", "squashfs")
    assert booted.seconds > 0
    assert "tcg" in booted.accelerator or "kvm" in booted.accelerator
    assert steps[-1] == "boot from squashfs on a ahci disk"


@pytest.mark.boot
def test_an_image_that_does_not_boot(listed: Path, bookworm: DebianRoot, tmp_path: Path) -> None:
    members = archive.tree(archive.read(listed.read_bytes()))
    del members[SENTINEL_PATH]
    broken = tmp_path / "broken.img"
    ordered = sorted(members.items(), key=lambda item: item[0].split("/"))
    broken.write_bytes(b"".join(cpio.write(member for _, member in ordered)))
    with pytest.raises(BuildError) as raised:
        boot(broken, bookworm.kernel, sysroot=bookworm.tree)
    text = str(raised.value)
    assert "does not boot from ext4 on a virtio disk: GUEST_FAIL: " in text
    # The cause, and the console with what a person sees.
    assert "E-IMAGE" in text.partition("\n")[0]
    assert "The end of the console:\n" in text
    assert "the initramfs is not complete" in text.partition("\n")[2]
    assert raised.value.hint


def test_the_bus_and_the_file_system_are_those_of_the_image() -> None:
    everything = frozenset(name for _, names in BUSES for name in names)
    assert choose_bus(everything) == "virtio"
    assert choose_bus(everything - {"virtio_blk"}) == "scsi"
    assert choose_bus(everything - {"virtio_pci"}) == "ahci"
    assert choose_bus(frozenset({"nvme"})) == "nvme"
    assert choose_bus(frozenset({"xhci_pci", "usb_storage", "sd_mod"})) == "usb"
    assert choose_filesystem(frozenset({"btrfs", "xfs"})) == "xfs"
    with pytest.raises(BuildError, match="no driver for any disk") as raised:
        choose_bus(frozenset({"ahci"}))
    assert "--module" in raised.value.hint
    with pytest.raises(BuildError, match="the driver of none of ext4, xfs, btrfs, squashfs"):
        choose_filesystem(frozenset({"vfat"}))


def test_without_a_tool_that_makes_it_a_file_system_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyinit_qemu.disks.tools.SEARCH_PATH", "/nowhere")
    with pytest.raises(BuildError, match="mke2fs is not installed; try: apt-get install e2fsprogs"):
        choose_filesystem(frozenset({"ext4"}))


def test_without_the_harness_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name.startswith("pyinit_qemu"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BuildError, match="the module pyinit_qemu") as raised:
        boot(tmp_path / "image", tmp_path / "kernel")
    assert raised.value.hint == "pip install 'pyinit-initramfs[qemu]'"


def test_files_that_are_not_there(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="image cannot be read: No such file"):
        boot(tmp_path / "image", tmp_path / "kernel")
    with pytest.raises(BuildError, match="kernel is no kernel: there is no such file"):
        boot(listed, tmp_path / "kernel")


def test_a_system_without_python(listed: Path, bookworm: DebianRoot, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="/usr/bin/python3 is missing in "):
        boot(listed, bookworm.kernel, sysroot=tmp_path)
