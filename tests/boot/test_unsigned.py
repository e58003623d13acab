"""An image with unsigned modules, as somebody who knows the price asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.peers import MODULES
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

#: TAINT_UNSIGNED_MODULE, Documentation/admin-guide/tainted-kernels.rst.
UNSIGNED = 1 << 13


def test_it_boots_and_the_kernel_says_that_it_is_tainted(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    image: Callable[..., Path],
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    initrd = image(mode="list", modules=MODULES, unsigned_modules=True)
    vm = boot(
        kernel=bookworm.kernel, initrd=initrd, disks=(Disk(small_disk()),), append="root=LABEL=small-root"
    )
    seen = witness_of(vm)
    assert seen.root.type == "ext4" and seen.tainted == UNSIGNED
    assert seen.boot is not None
    assert {module["result"] for module in seen.boot["modules"]} <= {"loaded", "present"}
