"""An EFI system partition holds no hard links: there, too, one whole image is in place at every moment."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import pyinit_image
from pyinit_image.build import BuildSpec, build
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell

pytestmark = pytest.mark.boot

SECTOR, SECTORS, FAT_SECTORS, ROOT_ENTRIES = 512, 65_536, 128, 512

# Runs the installer of this source tree on vfat. Each call of its module `os`, and the exchange of two
# names, is followed by a look at the directory.
HOOK = """
import collections.abc, contextlib, errno, fcntl, hashlib, importlib, json, os, pathlib, stat
from pyinit.kernel import syscalls

OLD, NEW, LAST = (bytes([number]) * 100_000 for number in (1, 2, 3))


def pre_pivot(moment):
    os.mkdir("/run/esp")
    syscalls.mount("/dev/vdb", "/run/esp", "vfat")
    image = pathlib.Path("/run/esp/image")
    install = importlib.import_module("pyinit_image.install")
    install.install(image, OLD)
    seen = []
    for name in ("write", "fsync", "close", "link", "rename", "unlink"):
        setattr(os, name, _watched(name, getattr(os, name), image, seen))
    install.exchange = _watched("exchange", install.exchange, image, seen)
    install.install(image, NEW)
    install.install(image, [LAST[:1000], LAST[1000:]])
    # Everybody could read a key there: every file has the mode that the mount gives it.
    try:
        refused = install.install(image, OLD, secrets=["/etc/root.key"]) or ""
    except install.BuildError as error:
        refused = str(error)
    names = sorted(os.listdir("/run/esp"))
    previous = _state(image.with_name("image.old"))
    result = {"seen": seen, "names": names, "previous": previous, "refused": refused}
    with open("/run/result", "w") as file:
        json.dump(result, file)


def _state(path):
    return {OLD: "old", NEW: "new", LAST: "last"}.get(path.read_bytes(), "broken")


def _watched(name, real, image, seen):
    def call(*arguments, **options):
        try:
            return real(*arguments, **options)
        except OSError as error:
            seen.append(f"{name}: {errno.errorcode[error.errno]}")
            raise
        finally:
            if image.exists():
                seen.append(_state(image))
            else:
                seen.append(f"nothing after {name}")
    return call
"""


def fat16() -> bytes:
    """An empty file system of 32 MiB (Microsoft, "FAT: General Overview of On-Disk Format", 1.03)."""
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(
            b"\xeb\x3c\x90",
            b"pyinit  ",
            SECTOR,
            4,
            1,
            2,
            ROOT_ENTRIES,
            0,
            0xF8,
            FAT_SECTORS,
            32,
            2,
            0,
            SECTORS,
        ),
        *(0x80, 0, 0x29, 0x12345678, b"ESP        ", b"FAT16   "),
    )
    image = bytearray(SECTORS * SECTOR)
    image[: len(boot)] = boot
    image[510:512] = b"\x55\xaa"
    for number in range(2):
        at = (1 + number * FAT_SECTORS) * SECTOR
        image[at : at + 4] = b"\xf8\xff\xff\xff"
    return bytes(image)


def test_I1_installation_on_vfat(
    boot: Callable[..., Machine], bookworm: DebianRoot, small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    hook, image, disk = tmp_path / "install.py", tmp_path / "initrd.img", tmp_path / "esp.raw"
    hook.write_text(HOOK)
    disk.write_bytes(fat16())
    source = Path(pyinit_image.__path__[0])
    includes = tuple(
        (source / name, f"/usr/lib/pyinit/pyinit_image/{name}")
        for name in ("__init__.py", "errors.py", "install.py")
    )
    modules = (
        "virtio_pci",
        "virtio_blk",
        "ext4",
        "vfat",
        "nls_cp437",
        "nls_ascii",
        "nls_iso8859_1",
        "nls_utf8",
    )
    build(
        BuildSpec(image, bookworm.tree, bookworm.release, "list", modules, includes=includes, hooks=(hook,))
    )
    vm = boot(
        kernel=bookworm.kernel, initrd=image, disks=(Disk(small_disk()), Disk(disk)),
        append="quiet root=LABEL=small-root rd.break=cleanup",
    )  # fmt: skip
    shell = Shell.rescue(vm, "cleanup")
    result = json.loads(shell.check("cat /run/result"))
    vm.stop()
    seen = result["seen"]
    assert "link: EPERM" in seen
    assert [
        state for state in seen if state not in ("old", "new", "last", "link: EPERM", "unlink: ENOENT")
    ] == []
    # Old, then new, then last, and never back.
    states = [state for state in seen if ":" not in state]
    assert states == sorted(states, key=["old", "new", "last"].index)
    assert states[0] == "old" and states[-1] == "last"
    assert result["names"] == ["image", "image.old"]
    assert result["previous"] == "new"
    assert "the image has /etc/root.key in it and could be read by everybody" in result["refused"]
