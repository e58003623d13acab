"""Inits of other people: a shell script and a C program that report from the first line of PID 1 on.

No module is loaded, no file system mounted, nothing of this project runs in the guest but what
``pyinit-qemu guest`` prints. The last test is about the other end: a root that has nothing of ours.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image.cpio import Member, write
from pyinit_qemu import Disk, Frame, Verdict
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.guest_command import SOURCES
from pyinit_qemu.plugin import Boots

pytestmark = pytest.mark.boot

WAIT = 300.0

# What it plays is a word of the kernel command line that is no option of the kernel: its environment.
SHELL = """#!/bin/sh
. /report.sh
pyinit_report hello pid=$$
pyinit_report result status=0 "text=it's 100 % well"
case $play in
done) pyinit_report done;;
garbled) echo "pyinit 28 1234567890 3 done" >/dev/ttyS1;;
failure) pyinit_report failure "code=no root"; read forever;;
esac
"""

C = """#include <stdlib.h>
#include <sys/reboot.h>
#include "report.h"

int main(void)
{
    pyinit_report("hello", "pid", getpid() == 1 ? "1" : "other", NULL);
    pyinit_report("result", "status", "0", "text", "it's 100 % well", NULL);
    if (!strcmp(getenv("play"), "done"))
        pyinit_report("done", NULL);
    reboot(RB_POWER_OFF);
}
"""

FRAMES = [
    {"kind": "hello", "pid": "1"},
    {"kind": "result", "status": "0", "text": "it's 100 % well"},
    {"kind": "done"},
]


def archive(folder: Path, *members: Member) -> Path:
    path = folder / "initrd"
    path.write_bytes(b"".join(write(members)))
    return path


def folder(name: bytes) -> Member:
    return Member(name, stat.S_IFDIR | 0o755)


def file(name: bytes, data: bytes) -> Member:
    return Member(name, stat.S_IFREG | 0o755, data)


CONSOLE = Member(b"dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
CHANNEL = Member(b"dev/ttyS1", stat.S_IFCHR | 0o600, device=(4, 65))


@pytest.fixture(scope="module")
def busybox_init(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox, the functions and a script; /dev/ttyS1 is made by the functions."""
    off = "exec /bin/busybox poweroff -f\n"
    return archive(
        tmp_path_factory.mktemp("busybox"),
        *(folder(name) for name in (b"bin", b"dev")),
        CONSOLE,
        file(b"bin/busybox", busybox.read_bytes()),
        Member(b"bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        Member(b"bin/mknod", stat.S_IFLNK | 0o777, b"busybox"),
        file(b"report.sh", SOURCES["sh"].read_bytes()),
        file(b"init", f"{SHELL}{off}".encode()),
    )


@pytest.fixture(scope="module")
def dash_init(bookworm: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's shell and its library, and no program at all: it ends by a panic, like many an init."""
    library = b"lib/x86_64-linux-gnu"
    tree = bookworm.tree / "usr"
    return archive(
        tmp_path_factory.mktemp("dash"),
        *(folder(name) for name in (b"bin", b"dev", b"lib64", b"lib", library)),
        CONSOLE,
        CHANNEL,
        file(b"bin/sh", (tree / "bin/dash").read_bytes()),
        file(
            b"lib64/ld-linux-x86-64.so.2",
            (tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").read_bytes(),
        ),
        file(library + b"/libc.so.6", (tree / "lib/x86_64-linux-gnu/libc.so.6").read_bytes()),
        file(b"report.sh", SOURCES["sh"].read_bytes()),
        file(b"init", SHELL.encode()),
    )


def compile_c(source: Path, target: Path) -> None:
    include = f"-I{SOURCES['c'].parent}"
    words = ["gcc", "-Os", "-Wall", "-Werror", "-static", include, "-o", str(target), str(source)]
    subprocess.run(words, check=True)


@pytest.fixture(scope="module")
def c_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program and nothing else; it makes its device nodes by itself."""
    work = tmp_path_factory.mktemp("c")
    (work / "init.c").write_text(C)
    compile_c(work / "init.c", work / "init")
    return archive(work, file(b"init", (work / "init").read_bytes()))


@pytest.mark.parametrize("init", ["busybox_init", "c_init"])
def test_it_reports_and_passes(
    boot: Boots, probe_kernel: Path, request: pytest.FixtureRequest, init: str
) -> None:
    outcome = boot(kernel=probe_kernel, initrd=request.getfixturevalue(init), append="play=done").finish(WAIT)
    assert outcome.check().verdict is Verdict.PASS
    assert list(outcome.frames) == FRAMES
    assert outcome.shutdown == "guest-shutdown"


@pytest.mark.parametrize("init", ["busybox_init", "c_init"])
def test_without_its_last_frame_it_has_not_passed(
    boot: Boots, probe_kernel: Path, request: pytest.FixtureRequest, init: str
) -> None:
    outcome = boot(kernel=probe_kernel, initrd=request.getfixturevalue(init), append="play=less").finish(WAIT)
    assert outcome.verdict is Verdict.GUEST_FAIL
    assert outcome.reason == (
        "the guest powered off before this was seen: the last frame (done) on the result channel"
    )
    assert list(outcome.frames) == FRAMES[:2]


def test_a_garbled_frame_is_named(boot: Boots, probe_kernel: Path, busybox_init: Path) -> None:
    outcome = boot(kernel=probe_kernel, initrd=busybox_init, append="play=garbled").finish(WAIT)
    assert outcome.verdict is Verdict.GUEST_FAIL
    assert outcome.reason == (
        "the result channel is damaged: 6 bytes where 28 were announced: b'pyinit 28 1234567890 3 done'"
    )


def test_a_failure_that_it_reports_ends_the_wait(boot: Boots, probe_kernel: Path, dash_init: Path) -> None:
    vm = boot(kernel=probe_kernel, initrd=dash_init, append="play=failure")
    outcome = vm.finish(WAIT)
    assert outcome.verdict is Verdict.GUEST_FAIL
    assert outcome.reason.endswith(": no root")


def test_a_shell_without_any_program(boot: Boots, probe_kernel: Path, dash_init: Path) -> None:
    # Nothing in there can power off: the end of PID 1 is a panic, and here it may be.
    vm = boot(kernel=probe_kernel, initrd=dash_init, append="play=done", allow=["panic"])
    assert vm.wait_frame("result", WAIT) == FRAMES[1]
    outcome = vm.finish(WAIT).check()
    assert list(outcome.frames) == FRAMES
    assert "Attempted to kill init!" in outcome.console


def test_a_root_without_python(
    boot: Boots, bookworm: DebianRoot, initramfs: Callable[..., Path], tmp_path: Path
) -> None:
    """What our own image hands over to needs nothing of ours: the C witness is all there is."""
    for name in ("dev", "proc", "run", "sbin", "sys"):
        (tmp_path / "root" / name).mkdir(parents=True)
    compile_c(SOURCES["c-init"], tmp_path / "root/sbin/init")
    disk = Image(gpt=(Partition(Ext4(Tree(tmp_path / "root"), label="bare")),)).build()
    vm = boot(
        kernel=bookworm.kernel,
        initrd=initramfs(mode="list", modules=("virtio_pci", "virtio_blk", "ext4")),
        disks=(Disk(disk),),
        append="quiet root=LABEL=bare -- single --last",
    )
    outcome = vm.finish(WAIT).check()
    kinds: dict[str, list[Frame]] = {}
    for frame in outcome.frames:
        kinds.setdefault(frame["kind"], []).append(frame)
    # PID 1's own frames and the other form, one after the other.
    assert outcome.frames[0]["kind"] == "hello" and len(kinds["done"]) == 1
    assert [frame["pid"] for frame in kinds["init"]] == ["1"]
    assert [frame["text"] for frame in kinds["argument"]] == ["/sbin/init", "single", "--last"]
    mounts = {frame["target"]: frame["rest"].split()[0] for frame in kinds["mount"]}
    assert mounts == {
        "/": "ext4",
        "/dev": "devtmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/proc": "proc",
        "/run": "tmpfs",
        "/sys": "sysfs",
    }
