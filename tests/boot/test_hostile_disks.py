"""Disks that somebody prepared: names that drive a terminal, damaged superblocks, copies of the root."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks import gpt as table
from pyinit_qemu.disks.cache import digest_file
from pyinit_qemu.disks.filesystems import Btrfs, Ext2, Ext4, Filesystem, Xfs
from pyinit_qemu.disks.image import Image
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Testimony = Callable[[Machine], Witness]

#: Bytes from the start of a device within which all superblocks lie that are made here (btrfs: at 64 KiB).
HEAD = 128 << 10

SEED = 4484
UUID = "1b2c3d4e-0000-4000-8000-00000000f022"

# ESC sequences that set a title and ask for the cursor's place, carriage return, the 8-bit CSI alone and as
# UTF-8, a right-to-left override.
TITLE = "\x1b]0;owned\x07"
EVIL = ("\x1b[6n", "\r", "\x9b2J", "\u202e", TITLE)


# Leaves in /run/written what inotify(7) tells of files in /dev that were open for writing and were closed.
WATCH = (
    "import ctypes, os; libc = ctypes.CDLL(None); watch = libc.inotify_init(); "
    "libc.inotify_add_watch(watch, b'/dev', 8); log = os.open('/run/written', os.O_CREAT | os.O_WRONLY); "
    "[os.write(log, told) for told in iter(lambda: os.read(watch, 4096), b'')]"
)


def write_disk(path: Path, contents: Sequence[bytes], names: Sequence[str] = ()) -> None:
    """A GPT disk with a partition of 2 MiB for each of ``contents``.

    In less, of the size of a floppy disk, libblkid looks for no RAID member.
    """
    sectors = 2 * (len(contents) + 1) * MIB // 512
    slots = []
    with path.open("wb") as disk:
        disk.truncate(sectors * 512)
        for number, data in enumerate(contents, 1):
            first = (2 * number - 1) * MIB // 512
            os.pwrite(disk.fileno(), data, first * 512)
            name = names[number - 1] if names else f"part{number}"
            identity = f"00000000-0000-4000-8000-{number:012d}"
            slots.append(table.Slot(first, first + 2 * MIB // 512 - 1, uuid=identity, name=name))
        for offset, data in table.gpt(UUID, slots, sectors):
            os.pwrite(disk.fileno(), data, offset)


def head_of(filesystem: Filesystem) -> bytes:
    """The first bytes of a file system that its own tool made."""
    with Image(whole=filesystem).build().open("rb") as file:
        return file.read(HEAD)


def lvm_crc(data: bytes) -> int:
    """CRC-32 without inversion, with the start value of LVM (lib/misc/crc.h)."""
    return ~zlib.crc32(data, ~0xF597A6CF & 0xFFFFFFFF) & 0xFFFFFFFF


def lvm() -> bytes:
    """A physical volume with one volume group (LVM2's lib/format_text/layout.h)."""
    volume = b"abcdefghijklmnopqrstuvwxyz012345"
    text = (
        b'hostile {\nid = "000000-0000-0000-0000-0000-0000-000000"\nseqno = 1\nformat = "lvm2"\n'
        b'status = ["RESIZEABLE", "READ", "WRITE"]\nextent_size = 8\nphysical_volumes {\npv0 {\n'
        b'id = "abcdef-ghij-klmn-opqr-stuv-wxyz-012345"\nstatus = ["ALLOCATABLE"]\npe_start = 1024\n'
        b"pe_count = 64\n}\n}\n}\n\0"
    )
    header = struct.pack("<32sQQQQQQQQQ", volume, 2 * MIB, MIB, 0, 0, 0, 4096, 60 << 10, 0, 0)
    label = struct.pack("<I8s", 32, b"LVM2 001") + header
    label = b"LABELONE" + struct.pack("<QI", 1, lvm_crc(label.ljust(492, b"\0"))) + label
    area = struct.pack(
        "<16sIQQQQII", b" LVM2 x[5A%r0N*>", 1, 4096, 60 << 10, 512, len(text), lvm_crc(text), 0
    )
    area = area.ljust(508, b"\0")
    area = struct.pack("<I", lvm_crc(area)) + area + text
    return bytes(512) + label.ljust(4096 - 512, b"\0") + area


def md() -> bytes:
    """A member of a RAID 1 of two, metadata 1.2 (the kernel's include/uapi/linux/raid/md_p.h)."""

    def block(checksum: int) -> bytes:
        array = struct.pack(
            "<IIII16s32sQIIQII", 0xA92B4EFC, 1, 0, 0, b"a" * 16, b"host:0", 1, 1, 0, 1024, 0, 2
        )
        device = struct.pack("<QQQQII16s", 1024, 1024, 8, 0, 0, 0, b"d" * 16)
        state = struct.pack("<QQQII", 1, 5, 0, checksum, 2)
        return (
            array.ljust(128, b"\0")
            + device.ljust(64, b"\0")
            + state.ljust(64, b"\0")
            + struct.pack("<HH", 0, 1)
        )

    total = sum(struct.unpack("<65I", block(0)))
    return bytes(4096) + block((total & 0xFFFFFFFF) + (total >> 32))


def luks() -> bytes:
    """A LUKS2 header without key slots (cryptsetup's docs/on-disk-format-luks2.pdf)."""
    areas = json.dumps({"keyslots": {}, "tokens": {}, "segments": {}, "digests": {}, "config": {}}).encode()
    areas = areas.ljust(12288, b"\0")

    def header(checksum: bytes) -> bytes:
        return struct.pack(
            ">6sHQQ48s32s64s40s48sQ184x64s", b"LUKS\xba\xbe", 2, 16384, 1, b"hostile", b"sha256", b"s" * 64,
            UUID.encode(), b"", 0, checksum,
        ).ljust(4096, b"\0")  # fmt: skip

    return header(hashlib.sha256(header(b"") + areas).digest()) + areas


def damaged(data: bytes, start: int, chance: random.Random) -> bytes:
    """With one to thirty places changed in the 4 KiB from ``start`` on: bits, extreme numbers, zeros."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 5, 10, 30))):
        at = start + chance.randrange(4096)
        piece = chance.choice(
            (bytes((chance.randrange(256),)), b"\xff" * 4, b"\xff" * 8, bytes(4), b"\x1b[2J")
        )
        changed[at : at + len(piece)] = piece
    return bytes(changed)


def superblocks() -> list[bytes]:
    """A good one of each kind and 17 that were damaged: 108 in all."""
    chance = random.Random(SEED)
    kinds = (
        (head_of(Ext4(label="fuzzed", size=8 * MIB)), 1024),
        (head_of(Xfs(label="fuzzed")), 0),
        (head_of(Btrfs(label="fuzzed")), 64 << 10),
        (lvm(), 512),
        (md(), 4096),
        (luks(), 0),
    )
    found = []
    for data, start in kinds:
        found += [data, *(damaged(data, start, chance) for _ in range(17))]
    return found


@pytest.mark.fault("H2", "row-22")
def test_a_hundred_damaged_superblocks_are_neither_mounted_nor_opened_for_writing(
    boot: Callable[..., Machine],
    storage: DebianRoot,
    image: Callable[..., Path],
    small_disk: Callable[..., Path],
    witness_of: Testimony,
    tmp_path: Path,
) -> None:
    contents = superblocks()
    path = tmp_path / "fuzzed.img"
    write_disk(path, contents)
    before = digest_file(path)
    # Without an overlay: what the guest writes would be in the file.
    vm = boot(
        kernel=storage.kernel,
        initrd=image(storage, features=("lvm", "md", "luks"), rescue="open"),
        disks=(Disk(small_disk()), Disk(path, snapshot=False)),
        append="quiet root=LABEL=small-root rd.break=pre-udev rd.break=pre-pivot",
    )
    shell = Shell.rescue(vm, "pre-udev")
    shell.check(f'(python3 -c "{WATCH}" &)')
    shell.check("until [ -e /run/written ]; do :; done")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("udevadm settle", 300)
    told = shell.check("pyinit devices")
    for kind in ("ext4", "xfs", "btrfs", "LVM2_member", "linux_raid_member", "crypto_LUKS"):
        assert f"  {kind}  " in told, "the good ones are recognised"
    assert sum(line.startswith("/dev/vdb") for line in told.splitlines()) == len(contents) + 1
    shell.check("pyinit report")
    for tool in ("lvm", "mdadm", "cryptsetup"):
        shell.check(f"command -v {tool}")
    assert "vdb" not in shell.check("cat /proc/self/mountinfo")
    assert shell.run("ls /sys/block | grep -E '^(dm|md)'").output == ""
    assert shell.run("grep -a vdb /run/written").output == ""
    shell.check(": >> /dev/vdb1 && until grep -aq vdb1 /run/written; do :; done")
    shell.leave()
    seen = witness_of(vm)
    assert seen.root.device == "vda1"
    assert seen.boot is not None
    assert [mount["source"] for mount in seen.boot["mounts"]] == ["/dev/vda1"]
    assert digest_file(path) == before


def hostile_hardware(path: Path) -> tuple[str, ...]:
    """QEMU's words for an NVMe and a SCSI disk that call themselves what no decent disk does."""
    words: list[str] = ["-device", json.dumps({"driver": "virtio-scsi-pci", "id": "evil", "addr": "0xa"})]
    devices: tuple[dict[str, object], ...] = (
        {"driver": "nvme", "addr": "0x9", "serial": f"{TITLE}\r\x9b6n"},
        {
            "driver": "scsi-hd", "bus": "evil.0", "vendor": "\x1b[2Jx", "product": f"{TITLE}\u202e",
            "serial": f"\r\x9b2J{TITLE}",
        },
    )  # fmt: skip
    for number, device in enumerate(devices):
        file = {"driver": "file", "filename": str(path), "read-only": True}
        node = {"driver": "raw", "node-name": f"evil{number}", "read-only": True, "file": file}
        words += ["-blockdev", json.dumps(node), "-device", json.dumps({**device, "drive": f"evil{number}"})]
    return tuple(words)


def with_label(head: bytes, label: bytes) -> bytes:
    """The head of an ext2 with other bytes for its label (the kernel's fs/ext2/ext2.h, s_volume_name)."""
    at = 1024 + 0x78
    return head[:at] + label.ljust(16, b"\0") + head[at + 16 :]


def printable_strings(value: object) -> bool:
    """Whether all strings in a JSON value are printable ASCII."""
    if isinstance(value, dict):
        return all(map(printable_strings, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(printable_strings, value))
    return not isinstance(value, str) or (value.isascii() and value.isprintable())


#: Ends with 1 when a file has a byte that is neither printable ASCII nor an end of line.
CHECK = (
    "import re, sys; sys.exit(any(re.search(b'[^\\n -~]', open(name, 'rb').read()) for name in sys.argv[1:]))"
)


@pytest.mark.fault("H1", "row-23")
def test_names_that_would_drive_a_terminal_are_shown_escaped(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Testimony,
    tmp_path: Path,
) -> None:
    plain = head_of(Ext2(label="x", size=8 * MIB))
    contents = (
        head_of(Ext4(label=f"{TITLE}\r\x9b2J", size=8 * MIB)),
        head_of(Xfs(label="\x1b[6n\u202e")),
        head_of(Btrfs(label=f"\r{TITLE}\x9b6n\u202e")),
        with_label(plain, b"\xff\x9b6n\r\xfe\x80\x1b[2J"),
    )
    names = (f"{TITLE}\r", "\u202e\x9b6n", "\x1b[2J", "\x7f\t\x1b")
    write_disk(tmp_path / "evil.img", contents, names)
    (tmp_path / "blank").write_bytes(bytes(MIB))
    line = (
        f'quiet root="LABEL={TITLE}\u202egone" rd.timeout=4 rd.{TITLE}\x9b=1 rd.break={TITLE} '
        f'dhcp.hostname="evil\x1b[6n\xff\x9b2J\u202e" domain="{TITLE}\t\x7f"'
    )
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(small_disk()), Disk(tmp_path / "evil.img", readonly=True)),
        append=line,
        extra=hostile_hardware(tmp_path / "blank"),
        allow=("banner",),
    )
    shell = Shell.rescue(vm, "initqueue")
    failure = vm.wait_frame("failure")
    title, mark = r"\x1b]0;owned\x07", r"\u202e"
    assert failure["lines"][0] == f"E-DEV root: LABEL={title}{mark}gone did not appear within 4 s"  # type: ignore[index]
    assert printable_strings(dict(failure))

    shown = {
        name: shell.check(f"pyinit {name}") for name in ("status", "devices", "explain", "timeline", "report")
    }
    assert title in shown["status"] and title in shown["explain"]
    for escaped in (title, r"\x1b[6n", r"\xff\x9b6n"):
        assert escaped in shown["devices"], escaped
    assert all(map(printable_strings, (text.replace("\n", "") for text in shown.values())))
    sent = shell.check("pyinit report --to ttyS0", 300)
    assert "--- udev properties" in sent and title in sent
    files = "/run/initramfs/rdsosreport.txt /run/pyinit/boot.json /run/pyinit/log /run/pyinit/failure"
    shell.check(f'python3 -c "{CHECK}" {files}')
    assert shell.run(f'printf "a\\033b" > /run/evil; python3 -c "{CHECK}" /run/evil').status == 1

    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()
    log = vm.folder / "console.log"
    seen = witness_of(vm)
    assert seen.root.device == "vda1"
    assert seen.boot is not None and printable_strings(seen.boot)
    assert title in seen.boot["cmdline"]
    raw = log.read_bytes()
    # The editor of the shell moves the cursor in the line that is typed, and nowhere else.
    said = re.sub(rb"pyinit:initqueue# [^\n]*", b"", raw[raw.index(b"pyinit: ") :])
    assert not re.search(rb"[^\r\n\t -~]", said), "bytes that drive a terminal"
    assert not re.search(rb"\r(?![\r\n])", said), "a line was written over"


