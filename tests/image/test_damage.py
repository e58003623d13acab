"""An image that was cut short or has a changed bit is noticed, or unpacks to the same all the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from built_image import Image

from pyinit_image import archive, cpio, verify
from pyinit_image.errors import BuildError

#: Cuts and changed bits that are tried, at places that are the same on every run.
CUTS, FLIPS = 150, 400


@pytest.fixture(scope="module")
def sound(image: Callable[..., Image]) -> tuple[bytes, dict[str, cpio.Member]]:
    built = image("bookworm", compress="zstd")
    return built.path.read_bytes(), built.members


def noticed(content: bytes, members: dict[str, cpio.Member]) -> bool:
    """Whether verification fails; unless the kernel would unpack the very same."""
    try:
        segments = archive.read(content)
    except BuildError as error:
        return verify.unreadable(error).fatal
    if archive.tree(segments) == members:
        return True
    return any(finding.fatal for finding in verify.static(segments, execute=False))


def test_I6_cut_short(sound: tuple[bytes, dict[str, cpio.Member]]) -> None:
    content, members = sound
    dice = random.Random(6)
    places = [0, 1, len(content) // 2, len(content) - 5, *(dice.randrange(len(content)) for _ in range(CUTS))]
    assert [at for at in places if not noticed(content[:at], members)] == []


def test_I6_a_changed_bit(sound: tuple[bytes, dict[str, cpio.Member]]) -> None:
    content, members = sound
    dice = random.Random(66)
    # The heads of the archives, where a bit changes most, and anywhere.
    places = [segment.offset + at for segment in archive.read(content) for at in range(14)]
    places += [dice.randrange(len(content)) for _ in range(FLIPS)]
    missed = []
    for at in places:
        damaged = bytearray(content)
        damaged[at] ^= 1 << dice.randrange(8)
        if not noticed(bytes(damaged), members):
            missed.append(at)
    assert missed == []
