"""What the tests that boot share: images of this project, and what the witness says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyinit_qemu import Machine
from pyinit_qemu.debian import STORAGE, ArchiveError, DebianRoot, provision
from pyinit_qemu.images import initramfs
from pyinit_qemu.witness import Witness

#: Everything on the way to an ext4 root on a virtio disk, as somebody who knows the machine would list it.
LISTED_MODULES = ("virtio_pci", "virtio_blk", "ext4")

SCREENS = Path(__file__).with_name("screens")
#: What is another on each boot, or with another kernel.
PLACEHOLDERS = {
    "{lines}": r".+(?:\npyinit:(?: {11}.*)?)*",
    "{number}": r"\d+(?:\.\d+)?",
    "{uuid}": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "{text}": ".+",
}


@pytest.fixture(scope="session")
def image(bookworm: DebianRoot) -> Callable[..., Path]:
    """``image(mode="list", modules=(...), debian=...)``: an image, of Debian 12 unless told otherwise."""

    @cache
    def make(debian: DebianRoot = bookworm, **options: Any) -> Path:
        return initramfs(debian, **options)

    return make


@pytest.fixture(scope="session")
def storage() -> DebianRoot:
    """Debian 12 with the tools for encrypted volumes, logical volumes and arrays."""
    try:
        return provision("bookworm", packages=STORAGE)
    except ArchiveError as error:
        pytest.skip(f"infrastructure: {error}")


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


@pytest.fixture(scope="session")
def expect_screen() -> Callable[[Machine, str], None]:
    """``expect_screen(vm, "E-DEV")``: what was explained last with this code is all of screens/E-DEV.txt.

    Every line of the explanation as it stands on the console. The kernel may have printed in between.
    """

    def compare(vm: Machine, code: str) -> None:
        expected = (SCREENS / f"{code}.txt").read_text()
        shown = explanation_on(vm.console, code)
        parts = re.split(f"({'|'.join(map(re.escape, PLACEHOLDERS))})", expected)
        if not re.fullmatch("".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts), shown):
            lines = difflib.unified_diff(
                expected.splitlines(), shown.splitlines(), f"{code}.txt", "console", lineterm=""
            )
            pytest.fail("\n".join(lines))

    return compare


def explanation_on(console: str, code: str) -> str:
    """The last explanation with this code."""
    text = "".join(
        f"{line.rstrip()}\n" for line in console.splitlines() if not re.match(r"\[ *\d+\.\d+\] ", line)
    )
    found = re.findall(
        rf"^pyinit: {re.escape(code)} .*\npyinit:   in stage .*\n(?:pyinit:(?:  .*)?\n)*", text, re.MULTILINE
    )
    assert found, f"{code} is not on the console:\n{text[-2000:]}"
    last: str = found[-1]
    return last