@pytest.mark.fault("D5", "D6", "row-19")
def test_a_copy_of_the_root_is_refused_by_every_name_and_comes_too_late_after_the_mount(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Testimony,
) -> None:
    root = Disk(small_disk())
    copy = root.clone("copy")
    vm = boot(
        kernel=bookworm.kernel,
        initrd=listed,
        disks=(root, copy),
        append="quiet root=LABEL=small-root rd.break=pre-pivot",
        allow=("banner",),
    )
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit devices")
    (described,) = (line for line in told.splitlines() if line.startswith("/dev/vda1"))
    tags = dict(word.split("=") for word in described.split("  ") if "=" in word)
    others = (f"UUID={tags['UUID']}", f"PARTUUID={tags['PARTUUID']}", "PARTLABEL=small-root")
    for asked in ("LABEL=small-root", *others):
        if asked in others:
            shell.check(f"pyinit set root={asked}")
            shell.leave()
            shell = Shell.rescue(vm, "initqueue")
        lines = vm.wait_frame("failure")["lines"]
        assert isinstance(lines, list)
        assert lines[0] == f"E-AMBIG 2 devices match root: {asked}"
        assert sum(bool(re.search(r"/dev/vda1  \d+ MiB  ext4", line)) for line in lines) == 1
        assert sum(bool(re.search(r"/dev/vdb1  \d+ MiB  ext4", line)) for line in lines) == 1

    vm.unplug(copy)
    shell.leave()
    shell = Shell.rescue(vm, "pre-pivot")
    vm.plug(copy)
    shell.check("udevadm settle --exit-if-exists=/dev/vdb1", 120)
    shell.check("until pyinit devices | grep -q ^/dev/vdb1; do :; done")
    shell.leave()
    seen = witness_of(vm)
    assert seen.root.device == "vda1"
    assert seen.boot is not None
    assert [want["outcome"] for want in seen.boot["wants"]] == ["ambiguous"] * 4 + ["satisfied"]
