"""Images that many tests look into, built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from built_image import MODULES, Image

from pyinit_qemu.debian import DebianRoot, Suite
from pyinit_qemu.images import initramfs


@pytest.fixture(scope="session")
def image(
    debian: Callable[[Suite], DebianRoot], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Image]:
    """``image("trixie", rescue="none")``: an image in list mode, unless told otherwise."""

    @cache
    def get(suite: Suite = "bookworm", **options: object) -> Image:
        system = debian(suite)
        path = initramfs(system, **{"mode": "list", "modules": MODULES, "compress": "none", **options})
        return Image(system, path, tmp_path_factory.mktemp(f"image-{suite}") / "tree")

    return get


@pytest.fixture
def small(image: Callable[..., Image]) -> Image:
    """The image of a Debian 12 for one kind of disk and file system."""
    return image("bookworm")
