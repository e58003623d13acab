"""A target system that has busybox: its rescue shell has the tools of busybox."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine, deb
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.kernels import KernelFetchError, fetch_package
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

MODULES = ("virtio_pci", "virtio_blk", "ext4")


@pytest.fixture
def with_busybox(bookworm: DebianRoot, tmp_path: Path) -> DebianRoot:
    """Debian 12 with its package busybox unpacked into it; all other files are those of the cache."""
    try:
        package = fetch_package("busybox", "bookworm")
    except KernelFetchError as error:
        pytest.skip(f"infrastructure: {error}")
    data = next(data for parts, data in deb.files(package.path.read_bytes()) if parts[-1] == "busybox")
    tree = tmp_path / f"{bookworm.tree.parent.name}-{package.path.name}" / "tree"
    tree.mkdir(parents=True)
    for folder in ("bin", "boot", "etc", "lib", "lib64", "sbin", "usr"):
        # Links where the file system of the cache is this one, else copies.
        if subprocess.run(["cp", "-al", bookworm.tree / folder, tree], capture_output=True).returncode:
            subprocess.run(["cp", "-a", bookworm.tree / folder, tree], check=True)
    program = tree / "usr/bin/busybox"
    program.write_bytes(data)
    program.chmod(0o755)
    return dataclasses.replace(bookworm, tree=tree)


def test_the_rescue_shell_has_its_tools(
    boot: Callable[..., Machine],
    image: Callable[..., Path],
    with_busybox: DebianRoot,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    vm = boot(
        kernel=with_busybox.kernel,
        initrd=image(with_busybox, mode="list", modules=MODULES),
        disks=(Disk(small_disk()),),
        append="quiet root=LABEL=small-root rd.break=pre-pivot",
    )
    shell = Shell.rescue(vm, "pre-pivot")
    shell.check(
        "printf '%s\\n' c a b > /run/letters; sort /run/letters | head -n 2 | tr a-c A-C > /run/sorted"
    )
    assert shell.check("cat /run/sorted") == "A\nB"
    # Editing a file of the root is what it takes most often.
    vm.send_line("vi /run/letters")
    vm.expect("- /run/letters 1/3")
    vm.send_bytes(b"ddZZ")
    # The prompt comes where vi left the cursor.
    vm.expect("pyinit:pre-pivot# ")
    vm.send_line("")
    shell.wait()
    assert shell.check("cat /run/letters") == "a\nb"
    assert "kthreadd" in shell.check("ps")
    assert shell.check("find /sysroot -maxdepth 1 -name usr") == "/sysroot/usr"
    assert "busybox" in shell.check("readlink /usr/bin/less")
    shell.leave()
    witness_of(vm)
