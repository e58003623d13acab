"""Command lines, processors and images that are not kind to an interpreter."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image import cpio
from pyinit_qemu import MIB, Disk, Machine, VmSpec
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.spec import command_line
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


@pytest.mark.fault("K3", "K4", "row-11")
def test_raw_bytes_and_quotes_on_a_command_line_as_long_as_the_kernel_takes(
    arrive: Callable[..., Witness], bookworm: DebianRoot, listed: Path
) -> None:
    """Bytes that are no text in any encoding, as surrogates; the kernel takes 0xa0 for a blank."""
    raw = bytes(range(0x80, 0x100)).decode("ascii", "surrogateescape")
    words = f'odd={raw} rd.nonsense=\x1b[2J "quoted word" x="a b" pad='
    line = command_line(VmSpec(bookworm.kernel, listed, append=f"quiet root=LABEL=small-root {words}"))
    # COMMAND_LINE_SIZE of x86 is 2048, with the zero at the end.
    seen = arrive(words + "p" * (2047 - len(os.fsencode(line))))
    assert len(os.fsencode(seen.cmdline)) == 2047
    assert seen.environment["odd"] == raw[: 0xA0 - 0x80]
    assert set(seen.environment["pad"]) == {"p"}


# Whatever udev and the kernel make, nobody but root and the group of the thing can use it, except:
FOR_ALL = {
    "/dev/full": "0666", "/dev/null": "0666", "/dev/ptmx": "0666", "/dev/pts/ptmx": "0000",
    "/dev/random": "0666", "/dev/tty": "0666", "/dev/urandom": "0666", "/dev/zero": "0666",
    "/dev/kmsg": "0644", "/dev/fuse": "0666", "/dev/vfio/vfio": "0666", "/dev/net/tun": "0666",
    "/dev/rfkill": "0664", "/dev/rtc0": "0600",
}  # fmt: skip

#: What each node is, one line each: path, mode, owner, group.
NODES = (
    "import os,stat;"
    "[print(p,oct(s.st_mode&0o7777)[2:].zfill(4),s.st_uid,s.st_gid,stat.filemode(s.st_mode)[0]) "
    "for d,_,n in os.walk('/dev') for p in [d]+[d+'/'+x for x in n] for s in [os.lstat(p)]]"
)
# The environments of process 1 and of the shell.
ENVIRONMENTS = (
    "import os;"
    "print([open('/proc/%d/environ'%p,'rb').read().decode().split(chr(0)) for p in (1,os.getppid())])"
)
# The environment that /init gives to the interpreter (docs/design.md, 8.1).
FIXED = (
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM=linux PYTHONHOME=/usr PYTHONPATH=/usr/lib/pyinit "
    "PYTHONHASHSEED=0 PYTHONUTF8=1 PYTHONCOERCECLOCALE=0"
)


@pytest.mark.fault("row-9", "row-10", "K5")
def test_right_before_the_switch_no_node_is_open_to_all_and_no_word_has_come_in(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    line = f"quiet root=LABEL=small-root rd.break {' '.join(HOSTILE[:26])}"
    vm = boot(kernel=bookworm.kernel, initrd=listed, disks=(Disk(small_disk()),), append=line)
    shell = Shell.rescue(vm, "switch-root")
    ours, given = ast.literal_eval(shell.check(f'python3 -c "{ENVIRONMENTS}"'))
    assert sorted(filter(None, ours)) == sorted(FIXED.split())
    assert not {word for word in given if word.startswith("LD_") or word in HOSTILE}
    nodes = [row.split() for row in shell.check(f'python3 -c "{NODES}"').splitlines()]
    assert len(nodes) > 30
    assert [row for row in nodes if not _is_kept(*row)] == []
    shell.leave()
    witness_of(vm)


def _is_kept(path: str, mode: str, owner: str, group: str, kind: str) -> bool:
    """Whether a node is for root and its group alone, as far as it is not one for all."""
    if kind == "l":
        return True
    # Groups: root, tty, disk and the like; none is a person's.
    if owner != "0" or int(group) >= 1000:
        return False
    if kind == "d":
        return mode == ("1777" if path == "/dev/shm" else "0755")
    return FOR_ALL.get(path, mode) == mode and (path in FOR_ALL or int(mode, 8) & ~0o660 == 0)


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
