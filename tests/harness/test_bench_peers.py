"""Other programs' images: how the programs are entered, and what is said when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.tools import ToolError, run
from pyinit_qemu.peers import _ENTER, MODULES, PEERS, Peer, Workshop, installed_versions, parse_versions

STATUS = """Package: dracut-core
Status: install ok installed
Description: dracut is an event driven initramfs infrastructure
 Version: not this one
Version: 059-4

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-installed
Version: 2

Package: zstd
Status: hold ok installed
Version: 1.5.4+dfsg2-5
"""


@pytest.fixture
def shop(bookworm: DebianRoot) -> Workshop:
    """Any Debian does for a program that is a few lines of shell."""
    return Workshop(bookworm.tree)


def test_a_program_sees_the_kernel_and_writes_nowhere_else(
    shop: Workshop, bookworm: DebianRoot, tmp_path: Path
) -> None:
    script = """test -d "/lib/modules/$1/kernel" && test -f "/boot/config-$1"
test "$(cat /proc/1/comm)" = sh && test -c /dev/null && test -e /dev/fd/0 && test ! -e /dev/kmsg
echo x > /tmp/x; echo x > /run/x; echo "$@" > /var/tmp/initrd.img
"""
    mounts = Path("/proc/self/mountinfo").read_text()
    image = shop.make(Peer("test", script), bookworm, tmp_path)
    assert image.read_text().split() == [bookworm.release, *MODULES]
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert not (shop.tree / "tmp/x").exists() and not (shop.tree / "run/x").exists()


def test_a_program_that_fails_is_quoted(shop: Workshop, bookworm: DebianRoot, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"test: no image could be made(.|\n)*no such driver"):
        shop.make(Peer("test", "echo no such driver; exit 3"), bookworm, tmp_path)


@pytest.mark.parametrize("script", ["echo gave up", "echo gave up; : > /var/tmp/initrd.img"])
def test_a_program_without_an_image_has_failed(
    shop: Workshop, bookworm: DebianRoot, tmp_path: Path, script: str
) -> None:
    with pytest.raises(ToolError, match=r"without an image(.|\n)*gave up"):
        shop.make(Peer("test", script), bookworm, tmp_path)


@pytest.mark.parametrize("script", [_ENTER, *(peer.script for peer in PEERS)])
def test_scripts_are_shell(script: str) -> None:
    run(["sh", "-n", "-c", script])


def test_versions_of_what_is_installed() -> None:
    assert parse_versions(STATUS) == {"dracut-core": "059-4", "zstd": "1.5.4+dfsg2-5"}


def test_versions_of_a_tree(bookworm: DebianRoot) -> None:
    found = installed_versions(bookworm.tree, ("udev", "no-such-package"))
    assert list(found) == ["udev"] and found["udev"].startswith("252")


@given(st.text() | st.text("PackgeStusVrion: \n\tinstalled"))
def test_any_status_file_is_read(text: str) -> None:
    assert all(name and version is not None for name, version in parse_versions(text).items())
