"""Who gets a rescue shell: an image with a password, and one without any shell, at every console."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image.access import make_hash
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

MODULES = ("virtio_pci", "virtio_blk", "ext4")
PASSWORD = "correct horse"
QUESTION = "Password of the rescue shell: "

Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hash") / "rescue.hash"
    path.write_text(f"{make_hash(bytearray(PASSWORD.encode()))}\n")
    return path


@pytest.fixture(scope="module")
def images(image: Callable[..., Path], hashed: Path) -> Callable[..., Path]:
    """``images("none")``, ``images("password")``."""

    def get(rescue: str, **options: object) -> Path:
        password = {"rescue_password_file": hashed} if rescue == "password" else {}
        return image(mode="list", modules=MODULES, rescue=rescue, **password, **options)

    return get


@pytest.fixture
def start(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    images: Callable[..., Path],
    small_disk: Callable[..., Path],
) -> Start:
    def go(rescue: str, append: str, **fields: object) -> Machine:
        fields.setdefault("initrd", images(rescue))
        fields.setdefault("allow", ("banner",))
        return boot(kernel=bookworm.kernel, disks=(Disk(small_disk()),), append=f"quiet {append}", **fields)

    return go


def test_the_password_opens_the_shell(start: Start, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start("password", "root=LABEL=small-root rd.break=pre-mount")
    vm.expect(QUESTION)
    vm.send_line("wrong")
    vm.expect("this is not the password, try 1 of 3; the next one in 2 s")
    vm.expect(QUESTION)
    vm.send_line(PASSWORD)
    shell = Shell.rescue(vm, "pre-mount")
    assert "/dev/vda1" in shell.check("pyinit devices")
    shell.leave()
    witness_of(vm)
    assert PASSWORD not in vm.console
