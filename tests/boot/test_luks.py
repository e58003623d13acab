"""Encrypted roots: opened with what a person types or with keys, and what happens when that fails."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyinit_image.access import make_hash
from pyinit_qemu import Disk, Machine
from pyinit_qemu.deb import files
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import ext4, gpt, luks
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import Luks
from pyinit_qemu.kernels import KernelFetchError, fetch_package
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

UUID = "1c0de5ea-0000-4000-8000-00000000000a"
PASSPHRASE = "correct horse"
ROOT = f"quiet root=LABEL={LABEL} rd.luks.name={UUID}=vault"

KEY = bytes(range(256))
#: An emulated machine may need longer than systemd waits for devices, and must be seen to move.
PATIENCE = (
    "systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 systemd.show_status=1"
)
# Where the only partition of a disk begins, and what two copies of a header take at most, in bytes.
PARTITION, HEADERS = 1 << 20, 8 << 20

Start = Callable[..., Machine]


@pytest.fixture(scope="session")
def vault(storage: DebianRoot) -> Callable[..., Luks]:
    """``vault(version=1, ...)``: the small root in a LUKS volume."""

    def make(*, uuid: str = UUID, **options: object) -> Luks:
        root = Ext4(small_root(storage), label=LABEL)
        return luks(root, uuid=uuid, **{"passphrase": PASSPHRASE, **options})

    return make


@pytest.fixture(scope="session")
def opener(storage: DebianRoot, image: Callable[..., Path]) -> Callable[..., Path]:
    """``opener(rescue="none")``: an image that opens encrypted volumes."""

    def make(**options: object) -> Path:
        modules = ("virtio_pci", "virtio_blk", "ext4")
        options.setdefault("rescue", "open")
        return image(storage, mode="list", modules=modules, features=("luks",), **options)

    return make


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot, opener: Callable[..., Path]) -> Start:
    """Boot a machine with these disks."""

    def go(*disks: Path, append: str = ROOT, initrd: Path | None = None, **options: object) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=initrd or opener(),
            disks=tuple(Disk(path) for path in disks),
            append=append,
            **options,
        )

    return go


@pytest.mark.parametrize("version", [1, 2])
def test_a_typed_passphrase_opens_the_root(
    version: int, start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(gpt(vault(version=version)).build())
    vm.expect(r"Passphrase for vault \(/dev/vda1\): ")
    vm.send_line(PASSPHRASE)
    seen = witness_of(vm)
    assert seen.root.type == "ext4"
    assert seen.root.device == "dm-0"
    # What udev knows of the mapping has come along: systemd would drop the root otherwise.
    assert "/dev/disk/by-id/dm-name-vault" in seen.root.links
    assert "*" * len(PASSPHRASE) in vm.console
    assert PASSPHRASE not in vm.console


@pytest.fixture
def doctored(tmp_path: Path) -> Callable[..., Path]:
    """``doctored(disk, edit)``: a copy of a disk whose only partition somebody has edited."""

    def make(disk: Path, edit: Callable[[bytearray], None]) -> Path:
        copy = tmp_path / "doctored.img"
        shutil.copyfile(disk, copy)
        with copy.open("r+b") as file:
            file.seek(PARTITION)
            header = bytearray(file.read(HEADERS))
            edit(header)
            file.seek(PARTITION)
            file.write(header)
        return copy

    return make


def change_metadata(change: Callable[[dict[str, Any]], None]) -> Callable[[bytearray], None]:
    """Change the JSON area of both copies of a LUKS2 header, with right checksums."""

    def edit(header: bytearray) -> None:
        size = int.from_bytes(header[8:16], "big")
        for start in (0, size):
            raw = json.loads(bytes(header[start + 4096 : start + size]).partition(b"\0")[0])
            change(raw)
            header[start + 4096 : start + size] = json.dumps(raw).encode().ljust(size - 4096, b"\0")
            header[start + 448 : start + 512] = bytes(64)
            digest = hashlib.sha256(header[start : start + size]).digest()
            header[start + 448 : start + 448 + len(digest)] = digest

    return edit


def failure(vm: Machine, code: str) -> str:
    """The explanation of the next failure, which must have this code."""
    lines: list[str] = vm.wait_frame("failure")["lines"]
    assert lines[0].startswith(f"{code} "), lines
    return "\n".join(lines)


@pytest.mark.fault("S5", "row-1")
@pytest.mark.parametrize("rescue", ["none", "password"])
def test_wrong_passphrases_end_in_a_machine_that_is_off(
    rescue: str, start: Start, vault: Callable[..., Luks], opener: Callable[..., Path], tmp_path: Path
) -> None:
    """The retry limit once ended in a loop that waits for the device, and that in a root shell."""
    options: dict[str, object] = {"rescue": rescue}
    if rescue == "password":
        options["rescue_password_file"] = tmp_path / "rescue.hash"
        (tmp_path / "rescue.hash").write_text(make_hash(bytearray(b"blueberry")))
    vm = start(
        gpt(vault()).build(),
        append=f"{ROOT} rd.emergency=poweroff rd.timeout=5",
        initrd=opener(**options),
        allow=("banner",),
    )
    vm.expect("Passphrase for vault")
    vm.send_bytes(b"\r" * 500)
    vm.expect(r"try 1 of 3\)\.\nPassphrase for vault \(/dev/vda1\): ")
    vm.send_bytes(b"\x03\x04\x1c\x1a")
    vm.expect(r"try 2 of 3\)\.\nPassphrase for vault \(/dev/vda1\): ")
    vm.send_bytes(b"\r" * 500)
    text = failure(vm, "E-UNLOCK")
    assert "vault cannot be unlocked: 3 wrong passphrases" in text
    if rescue == "password":
        for number in (1, 2, 3):
            vm.expect("Password of the rescue shell: ")
            vm.send_bytes(b"\r" * 500)
            vm.expect(f"this is not the password, try {number} of 3")
        vm.expect("the password of the rescue shell was not given; poweroff in 10 s")
    else:
        vm.expect("no rescue shell is allowed here; poweroff in 10 s")
    vm.send_bytes(b"\r\x03\x04\x1c" * 100)
    outcome = vm.finish(goal="shutdown")
    assert outcome.shutdown == "guest-shutdown"
    assert "# " not in vm.console
    assert "did not appear" not in vm.console


@pytest.mark.fault("S5", "A5")
def test_after_the_shell_it_is_asked_again(
    start: Start,
    vault: Callable[..., Luks],
    witness_of: Callable[[Machine], Witness],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    vm = start(gpt(vault()).build(), append=f"{ROOT} rd.luks.options=tries=1", allow=("banner",))
    vm.expect("Passphrase for vault")
    vm.send_line("wrong")
    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-UNLOCK")
    assert shell.check("dmsetup ls") == "No devices found"
    assert "wrong" not in shell.check("cat /run/pyinit/boot.json /run/initramfs/rdsosreport.txt")
    shell.leave()
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"


@pytest.mark.fault("S5", "P4", "D9")
def test_a_disk_that_falls_silent_while_it_is_opened_is_told_and_asked_for_again(
    start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    """First under cryptsetup, which is killed; then under PID 1, which looks at the header itself."""
    vm = start(gpt(vault()).build(), append=f"{ROOT} rd.timeout=12", allow=("banner",))
    (disk,) = vm.spec.disks
    vm.expect("Passphrase for vault")
    vm.faults.hang(disk)
    vm.send_line(PASSPHRASE)
    told = failure(vm, "E-HANG")
    assert (
        "opening vault (/dev/vda1) does not end: cryptsetup has not ended after 30 s, and was killed" in told
    )
    assert "/dev/vda has not answered" in told
    shell = Shell.rescue(vm, "initqueue")
    assert PASSPHRASE not in shell.check("cat /run/pyinit/boot.json /run/initramfs/rdsosreport.txt")
    shell.leave()
    told = failure(vm, "E-HANG")
    assert "reading the LUKS header of /dev/vda1 does not end" in told
    shell = Shell.rescue(vm, "initqueue")
    vm.faults.heal(disk)
    shell.leave()
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"


@pytest.mark.fault("A5", "row-7")
def test_a_file_system_that_is_damaged_inside_does_not_leave_the_key_to_a_shell(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    empty = luks(uuid=UUID, passphrase=PASSPHRASE)
    vm = start(
        gpt(empty).build(),
        append=f"quiet root=/dev/mapper/vault rd.luks.name={UUID}=vault",
        allow=("banner",),
    )
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert "no file system was recognised" in failure(vm, "E-MOUNT")
    shell = Shell.rescue(vm, "mount")
    assert shell.check("dmsetup ls") == "No devices found"
    assert "logon" not in shell.check("cat /proc/keys")
    shell.leave()
    vm.expect("Passphrase for vault")
    vm.stop()


@pytest.mark.fault("A5", "row-7")
def test_a_break_point_behind_the_mount_closes_what_was_mounted(
    start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(gpt(vault()).build(), append=f"{ROOT} rd.break=pre-pivot", allow=("banner",))
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("dmsetup ls") == "No devices found"
    assert shell.check("ls /sysroot") == ""
    shell.leave()
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"


@pytest.mark.fault("S6")
def test_a_damaged_first_header_is_told_and_the_second_one_used(
    start: Start,
    vault: Callable[..., Luks],
    doctored: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    def edit(header: bytearray) -> None:
        header[5000] ^= 1

    vm = start(doctored(gpt(vault()).build(), edit))
    vm.expect("first header: its checksum is wrong; the other copy of the header is used")
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"


@pytest.mark.fault("S6")
def test_a_header_that_is_damaged_twice_is_explained(
    start: Start,
    vault: Callable[..., Luks],
    doctored: Callable[..., Path],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    def edit(header: bytearray) -> None:
        size = int.from_bytes(header[8:16], "big")
        header[5000] ^= 1
        header[size + 5000] ^= 1

    vm = start(doctored(gpt(vault()).build(), edit), allow=("banner",))
    Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-LUKS")
    assert "Passphrase" not in vm.console
    vm.stop()


@pytest.mark.fault("H5", "row-6")
def test_a_header_that_was_changed_to_no_cipher_is_not_opened(
    start: Start,
    vault: Callable[..., Luks],
    doctored: Callable[..., Path],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["segments"]["0"]["encryption"] = "cipher_null-ecb"

    vm = start(doctored(gpt(vault()).build(), change_metadata(change)), allow=("banner",))
    Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-LUKS-CIPHER")
    assert "Passphrase" not in vm.console
    vm.stop()


@pytest.mark.fault("S8")
def test_a_key_derivation_that_does_not_fit_into_memory_is_told_with_figures(
    start: Start,
    vault: Callable[..., Luks],
    doctored: Callable[..., Path],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    def change(raw: dict[str, Any]) -> None:
        salt = raw["keyslots"]["0"]["kdf"]["salt"]
        raw["keyslots"]["0"]["kdf"] = {
            "type": "argon2id", "time": 4, "memory": 1 << 20, "cpus": 4, "salt": salt,
        }  # fmt: skip

    vm = start(doctored(gpt(vault()).build(), change_metadata(change)), allow=("banner",))
    Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-OOM-KDF")
    assert re.search(r"takes 1024 MiB, [2-4]\d\d MiB are available", vm.console)
    vm.stop()


def test_two_volumes_are_asked_for_once(
    start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    other = UUID.replace("a", "b")
    second = gpt(luks(uuid=other, passphrase=PASSPHRASE)).build()
    vm = start(gpt(vault()).build(), second, append=f"{ROOT} rd.luks.uuid={other}")
    vm.expect(r"Passphrase for (vault|luks-)")
    vm.send_line(PASSPHRASE)
    seen = witness_of(vm)
    assert {f"/dev/mapper/luks-{other}", "/dev/mapper/vault"} <= set(seen.dev)
    assert vm.console.count("Passphrase for") == 1


def test_a_volume_that_nobody_asked_for_stays_closed(
    start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    other = gpt(luks(uuid=UUID.replace("a", "b"), passphrase=PASSPHRASE)).build()
    vm = start(gpt(vault()).build(), other)
    vm.expect(r"Passphrase for vault \(/dev/vda1\): ")
    vm.send_line(PASSPHRASE)
    names = [name for name in witness_of(vm).dev if name.startswith("/dev/mapper/")]
    assert sorted(names) == ["/dev/mapper/control", "/dev/mapper/vault"]


def test_a_key_file_on_a_device_of_its_own(
    start: Start,
    vault: Callable[..., Luks],
    image: Callable[..., Path],
    storage: DebianRoot,
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/root.key").write_bytes(KEY)
    stick = gpt(ext4(tmp_path / "keys", label="stick")).build()
    vm = start(gpt(vault(key=KEY)).build(), stick, append=f"{ROOT} rd.luks.key=/root.key:LABEL=stick rd.info")
    seen = witness_of(vm)
    assert "opened vault (/dev/vda1) with key file /root.key on LABEL=stick" in vm.console
    assert "Passphrase for" not in vm.console
    assert not any("/run/pyinit/keys/" in path for path in seen.run)


@pytest.mark.fault("S5")
def test_a_key_device_that_does_not_appear_leads_to_the_question(
    start: Start, vault: Callable[..., Luks], witness_of: Callable[[Machine], Witness]
) -> None:
    append = f"{ROOT} rd.luks.key=/root.key:LABEL=stick rd.luks.key.tout=2"
    vm = start(gpt(vault(key=KEY)).build(), append=append)
    vm.expect("vault: /root.key on LABEL=stick: its device did not appear")
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"


def test_a_detached_header_and_a_key_in_the_image(
    start: Start,
    vault: Callable[..., Luks],
    opener: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    data, header = vault(detached=True, key=KEY).disks()
    table = b"vault /dev/vda /etc/keys/root.key luks,header=/etc/keys/header,discard\n"
    initrd = opener(
        includes=((table, "/etc/crypttab"), (header, "/etc/keys/header"), (KEY, "/etc/keys/root.key"))
    )
    vm = start(data, append="quiet root=/dev/mapper/vault rd.info", initrd=initrd)
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda) with key file /etc/keys/root.key" in vm.console


def test_a_header_on_a_stick(
    start: Start,
    vault: Callable[..., Luks],
    opener: Callable[..., Path],
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    """Behind a link, which leads to a place on the stick and nowhere else."""
    data, header = vault(detached=True, key=KEY).disks()
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "real").write_bytes(header.read_bytes())
    (folder / "header").symlink_to("/real")
    (folder / "root.key").write_bytes(KEY)
    table = b"vault /dev/vda /root.key:LABEL=stick luks,header=/header:LABEL=stick\n"
    stick = gpt(ext4(folder, label="stick")).build()
    initrd = opener(includes=((table, "/etc/crypttab"),))
    vm = start(data, stick, append="quiet root=/dev/mapper/vault rd.info", initrd=initrd)
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda) with key file /root.key on LABEL=stick" in vm.console


@pytest.mark.fault("row-24")
def test_a_passphrase_is_in_no_memory_once_the_root_is_there(
    start: Start, vault: Callable[..., Luks], tmp_path: Path
) -> None:
    passphrase = "Zanzibar-7f3a-Quokka"
    vm = start(gpt(vault(passphrase=passphrase)).build(), append=f"{ROOT} init=/bin/sh", allow=("banner",))
    vm.expect("Passphrase for vault")
    vm.send_line(passphrase)
    vm.expect(r"^# ")
    vm.qmp("stop")
    dump = tmp_path / "memory"
    vm.qmp("pmemsave", val=0, size=512 << 20, filename=str(dump))
    with dump.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory.find(b"rd.luks.name=") >= 0
        assert memory.find(passphrase.encode()) < 0
    vm.stop()


def test_a_debian_on_luks_starts_with_no_unit_failed(
    start: Start, storage: DebianRoot, opener: Callable[..., Path]
) -> None:
    """The layout that Debian's installer makes: a root named below /dev/mapper, a line in crypttab."""
    root = Ext4(storage.source, label="debian-root", free=64 << 20)
    disk = gpt(luks(root, uuid=UUID, passphrase=PASSPHRASE)).build()
    table = f"vda1_crypt UUID={UUID} none luks,discard\n".encode()
    vm = start(
        disk,
        append=f"quiet root=/dev/mapper/vda1_crypt ro {PATIENCE}",
        initrd=opener(includes=((table, "/etc/crypttab"),)),
        memory=1024 << 20,
    )
    vm.expect("Passphrase for vda1_crypt")
    vm.send_line(PASSPHRASE)
    shell = Shell.login(vm)
    assert shell.check("systemctl --failed --no-legend --plain") == ""
    assert shell.check("findmnt -no SOURCE,OPTIONS /").startswith("/dev/mapper/vda1_crypt rw")
    assert "allow_discards" in shell.check("dmsetup table vda1_crypt")
    assert shell.check("systemctl is-active dev-mapper-vda1_crypt.device") == "active"
    vm.stop().check()


