"""A root in a file: the words for it, and what file systems begin with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.image import ImageFile
from pyinit.config.options import boot_config
from pyinit.config.overlay import Overlay
from pyinit.root.imagefile import recognise
from pyinit_image import features
from pyinit_image.features.base import Target

LIVE = ImageFile("/LiveOS/squashfs.img", live=True)


@pytest.mark.parametrize(
    ("line", "root", "image", "overlay"),
    [
        ("root=LABEL=x", "LABEL=x", None, None),
        ("root=LABEL=x loop=a/b.img", "LABEL=x", ImageFile("/a/b.img"), None),
        (
            "root=LABEL=x loop=/b loopfstype=xfs loopflags=noatime rd.overlay",
            "LABEL=x",
            ImageFile("/b", "xfs", "noatime"),
            Overlay(),
        ),
        ("root=live:CDLABEL=x", "LABEL=x", LIVE, Overlay()),
        ("root=live:/dev/sr0 rd.overlay=off", "/dev/sr0", LIVE, None),
        (
            "root=UUID=1 rd.live.image rd.live.dir=a rd.live.squashimg=b",
            "UUID=1",
            LIVE._replace(path="/a/b"),
            Overlay(),
        ),
        ("root=live:UUID=1 rd.overlay=LABEL=y", "UUID=1", LIVE, Overlay("LABEL=y")),
        ("root=live:LABEL=x rd.overlay.reset", "LABEL=x", LIVE, Overlay(reset=True)),
        # Left for parse_spec to refuse.
        ("root=live:http://x/y", "live:http://x/y", None, None),
        ("root=live:/x.iso", "live:/x.iso", None, None),
    ],
)
def test_words(line: str, root: str, image: ImageFile | None, overlay: Overlay | None) -> None:
    config = boot_config(line.encode())
    assert (config.root, config.image, config.overlay) == (root, image, overlay)
    assert config.warnings == ()


def test_a_folder_is_no_file() -> None:
    config = boot_config(b"root=LABEL=x loop=a/..")
    assert config.image is None
    assert config.warnings == (
        "loop=a/.. is not understood: the path of a file is expected".replace("loop=", "loop="),
    )


@given(st.text(st.characters(exclude_characters="\0")))
def test_no_path_leaves_the_medium(text: str) -> None:
    image = boot_config(f'root=LABEL=x "loop={text}"'.encode("utf-8", "surrogatepass")).image
    if image is not None:
        assert image.path.startswith("/") and ".." not in image.path.split("/")


@given(st.binary(max_size=2000))
def test_any_bytes_are_recognised_or_not(head: bytes) -> None:
    assert recognise(head) in ("", "squashfs", "erofs", "ext4", "xfs", "iso9660", "btrfs")


MAKERS = {
    "ext4": ["mke2fs", "-q", "-t", "ext4"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


@pytest.mark.effects
@pytest.mark.parametrize("fstype", MAKERS)
def test_what_the_tools_make_is_recognised(fstype: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(
        [*MAKERS[fstype], path], check=True, env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    with path.open("rb") as file:
        assert recognise(file.read(70000)) == fstype


@pytest.mark.parametrize(("line", "wanted"), [("root=live:LABEL=x", True), ("root=LABEL=x", False)])
def test_an_image_has_the_drivers_when_its_own_line_asks_for_them(line: str, wanted: bool) -> None:
    target = Target(cast(Any, None), cast(Any, None), "host", "open", line)
    assert bool(features.Loop().wanted(target)) == wanted
