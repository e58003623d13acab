"""Roots whose key is in the machine's TPM, an emulated one, or in a FIDO2 device, one of the tests' own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import STORAGE, ArchiveError, DebianRoot, provision
from pyinit_qemu.disks.declare import gpt, luks
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = [pytest.mark.boot, pytest.mark.needs_tool("swtpm")]

KEY = Path(__file__).parent / "hooks" / "80-security-key.py"

UUID = "7b3a0000-0000-4000-8000-00000000000a"
PASSPHRASE = "correct horse"
PIN = "2357"
LIBRARIES = ("libtss2-esys-3.0.2-0", "libtss2-mu0", "libtss2-rc0", "libtss2-tcti-device0", "libfido2-1")


@pytest.fixture(scope="module")
def system() -> DebianRoot:
    """Debian 12 with cryptsetup and what speaks with a TPM and with FIDO2 devices."""
    try:
        return provision("bookworm", packages=(*STORAGE, *LIBRARIES))
    except ArchiveError as error:
        pytest.skip(f"infrastructure: {error}")


@pytest.fixture
def compressed(system: DebianRoot, tmp_path: Path) -> Path:
    """The kernel with its decompressor.

    With a TPM the firmware puts its tables lower, where QEMU's loader for uncompressed kernels puts the end
    of the initramfs. Other kernels get that below 2 GiB, away from the tables of a larger machine. Without
    these two fields (Documentation/arch/x86/boot.rst, payload_offset and payload_length), which no loader
    uses, it is not uncompressed before it is started.
    """
    image = bytearray(system.kernel.read_bytes())
    image[0x248:0x250] = bytes(8)
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    return path


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Callable[[], tuple[str, ...]]]:
    """``tpm()``: switch the TPM on for the next machine; the words of QEMU that plug it in."""
    processes = []
    (tmp_path / "tpm").mkdir()

    def switch_on() -> tuple[str, ...]:
        socket = tmp_path / f"tpm{len(processes)}"
        command = ["swtpm", "socket", "--tpm2", "--terminate"]
        command += ["--tpmstate", f"dir={tmp_path}/tpm", "--ctrl", f"type=unixio,path={socket}"]
        processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        while not socket.exists():
            assert processes[-1].poll() is None, "swtpm has ended"
        return (
            *("-chardev", f"socket,id=chrtpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=chrtpm"),
            *("-device", "tpm-tis,tpmdev=tpm0"),
        )

    yield switch_on
    for process in processes:
        process.terminate()
        process.wait()


def test_the_tpm_opens_the_root_and_without_it_a_person_does(
    boot: Callable[..., Machine],
    system: DebianRoot,
    image: Callable[..., Path],
    compressed: Path,
    tpm: Callable[[], tuple[str, ...]],
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    root = Ext4(small_root(system), label=LABEL)
    disk = tmp_path / "disk.img"
    disk.write_bytes(gpt(luks(root, uuid=UUID, passphrase=PASSPHRASE)).build().read_bytes())
    enroll = system.tree / "usr/bin/systemd-cryptenroll"
    initrd = image(
        system,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4"),
        features=("luks", "tpm2"),
        rescue="open",
        includes=((enroll, "/usr/bin/systemd-cryptenroll"),),
    )

    def start(append: str, extra: tuple[str, ...] = (), **options: object) -> Machine:
        return boot(
            kernel=compressed,
            initrd=initrd,
            disks=(Disk(disk, snapshot=False),),
            memory=2560 << 20,
            append=f"quiet root=LABEL={LABEL} {append}",
            extra=extra,
            **options,
        )

    vm = start("rd.break=initqueue", tpm(), allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    shell.check(
        f"PASSWORD='{PASSPHRASE}' systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=7 /dev/vda1 && sync"
    )
    vm.stop()

    asked = f"rd.luks.name={UUID}=vault rd.info"
    vm = start(asked, tpm())
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda1) with the machine's TPM" in vm.console
    assert "Passphrase" not in vm.console

    vm = start(asked)
    vm.expect("vault: the machine's TPM has a key for it, and is not there")
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"

    vm = start("rd.break=initqueue", tpm(), allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    shell.check(
        f"PASSWORD='{PASSPHRASE}' NEWPIN={PIN} systemd-cryptenroll --wipe-slot=tpm2 --tpm2-device=auto"
        " --tpm2-pcrs=7 --tpm2-with-pin=yes /dev/vda1 && sync"
    )
    vm.stop()
    vm = start(asked, tpm())
    vm.expect("Passphrase or PIN for vault")
    vm.send_line(PIN)
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda1) with the machine's TPM and a PIN" in vm.console


def test_a_security_key_opens_the_root_by_touch_and_by_pin(
    boot: Callable[..., Machine],
    system: DebianRoot,
    image: Callable[..., Path],
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    """What systemd-cryptenroll --fido2-device= leaves in the header is written by cryptsetup here."""
    root = Ext4(small_root(system), label=LABEL)
    disk = tmp_path / "disk.img"
    disk.write_bytes(gpt(luks(root, uuid=UUID, passphrase=PASSPHRASE)).build().read_bytes())
    salt = b"s" * 32
    secret = base64.b64encode(hmac.digest(b"the secret of the credential.....", salt, hashlib.sha256))
    token = {
        "type": "systemd-fido2",
        "keyslots": ["1"],
        "fido2-credential": base64.b64encode(b"the credential").decode(),
        "fido2-salt": base64.b64encode(salt).decode(),
        "fido2-rp": "io.systemd.cryptsetup",
        "fido2-up-required": True,
        "fido2-uv-required": False,
    }
    tokens = [json.dumps({**token, "fido2-clientPin-required": pin}).encode() for pin in (False, True)]
    initrd = image(
        system,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4", "uhid", "algif_skcipher", "algif_hash", "sha256"),
        features=("luks", "fido2"),
        rescue="open",
        hooks=(KEY,),
        includes=((secret, "/root/key"), (tokens[0], "/root/touch.json"), (tokens[1], "/root/pin.json")),
    )

    def start(append: str, **options: object) -> Machine:
        append = f"quiet root=LABEL={LABEL} {append}"
        disks = (Disk(disk, snapshot=False),)
        return boot(kernel=system.kernel, initrd=initrd, disks=disks, append=append, **options)

    def enroll(*commands: str) -> None:
        vm = start("rd.break=initqueue", allow=("banner",))
        shell = Shell.rescue(vm, "initqueue")
        for command in (*commands, "sync"):
            shell.check(command)
        vm.stop()

    asked = f"rd.luks.name={UUID}=vault rd.info"
    enroll(
        f"printf '{PASSPHRASE}' | cryptsetup luksAddKey -q --pbkdf pbkdf2 --key-file - /dev/vda1 /root/key",
        "cryptsetup token import --json-file /root/touch.json /dev/vda1",
    )
    vm = start(f"{asked} test.key=")
    vm.expect("vault: touch a FIDO2 device, or type a passphrase")
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda1) with a FIDO2 device" in vm.console

    enroll(
        "cryptsetup token remove --token-id 0 /dev/vda1",
        "cryptsetup token import --json-file /root/pin.json /dev/vda1",
    )
    vm = start(f"{asked} test.key={PIN}")
    vm.expect("Passphrase or PIN for vault")
    vm.send_line("0000")
    vm.expect("That does not open vault")
    vm.send_line(PIN)
    assert witness_of(vm).root.device == "dm-0"
    assert "opened vault (/dev/vda1) with a FIDO2 device and a PIN" in vm.console

    vm = start(asked)
    vm.expect("vault: a FIDO2 device has a key for it, and is not there")
    vm.expect("Passphrase for vault")
    vm.send_line(PASSPHRASE)
    assert witness_of(vm).root.device == "dm-0"