@pytest.fixture(scope="session")
def loadkeys() -> bytes:
    """The program of Debian 12."""
    try:
        package = fetch_package("kbd", "bookworm")
    except KernelFetchError as error:
        pytest.skip(f"infrastructure: {error}")
    return next(data for parts, data in files(package.path.read_bytes()) if parts[-2:] == ("bin", "loadkeys"))


def test_a_screen_asks_with_the_layout_of_its_keyboard(
    start: Start,
    vault: Callable[..., Luks],
    opener: Callable[..., Path],
    loadkeys: bytes,
    witness_of: Callable[[Machine], Witness],
) -> None:
    # A German keyboard has z where others have y. Key codes: keymaps(5).
    keymap = b"keycode 21 = z Z\nkeycode 44 = y Y\n"
    vm = start(
        gpt(vault(passphrase="lazy zebra")).build(),
        append=f"{ROOT} console=ttyS0 console=tty0",
        initrd=opener(includes=((loadkeys, "/usr/bin/loadkeys"), (keymap, "/etc/pyinit/keymap"))),
        vga=True,
    )
    vm.screen.wait_for(r"^Passphrase for vault \(/dev/vda1\): *$")
    vm.keyboard.type("layz yebra\n")
    assert witness_of(vm).root.device == "dm-0"
