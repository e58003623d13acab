"""Who gets a rescue shell: an image with a password, and one without any shell, at every console."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit.config.sealed import CONFIG_PATH, dump_config, parse_config
from pyinit_image import cpio
from pyinit_image.access import make_hash
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout
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
        if rescue == "password":
            options.setdefault("rescue_password_file", hashed)
        return image(mode="list", modules=MODULES, rescue=rescue, **options)

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


@pytest.mark.fault("row-4")
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


def test_a_machine_with_nobody_near_it_restarts_if_panic_says_so(start: Start) -> None:
    vm = start("password", "root=LABEL=gone rd.timeout=1 panic=2")
    vm.expect(QUESTION)
    vm.expect("nobody has pressed a key for 2 s, which panic= asks for; reboot in 0 s")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"


@pytest.mark.fault("row-4", "A2")
def test_no_key_gets_past_the_password(start: Start) -> None:
    vm = start("password", "root=LABEL=gone rd.timeout=1 SYSTEMD_SULOGIN_FORCE=1")
    vm.expect("E-DEV root: LABEL=gone")
    vm.expect(QUESTION)
    for _ in range(16):
        vm.send_bytes(b"x" * (1 << 16))
    vm.send_bytes(b"\r")
    vm.expect("this is not the password, try 1 of 3; the next one in 2 s")
    # Nobody is listened to before the time has passed.
    vm.send_bytes(b"\r" * 500)
    vm.expect(QUESTION)
    vm.send_bytes(b"\x1a\x1c\x13\x11\x03")
    vm.expect("this is not the password, try 2 of 3; the next one in 4 s")
    vm.expect(QUESTION)
    vm.send_bytes(b"\x04")
    vm.expect("this is not the password, try 3 of 3")
    vm.expect("the password of the rescue shell was not given; reboot")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"
    assert "# " not in vm.console


@pytest.mark.fault("row-2", "row-12", "A1", "A3", "A6")
def test_without_a_shell_every_key_and_word_is_tried_in_vain(start: Start) -> None:
    words = "rd.shell=1 rd.pyinit.rescue=open rd.break rd.break=cmdline,initqueue break=mount single"
    words += " SYSTEMD_SULOGIN_FORCE=1 rd.systemd.debug_shell systemd.debug-shell rd.debug=0 init=/bin/sh"
    vm = start("none", f"root=LABEL=gone rd.timeout=8 {words} console=tty0 console=ttyS0", vga=True)
    vm.expect("the command line asks for rescue policy open; what is sealed into the image is stricter")
    vm.expect("rd.break=initqueue is ignored: no shell is allowed here")
    vm.expect("waiting for root: LABEL=gone")
    vm.send_bytes(b"\x03\x04\x1a\x1c\x1b s" + b"\r" * 500)
    vm.keyboard.type("\x03\x04\x1as\n")
    assert "# " not in vm.screen.text()
    vm.expect("E-DEV root: LABEL=gone")
    vm.send_bytes(b"\r\x03\x04")
    vm.expect("no rescue shell is allowed here; reboot")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"
    assert "# " not in vm.console and "assword" not in vm.console


@pytest.mark.fault("row-12", "A3")
def test_a_sealed_image_boots_as_if_nothing_had_been_asked(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("none", "root=LABEL=small-root init=/bin/sh rd.shell rd.break=pre-pivot")
    assert witness_of(vm).argv[0] == "/sbin/init"
    assert "init=/bin/sh is ignored: it may be a shell, which not everybody may have" in vm.console
    assert "rd.break=pre-pivot is ignored" in vm.console


def changed(image: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """A copy of the uncompressed ``image`` with other content in some files, or without them."""
    members = {member.name: member for member in cpio.read(image.read_bytes())[0]}
    for name, content in change.items():
        member = members.pop(name.encode())
        if content is not None:
            members[member.name] = dataclasses.replace(member, data=content)
    # The last member stays the last.
    members[b".pyinit-complete"] = members.pop(b".pyinit-complete")
    target.write_bytes(b"".join(cpio.write(members.values())))
    return target


LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
NO_PROGRAM = b"\x7fELF and nothing else that the kernel could execute"


@pytest.mark.fault("row-14", "A4")
@pytest.mark.parametrize(
    ("rescue", "change", "end"),
    [
        ("password", {"init": NO_PROGRAM}, "No working init found"),
        ("none", {"init": NO_PROGRAM}, "No working init found"),
        ("password", {LOADER: None}, "Attempted to kill init"),
    ],
    ids=["password-init", "none-init", "password-loader"],
)
def test_a_damaged_image_ends_in_a_panic_and_restarts(
    rescue: str,
    change: dict[str, bytes | None],
    end: str,
    start: Start,
    images: Callable[..., Path],
    tmp_path: Path,
) -> None:
    damaged = changed(images(rescue, compress="none"), tmp_path / "damaged.img", change)
    vm = start(rescue, "loglevel=7", initrd=damaged, allow=("panic", "banner", "no-root"))
    vm.expect(end, allow=("panic", "no-root"))
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"
    assert "# " not in vm.console


def test_an_open_image_that_is_damaged_has_the_kernels_own_way_out(
    start: Start, image: Callable[..., Path], tmp_path: Path
) -> None:
    """What the test above could not see if it were blind."""
    whole = image(mode="list", modules=MODULES, rescue="open", compress="none")
    vm = start("open", "loglevel=7", initrd=changed(whole, tmp_path / "damaged.img", {"init": NO_PROGRAM}))
    vm.expect(r"^# ")
    vm.stop()


@pytest.mark.fault("row-4")
def test_a_damaged_hash_lets_nobody_in(start: Start, images: Callable[..., Path], tmp_path: Path) -> None:
    whole = images("password", compress="none")
    name = CONFIG_PATH[1:]
    (member,) = (member for member in cpio.read(whole.read_bytes())[0] if member.name == name.encode())
    config = parse_config(member.data)
    cut = dump_config(config._replace(password=config.password[:-1]))
    damaged = changed(whole, tmp_path / "damaged.img", {name: cut})
    vm = start("password", "root=LABEL=gone rd.timeout=1", initrd=damaged)
    vm.expect("no rescue shell is allowed here; reboot")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"
    assert QUESTION not in vm.console


@pytest.mark.fault("A6")
def test_the_password_is_asked_for_on_every_console(start: Start) -> None:
    vm = start("password", "rd.break=pre-trigger console=tty0 console=ttyS0", vga=True)
    vm.expect(QUESTION)
    vm.screen.wait_for(QUESTION.rstrip())
    half = PASSWORD[:7]
    vm.send_bytes(half.encode())
    vm.expect(r"\*{7}$")
    vm.keyboard.type("wrong\n")
    # Both are told, and the half line on the other console is still there.
    vm.expect(r"this is not the password, try 1 of 3; the next one in 2 s\n" + QUESTION + r"\*{7}$")
    vm.screen.wait_for(r"\*{5}\n.*try 1 of 3")
    vm.send_line(PASSWORD[len(half) :])
    shell = Shell.rescue(vm, "pre-trigger")
    # Who sits at the other one has not given the password.
    vm.keyboard.type("pyinit status\n")
    shell.check("pyinit status")
    assert "*" * 7 not in vm.screen.text() and "pyinit:pre-trigger" not in vm.screen.text()
    assert "asked for:" not in vm.screen.text()
    vm.stop()


@pytest.mark.fault("row-24")
def test_nothing_of_a_password_stays_in_memory(
    start: Start, witness_of: Callable[[Machine], Witness], images: Callable[..., Path], tmp_path: Path
) -> None:
    """All of the guest's memory is searched, in the shell and after the real init has run."""
    hashed = tmp_path / "rescue.hash"
    right, wrong, control = (f"{word}-9f3a6c1e" for word in ("blueberry", "cranberry", "gooseberry"))
    hashed.write_text(make_hash(bytearray(right.encode())))
    initrd = images("password", rescue_password_file=hashed)
    # It stays when the guest has powered off.
    vm = start(
        "password",
        "root=LABEL=small-root rd.break=pre-mount",
        initrd=initrd,
        memory=256 * MIB,
        extra=("-no-shutdown",),
    )

    def found(name: str) -> set[str]:
        dump = tmp_path / name
        vm.qmp("pmemsave", val=0, size=256 * MIB, filename=str(dump))
        with open(dump, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            words = {word for word in (right, wrong, control) if memory.find(word.encode()) >= 0}
        dump.unlink()
        return words

    vm.expect(QUESTION)
    vm.send_line(wrong)
    vm.expect(QUESTION)
    vm.send_line(right)
    shell = Shell.rescue(vm, "pre-mount")
    shell.check(f"echo {control} > /run/control")
    assert found("in the shell") == {control}
    assert shell.run("grep -rE 'blueberry|cranberry' /run /etc /proc/1/environ").status == 1
    assert shell.check("grep -rl gooseberry /run") == "/run/control"
    shell.leave()
    vm.wait_event("SHUTDOWN", Timeout.BOOT)
    assert [frame["kind"] for frame in vm.frames][-1] == "done"
    assert found("after the boot") == {control}
    vm.stop()
