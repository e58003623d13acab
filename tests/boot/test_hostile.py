"""Command lines, processors and images that are not kind to an interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image import cpio
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

# The kernel takes at most 32 environment words, two of them its own (init/main.c, MAX_INIT_ENVS).
HOSTILE = (
    "PYTHONINSPECT=1", "PYTHONHOME=/nowhere", "PYTHONPATH=/nowhere", "PYTHONPLATLIBDIR=nowhere",
    "PYTHONIOENCODING=nonsense", "PYTHONHASHSEED=nonsense", "PYTHONMALLOC=nonsense", "PYTHONSTARTUP=/dev/vda",
    "PYTHONUTF8=nonsense", "PYTHONCOERCECLOCALE=warn", "PYTHONVERBOSE=1", "PYTHONTRACEMALLOC=nonsense",
    "PYTHONWARNINGS=error", "PYTHONOPTIMIZE=2", "PYTHONEXECUTABLE=/nowhere", "PYTHONFAULTHANDLER=1",
    "PYTHONDEBUG=1", "PYTHONDUMPREFS=1", "PYTHONPROFILEIMPORTTIME=1", "LD_TRACE_LOADED_OBJECTS=1",
    "LD_DEBUG=help", "LD_PRELOAD=/nowhere.so", "LD_LIBRARY_PATH=/nowhere", "LD_BIND_NOW=1",
    "LD_SHOW_AUXV=1", "LANG=tlh", "LC_ALL=nonsense", "PATH=/nowhere",
)  # fmt: skip


@pytest.fixture
def arrive(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> Callable[..., Witness]:
    """Boot the small root and return what its witness says."""

    def go(append: str = "", *, initrd: Path = listed, **fields: object) -> Witness:
        vm = boot(
            kernel=bookworm.kernel, initrd=initrd, disks=(Disk(small_disk()),),
            append=f"quiet root=LABEL=small-root {append}", **fields,
        )  # fmt: skip
        return witness_of(vm)

    return go


@pytest.mark.fault("K5", "row-10")
def test_environment_words_reach_neither_the_interpreter_nor_the_loader(
    arrive: Callable[..., Witness],
) -> None:
    seen = arrive(" ".join(HOSTILE))
    kept = dict(word.split("=", 1) for word in HOSTILE if not word.startswith(("PYTHON", "LD_")))
    assert seen.environment == {"HOME": "/", "TERM": "linux", **kept}


@pytest.mark.fault("K3", "row-11")
def test_raw_bytes_and_quotes_on_the_command_line(arrive: Callable[..., Witness]) -> None:
    seen = arrive('odd=\xff\xfe rd.nonsense=\x1b[2J "quoted word" x="a b')
    assert seen.pid == 1


def test_a_type_that_does_not_fit_is_followed_by_the_one_udev_found(arrive: Callable[..., Witness]) -> None:
    assert arrive("rootfstype=nonsense,vfat").root.type == "ext4"


@pytest.mark.fault("F6")
def test_rw_on_a_medium_that_cannot_be_written(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = Disk(small_disk(), readonly=True)
    vm = boot(kernel=bookworm.kernel, initrd=listed, disks=(disk,), append="quiet root=LABEL=small-root rw")
    assert witness_of(vm).root.read_only


def test_without_quiet_each_step_is_told(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    line = "root=LABEL=small-root rd.debug"
    vm = boot(kernel=bookworm.kernel, initrd=listed, disks=(Disk(small_disk()),), append=line)
    witness_of(vm)
    steps = (
        "module ext4: ",
        "root is /dev/vda1",
        "mounted /dev/vda1 (ext4) on /sysroot",
        "switching to /sbin/init",
    )
    positions = [vm.console.index(f"pyinit: {step}") for step in steps]
    assert positions == sorted(positions)
    assert "suppressed due to ratelimiting" not in vm.console


def test_a_processor_without_random_numbers_is_not_waited_for(arrive: Callable[..., Witness]) -> None:
    seen = arrive(cpu="qemu64")
    assert seen.boot is not None
    # The kernel says this once it has enough entropy: the interpreter did not need it.
    ready = [line for line in seen.kernel_log if "crng init done" in line]
    started = seen.boot["started"] / 1e6
    assert not ready or float(ready[0].strip("[] ").split("]")[0]) > started


def without(image: Path, *names: str) -> bytes:
    """The image, uncompressed, without some of its members."""
    members, _ = cpio.read(image.read_bytes())
    # The layers of an image share directories.
    kept = {member.name: member for member in members if member.name.decode() not in names}
    return b"".join(cpio.write(kept.values()))


def test_an_image_without_random_devices_boots(
    arrive: Callable[..., Witness], image: Callable[..., Path], tmp_path: Path
) -> None:
    plain = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"), compress="none")
    bare = tmp_path / "bare.img"
    bare.write_bytes(without(plain, "dev/urandom", "dev/random"))
    assert arrive(initrd=bare, cpu="qemu64").pid == 1


def test_an_image_that_was_cut_off_is_noticed(
    boot: Callable[..., Machine], bookworm: DebianRoot, image: Callable[..., Path], tmp_path: Path
) -> None:
    plain = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"), compress="none")
    cut = tmp_path / "cut.img"
    cut.write_bytes(without(plain, ".pyinit-complete"))
    line = "quiet root=LABEL=x rd.emergency=poweroff rd.shell=0"
    vm = boot(kernel=bookworm.kernel, initrd=cut, append=line, allow=("banner",))
    vm.expect("pyinit: E-IMAGE the initramfs is not complete")
    vm.stop()


def test_an_image_whose_policy_cannot_be_read_opens_no_shell_and_ends_as_the_line_says(
    boot: Callable[..., Machine], bookworm: DebianRoot, image: Callable[..., Path], tmp_path: Path
) -> None:
    plain = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"), compress="none")
    broken = tmp_path / "broken.img"
    broken.write_bytes(without(plain, "etc/pyinit/config.json"))
    line = "quiet root=LABEL=x rd.emergency=reboot"
    vm = boot(kernel=bookworm.kernel, initrd=broken, append=line, allow=("banner",))
    vm.expect("pyinit: E-IMAGE /etc/pyinit/config.json cannot be read")
    vm.expect("no rescue shell is allowed here; reboot in 10 s")
    vm.stop()


@pytest.mark.fault("X1")
def test_160_mib_of_memory_are_enough(arrive: Callable[..., Witness]) -> None:
    assert arrive(memory=160 * MIB).pid == 1
