"""What the tests that boot share: images of this project, and what the witness says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyinit_qemu import Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.images import initramfs
from pyinit_qemu.witness import Witness

#: Everything on the way to an ext4 root on a virtio disk, as somebody who knows the machine would list it.
LISTED_MODULES = ("virtio_pci", "virtio_blk", "ext4")


@pytest.fixture(scope="session")
def image(bookworm: DebianRoot) -> Callable[..., Path]:
    """``image(mode="list", modules=(...), debian=...)``: an image, of Debian 12 unless told otherwise."""

    @cache
    def make(debian: DebianRoot = bookworm, **options: Any) -> Path:
        return initramfs(debian, **options)

    return make


@pytest.fixture(scope="session")
def generic(image: Callable[..., Path]) -> Path:
    """An image for any machine."""
    return image()


@pytest.fixture(scope="session")
def listed(image: Callable[..., Path]) -> Path:
    """An image with the drivers for an ext4 root on a virtio disk, and no others."""
    return image(mode="list", modules=LISTED_MODULES)


@pytest.fixture(scope="session")
def witness_of() -> Callable[[Machine], Witness]:
    """``witness_of(vm)``: wait for the machine's end, which must be good; return what its witness says."""

    def testimony(vm: Machine) -> Witness:
        outcome = vm.finish().check()
        reports = [frame for frame in outcome.frames if frame["kind"] == "witness"]
        assert len(reports) == 1, f"{len(reports)} reports of a witness"
        return Witness.parse(reports[0])

    return testimony
