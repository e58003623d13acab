"""Each way to name the root device and how it is mounted, understood by the udev of a running system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

UUID = "abcdef01-2345-4678-9abc-def012345678"
LABEL = 'it\'s a "root"'
FIRST = "11111111-aaaa-4bbb-8ccc-000000000001"
SECOND = "22222222-aaaa-4bbb-8ccc-000000000002"
NAME = "The Root"
SERIAL = "S3R1AL"


@pytest.fixture(scope="module")
def disk(bookworm: DebianRoot) -> Path:
    """Two partitions, the root is the second; its label has what labels rarely have."""
    root = Ext4(small_root(bookworm), label=LABEL, uuid=UUID)
    return Image(
        gpt=(
            Partition(size=MIB, partuuid=FIRST, name="nothing in it"),
            Partition(root, partuuid=SECOND, name=NAME, type=ROOT_X86_64),
        )
    ).build()


@pytest.fixture
def start(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    disk: Path,
    witness_of: Callable[[Machine], Witness],
) -> Callable[[str], Witness]:
    """``start(words)``: boot with these words on the kernel command line; return the witness's report."""

    def go(append: str) -> Witness:
        disks = (Disk(disk, serial=SERIAL),)
        vm = boot(kernel=bookworm.kernel, initrd=listed, disks=disks, append=f"quiet {append}")
        return witness_of(vm)

    return go


@pytest.mark.parametrize(
    "word",
    [
        pytest.param("root=/dev/vda2", id="path"),
        pytest.param("root=254:2", id="number"),
        pytest.param(f"root=/dev/disk/by-uuid/{UUID}", id="by-uuid"),
        pytest.param(r"root=/dev/disk/by-label/it\x27s\x20a\x20\x22root\x22", id="by-label"),
        pytest.param(f"root=/dev/disk/by-partuuid/{SECOND}", id="by-partuuid"),
        pytest.param(r"root=/dev/disk/by-partlabel/The\x20Root", id="by-partlabel"),
        pytest.param(f"root=/dev/disk/by-id/virtio-{SERIAL}-part2", id="by-id"),
        pytest.param("root=/dev/disk/by-path/pci-0000:01:00.0-part2", id="by-path"),
        pytest.param(f"root=UUID={UUID.upper()}", id="UUID-in-capitals"),
        pytest.param(f'"root=LABEL={LABEL}"', id="LABEL-with-blanks-and-quotes"),
        pytest.param(f"root=PARTUUID={SECOND}", id="PARTUUID"),
        pytest.param(f"root=PARTUUID={FIRST}/PARTNROFF=1", id="PARTNROFF"),
        pytest.param(f'root=PARTLABEL="{NAME}"', id="PARTLABEL-quoted"),
    ],
)
def test_the_root_is_found_as(word: str, start: Callable[[str], Witness]) -> None:
    seen = start(word)
    assert (seen.root.device, seen.root.type, seen.root.read_only) == ("vda2", "ext4", True)
    assert word in seen.cmdline
    assert seen.argv == ("/sbin/init",)


def test_mount_options_and_another_init_with_arguments(start: Callable[[str], Witness]) -> None:
    """The init is a script, which needs the shell that its first line names."""
    seen = start(
        "forgotten root=/dev/vda2 ro rw rootfstype=ext4 rootflags=noatime,commit=7 "
        'init=/sbin/init-script one "two words" key=value -- --three four=4 five.six'
    )
    assert not seen.root.read_only
    assert {"rw", "noatime", "commit=7"} <= seen.root.options
    assert seen.argv == (
        "/usr/lib/witness/init", "one", "two words", "--three", "four=4", "five.six"
    )  # fmt: skip
    assert seen.environment["key"] == "value"
    assert seen.boot is not None
    assert seen.boot["handover"]["init"] == "/sbin/init-script"
