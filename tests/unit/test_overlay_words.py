"""What is laid over the root: the words that say so, and what becomes of its fstab."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.fstab import parse
from pyinit.config.options import OLD_SPELLINGS, boot_config
from pyinit.config.overlay import Overlay
from pyinit.kernel.syscalls import MS
from pyinit.root.layers import LOWER, UPPER, memory_mount, overlay_mount, without_root
from pyinit_image import features
from pyinit_image.features.base import Target


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("rd.overlay=off", None),
        ("rd.overlay=no", None),
        ("rd.overlay", Overlay()),
        ("rd.overlay=1", Overlay()),
        ("rd.overlay=tmpfs", Overlay()),
        ("rd.overlay=tmpfs:size=25%,nr_inodes=4k", Overlay(data="size=25%,nr_inodes=4k")),
        ("rd.overlay=LABEL=changes rd.overlay.reset", Overlay("LABEL=changes", reset=True)),
        ("rd.overlay=/dev/vdb1 rd.overlay.readonly=1", Overlay("/dev/vdb1", readonly=True)),
    ],
)
def test_words(line: str, expected: Overlay | None) -> None:
    config = boot_config(line.encode())
    assert (config.overlay, config.warnings) == (expected, ())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rd.overlayfs=1", Overlay()),
        ("rd.live.overlay.overlayfs", Overlay()),
        ("rd.live.overlay=UUID=1 rd.live.overlay.reset", Overlay("UUID=1", reset=True)),
        ("rd.live.overlay=none", None),
        ("overlayroot=disabled", None),
        ("overlayroot=tmpfs:swap=1,recurse=0", Overlay()),
        ("overlayroot=device:dev=/dev/vdb,timeout=20", Overlay("/dev/vdb")),
        ("overlayroot=LABEL=x", Overlay("LABEL=x")),
    ],
)
def test_old_spellings_have_their_effect_and_a_hint(line: str, expected: Overlay | None) -> None:
    config = boot_config(line.encode())
    assert config.overlay == expected
    keys = dict.fromkeys(word.partition("=")[0] for word in line.split())
    assert config.warnings == tuple(
        f"{key} is an old spelling; the word is {OLD_SPELLINGS[key]}" for key in keys
    )


def test_a_limit_that_is_none_is_left_out() -> None:
    config = boot_config(b"rd.overlay=tmpfs:size=1000%,mode=777,nr_blocks=9")
    assert config.overlay == Overlay(data="nr_blocks=9")
    assert ["size=1000%" in warning or "mode=777" in warning for warning in config.warnings] == [True, True]


def test_switches_alone_do_nothing() -> None:
    assert boot_config(b"rd.overlay.reset rd.overlay.readonly=0") == boot_config()


def test_the_mounts() -> None:
    assert memory_mount(Overlay(data="size=1m")).data == "mode=0755,size=1m"
    assert not overlay_mount(Overlay()).flags & MS.RDONLY
    spec = overlay_mount(Overlay("LABEL=x", readonly=True))
    assert spec.flags & MS.RDONLY
    assert spec.data == f"lowerdir={UPPER}:{LOWER}"


FSTAB = b"""# / is on vda1
UUID=1\t/ ext4  errors=remount-ro 0 1
UUID=2 /home ext4 defaults 0 2
"""


def test_the_line_for_the_root_becomes_a_comment() -> None:
    after = without_root(FSTAB)
    assert after == FSTAB.replace(b"UUID=1", b"# Not with rd.overlay: UUID=1")
    assert without_root(after) == after


@given(
    st.binary() | st.lists(st.sampled_from([b"UUID=1", b" ", b"\t", b"/", b"/x", b"#", b"\n"])).map(b"".join)
)
def test_nothing_but_lines_for_the_root_is_changed(data: bytes) -> None:
    lines = parse(data).lines
    after = parse(without_root(data)).lines
    assert after == tuple(line for line in lines if line.number in {other.number for other in after})
    assert {line.target for line in lines} - {line.target for line in after} <= {"/"}
    assert without_root(without_root(data)) == without_root(data)


WORDS = st.sampled_from(["rd.overlay", "rd.overlay.reset", "rd.overlay.readonly", *OLD_SPELLINGS])


@given(st.lists(st.tuples(WORDS, st.text(st.characters(exclude_characters="\0\n"), max_size=20)), max_size=6))
def test_any_value_is_understood_or_warned_about(words: list[tuple[str, str]]) -> None:
    config = boot_config(" ".join(f"{key}={value}" for key, value in words).encode("utf-8", "surrogatepass"))
    assert all(warning.isascii() and warning.isprintable() for warning in config.warnings)
    if config.overlay is not None and config.overlay.data:
        names = {part.partition("=")[0] for part in config.overlay.data.split(",")}
        assert names <= {"size", "nr_blocks", "nr_inodes"}


@pytest.mark.parametrize(("line", "wanted"), [("quiet rd.overlay=tmpfs", True), ("rd.overlay=off", False)])
def test_an_image_has_the_driver_when_its_own_line_asks_for_it(line: str, wanted: bool) -> None:
    target = Target(cast(Any, None), cast(Any, None), "host", "open", line)
    assert bool(features.Overlay().wanted(target)) == wanted
