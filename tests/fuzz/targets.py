"""Every parser of bytes that a stranger may have chosen, and what may come of them.

One list for Hypothesis (test_hostile_input.py) and for coverage-guided runs (scripts/fuzz). A target is
called with bytes and returns; whatever it raises is a defect. ``seeds`` are good inputs to start from,
``words`` what the format is made of.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyinit import memdebug, record, shutdown
from pyinit.config import (
    bcache,
    cmdline,
    crypttab,
    devspec,
    discoverable,
    distance,
    fstab,
    multipath,
    options,
    sealed,
    volumes,
)
from pyinit.devices import udev, waiting
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel import executable, memory, messages, modules, mountinfo
from pyinit.kernel.console import Console
from pyinit.kernel.line import Line
from pyinit.record import Record, timeline
from pyinit.rescue import cli, explain, missing, probe, report, small, status, working
from pyinit.rescue.editor import Editor
from pyinit.root import belongs, discover, fsck, imagefile, layers, mount, resume
from pyinit.storage import luks_header, luks_tokens, md, verity
from pyinit.switch_root import make_plan, real_environ
from pyinit.text import printable
from pyinit_image import (
    archive,
    configuration,
    cpio,
    elf,
    facts,
    hooks,
    kmodindex,
    kmods,
    plan,
    stand_in,
    tables,
)
from pyinit_image import udev as rules
from pyinit_image.errors import BuildError
from pyinit_image.features import multipath as paths
from pyinit_image.features import resume as sleeping
from pyinit_qemu import channel, deb, kernel, moments, plain, screen, witness
from pyinit_qemu.console import Cleaner
from pyinit_qemu.qmp import Qmp, QmpError

KERNEL_LINES = Path(__file__).parents[1] / "unit" / "kernel_cmdlines.json"


class Target(NamedTuple):
    """One parser, or several that read the same."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    parsers: tuple[Callable[..., object], ...]
    """The functions that are tried."""


TARGETS: dict[str, Target] = {}


def target(
    *parsers: Callable[..., object], seeds: tuple[bytes, ...], words: tuple[bytes, ...]
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = run.__name__
        TARGETS[name] = Target(name, run, seeds, words, parsers)
        return run

    return add


def split(text: str) -> tuple[bytes, ...]:
    """The words of a text with escapes: ``\\x20`` for a blank."""
    return tuple(word.encode().decode("unicode_escape").encode("latin-1") for word in text.split())


def shown(*lines: str) -> None:
    """What people are shown drives no terminal."""
    for line in lines:
        if not (line.isascii() and line.isprintable()):
            raise AssertionError(f"not printable: {line!r}")


def refused(error: BootError) -> None:
    """An explanation that may be printed."""
    shown(*explain.render(error, "fuzz"))


def text_of(data: bytes) -> str:
    """As PID 1 decodes what it reads."""
    return data.decode("utf-8", "surrogateescape")


NO_MODULES = modules.Modules(sealed.EMPTY_INDEX, Console(Record("", "")))
HOSTILE_NAMES = (
    b"\x1b]0;title\x07",
    b"\x1b[6n",
    b"\r\n",
    b"\x9b2J",
    b"\xc2\x9b2J",
    b"\xe2\x80\xae",
    b"\xff",
    b"\\x1b",
    b"\0",
)


# What the kernel command line, the image and the kernel's own tables say to PID 1.


@target(
    discoverable.parse_loader_variable,
    discoverable.of_type,
    discoverable.find,
    discoverable.disks_with,
    discoverable.attributes,
    seeds=(
        b"\6\0\0\0" + "5C0FFEE5-0000-4000-8000-00000000F00D\0".encode("utf-16-le"),
        b"ID_PART_ENTRY_SCHEME=gpt\nID_PART_ENTRY_TYPE=4f68bce3-e8cd-4db1-96e7-fbcaf984b709\n"
        b"ID_PART_ENTRY_UUID=5c0ffee5-0000-4000-8000-00000000f00d\nID_PART_ENTRY_DISK=8:0\n"
        b"ID_PART_ENTRY_NUMBER=2\nID_PART_ENTRY_FLAGS=0x1000000000000000",
    ),
    words=split(
        r"ID_PART_ENTRY_FLAGS=0x8000000000000000 ID_PART_ENTRY_NUMBER= ID_PART_ENTRY_DISK= \n \n\n NEW=1 "
        r"\x1b[2J \0 - a\0 ID_FS_TYPE=crypto_LUKS \xd8\xd8"
    ),
)
def discovered_roots(data: bytes) -> None:
    uuid = discoverable.parse_loader_variable(data)
    if uuid and not re.fullmatch("[0-9a-f-]{36}", uuid):
        raise AssertionError(f"no UUID: {uuid!r}")
    known = views(text_of(data))
    for booted in ("", "5c0ffee5-0000-4000-8000-00000000f00d"):
        found = discover.Discovery(booted, "x86_64")
        roots = found.root(known)
        if any(discoverable.attributes(view) & discoverable.NO_AUTO for view in roots):
            raise AssertionError("a partition that is not to be found so")
        shown(found.describe(), found.reason(known), *found.remarks(known))
        refused(found.missing("cause", known, map(waiting.describe, known)))
        for view in roots[:1]:
            found.choose(view)


@target(
    cmdline.parse,
    cmdline.is_on,
    seeds=tuple(case["cmdline"].encode("latin-1") for case in json.loads(KERNEL_LINES.read_text())),
    words=split(r'\x20 " = -- \xa0 \xc3\xa0 root= a \n 0 off'),
)
def command_line(data: bytes) -> None:
    line = cmdline.parse(data)
    for word in line.words:
        cmdline.is_on(word)
        if word.raw.encode("utf-8", "surrogateescape") not in data:
            raise AssertionError(f"a word that is not in the line: {word.raw!r}")
    if sum(len(word.raw) for word in line.words) + sum(map(len, line.init_args)) > len(data):
        raise AssertionError("more came out than went in")


@target(
    options.boot_config,
    seeds=(
        b"root=LABEL=x ro quiet rd.timeout=5 rd.break=mount,pre-pivot rd.driver.pre=a,b-c panic=-1",
        b"root=live:CDLABEL=x rd.live.dir=../a loop=a/../b rd.overlay=tmpfs:size=1k,x",
        b"roothash=00 systemd.verity_root_options=a,ignore-corruption systemd.verity_root_data=x",
        b"rd.live.image overlayroot=device:dev=x loop=/ rd.live.overlay.reset",
        b"rd.luks.uuid=1 rd.brake rdbreak rd.shel=0 loglevel=9 rootwait=x rd.ctty=../x\nrd.shell=0",
    ),
    words=(
        *split(r'= , \x20 \n " rd. 0 -1 99999999999 rd.lvm.vg'),
        *(option.name.encode() for option in options.OPTIONS),
        *map(str.encode, options.OLD_SPELLINGS),
        *HOSTILE_NAMES,
    ),
)
def boot_options(data: bytes) -> None:
    config = options.boot_config(*data.split(b"\n"))
    shown(*config.warnings, *cli._misspelt(list(config.init_args)))
    if len(config.warnings) > 13:
        raise AssertionError(f"{len(config.warnings)} warnings")
    if not (config.timeout is None or 0 < config.timeout <= 4_000_000):
        raise AssertionError(f"timeout {config.timeout}")
    mount.parse_options(config.rootflags)
    if config.verity:
        try:
            verity.Verity(config.verity, None, None, None)  # type: ignore[arg-type]
        except BootError as error:
            refused(error)
    modules._command_line_options(cmdline.parse(data).words)


def views(text: str) -> list[DeviceView]:
    """Devices from lines of ``KEY=value``; an empty line ends a device."""
    found = []
    for number, block in enumerate(text.split("\n\n")[:6]):
        properties = dict(line.partition("=")[::2] for line in block.split("\n") if "=" in line)
        # The kernel's own; it is a path in /sys.
        name = properties.pop("NAME", f"sd{number}").replace("\0", "")
        found.append(
            DeviceView(
                f"/sys/devices/{number}/{name}",
                name,
                "block",
                properties.pop("DEVTYPE", "disk"),
                f"/dev/{name}",
                (8, number),
                tuple(properties.get("DEVLINKS", "").split()),
                properties,
                properties.pop("NEW", "") == "",
            )
        )
    return found


@target(
    devspec.parse_spec,
    devspec.decode,
    seeds=(
        b"LABEL=my root\nNAME=sda1\nID_FS_LABEL=my_root\nID_FS_LABEL_ENC=my\\x20root\nID_FS_TYPE=ext4",
        b"PARTUUID=0-1/PARTNROFF=1\nID_PART_ENTRY_UUID=0-1\nID_PART_ENTRY_DISK=8:0\nID_PART_ENTRY_NUMBER=1",
        b"/dev/disk/by-label/\\x1b\nDEVLINKS=/dev/disk/by-label/\\x1b /dev/x\n\nID_FS_UUID=A\n\nID_FS_UUID=a",
        b"UUID=a\nID_FS_TYPE=btrfs\nID_FS_UUID=a\nID_FS_UUID_SUB=b\nID_BTRFS_READY=0\n\nID_FS_UUID=a",
        b"nfs:1.2.3.4:/x\n",
        b"0801\n",
    ),
    words=(
        *split(
            r"UUID= LABEL= PARTUUID= PARTLABEL= /PARTNROFF= /dev/ block: 8:1 /dev/disk/by-label/ \n "
            r"\n\n NAME= DEVTYPE=partition NEW=1 ID_FS_UUID= ID_FS_LABEL= ID_FS_LABEL_ENC= "
            r"ID_FS_TYPE=btrfs ID_FS_USAGE=crypto ID_MODEL= ID_PART_ENTRY_NAME= ID_PART_ENTRY_UUID= "
            r"ID_PART_ENTRY_NUMBER= ID_SERIAL_SHORT="
        ),
        *HOSTILE_NAMES,
    ),
)
def root_devices(data: bytes) -> None:
    spec_text, _, rest = text_of(data).partition("\n")
    known = views(rest)
    shown(*map(waiting.describe, known))
    for view in known:
        shown(*report._properties(view))
    refused(missing.no_root_given("", known, NO_MODULES))
    try:
        spec = devspec.parse_spec(spec_text)
    except BootError as error:
        refused(error)
        return
    shown(devspec.describe(spec))
    found = devspec.resolve(spec, known)
    if any(not view.initialized for view in found):
        raise AssertionError("a device that udevd has not processed")
    if len(found) > 1:
        refused(
            waiting._ambiguous(
                waiting.Want("root", devspec.describe(spec), list, None), found, lambda name: 2048
            )
        )
    near = devspec.nearest(spec, known)
    if {view.sys_path for view, _ in near} & {view.sys_path for view in found}:
        raise AssertionError("found and near at once")
    shown(*(remark for _, remark in near))


@target(
    sealed.parse_config,
    seeds=(
        sealed.dump_config(
            sealed.SealedConfig(
                "6.1",
                "list",
                "open",
                "root=/dev/vda \udcff",
                "/bin/udevd",
                "/bin/sh",
                {"c": "x"},
                {"mount": ["a"]},
            )
        ),
    ),
    words=split(r'"schema":1 " : , { } [ ] null 1e999 \\u0000 \\ud800'),
)
def image_configuration(data: bytes) -> None:
    try:
        config = sealed.parse_config(data)
    except BootError as error:
        refused(error)
        return
    options.boot_config(config.cmdline.encode("utf-8", "surrogateescape"))
    if "\0" in config.udevd + config.shell:
        raise AssertionError("a path that cannot be one")


@target(
    sealed.parse_modules,
    seeds=(
        sealed.dump_modules(
            sealed.ModuleIndex(
                "/usr/lib/modules/6.1",
                {"ext4": sealed.ModuleEntry("kernel/ext4.ko", ("crc16",), "a=1")},
                sealed.Aliases.of(
                    (
                        ("fs-ext4", "ext4"),
                        ("virtio:d00000002v*", "virtio_blk"),
                        ("pci:v*bc01sc0[1-6]i*", "ahci"),
                    )
                ),
                frozenset({"vfat"}),
                ("ext4",),
                ("sha256_ssse3",),
            )
        ),
    ),
    words=split(r'"schema":1 " : , { } [ ] * ? \\u0000 \\ud800 [a-'),
)
def image_modules(data: bytes) -> None:
    try:
        index = sealed.parse_modules(data)
    except BootError as error:
        refused(error)
        return
    known = modules.Modules(index, Console(Record("", "")))
    for alias in ("fs-ext4", "virtio:d00000002v00001AF4", "pci:v1bc01sc06i01", "["):
        known.matching(alias)
    for entry in index.modules.values():
        if "\0" in entry.path + entry.options:
            raise AssertionError("a path that cannot be one")


@target(
    modules.Modules.matching,
    seeds=(
        b"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01\npci:v*d*sv*sd*bc01sc06i01*\npci:v*",
        b"usb:v1D6Bp0002d0601dc09\nusb:v1D6Bp000[1-3]d*dc09*\nusb:v*p*d*dc[!0-8]*",
        b"acpi:PNP0A03:\nacpi*:PNP0A03:*\n[",
    ),
    words=split(r"* ? [ ] [a-f] [! - \n pci: v \\ _ *a*a*a*a*a*a*"),
)
def device_aliases(data: bytes) -> None:
    alias, *patterns = data.decode("ascii", "backslashreplace").split("\n")
    index = sealed.EMPTY_INDEX._replace(
        aliases=sealed.Aliases.of((pattern.replace(" ", "_"), f"m{n}") for n, pattern in enumerate(patterns))
    )
    found = modules.Modules(index, Console(Record("", ""))).matching(alias)
    if not set(found) <= {f"m{n}" for n in range(len(patterns))}:
        raise AssertionError(f"modules from nowhere: {found}")


MOUNTINFO = (
    b"22 1 0:2 / / rw - rootfs rootfs rw\n"
    b"23 22 0:5 / /proc rw,nosuid shared:2 - proc proc rw\n"
    b"24 22 8:1 / /sysroot ro - ext4 /dev/vda\\0401 ro,seclabel\n"
    b"25 22 0:7 / /run rw master:1 propagate_from:2 - tmpfs tmpfs rw\n"
)


@target(
    mountinfo.parse,
    witness.parse_mount,
    seeds=(MOUNTINFO,),
    words=split(r"\x20 \n - 0:1 / \\040 \\777 22 1 rw \x20-\x20 /sysroot /dev"),
)
def mount_table(data: bytes) -> None:
    table = mountinfo.parse(data)
    if len(table) > data.count(b"\n") + 1:
        raise AssertionError("more mounts than lines")
    for entry in table[:8]:
        top = mountinfo.topmost(table, entry.target)
        if top is not None and len(set(mountinfo.subtree(table, top))) > len(table):
            raise AssertionError("more mounts than there are")
    made = make_plan(table, "/sysroot", dict.fromkeys(("dev", "proc", "sys", "run"), "ready"))
    shown(*(step.describe() for step in made.steps), *made.warnings)
    for line in data.decode("latin-1").split("\n"):
        try:
            witness.parse_mount(line)
        except ValueError:
            pass


@target(
    fstab.parse,
    fstab.split_options,
    fstab.normalise,
    belongs.wanted,
    layers.without_root,
    seeds=(
        b"UUID=1-2 / ext4 errors=remount-ro 0 1\n/dev/a\\040b /usr/../usr ext4 ro,nofail 0 2\n",
        b'LABEL=x /a/b xfs x-initrd.mount,context="a:b,c"\n/x /y none bind,x-initrd.mount\n# c\n',
        b"s:/x /nfs nfs4 x-initrd.mount,_netdev\nnone none swap sw\n",
    ),
    words=split(
        r"\n \x20 \t # / .. /usr none \\040 \\000 \\303\\244 UUID= x-initrd.mount noauto , 999 \x1b[2J \xff"
        r' " \0 \r'
    ),
)
def fstab_file(data: bytes) -> None:
    read = fstab.parse(data)
    if any(
        line.target == "/" and line not in read.lines for line in fstab.parse(layers.without_root(data)).lines
    ):
        raise AssertionError("another root in fstab")
    for config in (options.boot_config(b"ro"), options.boot_config(b"rw mount.usr=UUID=1")):
        found, warnings = belongs.wanted(read, config)
        shown(*warnings)
        for one in found:
            if not one.target.startswith("/") or "/../" in f"{one.target}/":
                raise AssertionError(f"mounted outside: {one.target!r}")
            if "\0" in "".join((one.source, one.target, one.fstype, one.options)):
                raise AssertionError("words that mount(2) cannot take")
            refused(belongs.explain(one, BootError("E-MOUNT", "cause"), "/sysroot"))


@target(
    crypttab.parse,
    crypttab.split_options,
    crypttab.decode_options,
    crypttab.is_name,
    seeds=(
        b"root UUID=1 none luks,discard,tries=3,timeout=1min\n# c\nhome /dev/sdb /key:LABEL=x header=/h\n",
        b"a /dev/c - swap\nb PARTUUID=1 - key-slot=2,keyfile-offset=9,tpm2-device=auto,x-y\n",
    ),
    words=split(
        r"\n \x20 , = - none luks discard tries= timeout= 99999999999999999999 1ms header=/ keyfile-size= .."
        r" / \0 \xff \x1b[2J noauto key-slot= \xb2"
    ),
)
def encrypted_volumes(data: bytes) -> None:
    entries, warnings = crypttab.parse(data)
    shown(*warnings)
    for entry in entries:
        found, warnings = crypttab.decode_options(entry.options)
        shown(*warnings)
        if not crypttab.is_name(entry.name) or "\0" in "".join((*entry.options, entry.source, entry.key)):
            raise AssertionError(f"no name, or a word that no program can be given: {entry}")
        if found.tries < 0 or found.timeout < 0 or any(word[:2] != "--" for word in found.words):
            raise AssertionError(f"{found}")


LUKS_JSON = (
    b'{"keyslots":{"0":{"type":"luks2","key_size":64,"area":{"type":"raw","encryption":"aes-xts-plain64"},'
    b'"kdf":{"type":"argon2id","memory":1048576}}},"tokens":{"0":{"type":"systemd-tpm2"}},"segments":{"0":'
    b'{"type":"crypt","encryption":"aes-xts-plain64"}},"digests":{"0":{"keyslots":["0"],"segments":["0"]}},'
    b'"config":{}}'
)


def luks2(areas: bytes, magic: bytes = luks_header.MAGIC, place: int = 0) -> bytes:
    """One copy of a LUKS2 header around a JSON area, with the checksum that is right."""
    head = struct.pack(">6sHQQ48s32s64s40s48sQ", magic, 2, 16384, 1, b"", b"sha256", b"", b"uuid", b"", place)
    whole = (head.ljust(4096, b"\0") + areas[:12288]).ljust(16384, b"\0")
    return whole[:448] + hashlib.sha256(whole).digest() + whole[480:]


def luks1() -> bytes:
    """A LUKS1 header with one slot in use."""
    head = struct.pack(">6sH32s32s32s", luks_header.MAGIC, 1, b"aes", b"xts-plain64", b"sha256")
    return head.ljust(208, b"\0") + (b"\0\xac\x71\xf3".ljust(48, b"\0") * 8)


@target(
    shutdown.mapped_files,
    shutdown.mapping_request,
    seeds=(b"00400000-00401000 r-xp 00000000 08:01 1    /usr/bin/env\n",),
    words=split(r"/ \x20 \n [stack] (deleted) \xff"),
)
def at_shutdown(data: bytes) -> None:
    if b"\0" not in data:
        list(shutdown.mapped_files(data))
    try:
        shutdown.mapping_request(data.decode("utf-8", "surrogateescape"))
    except ValueError:
        return


@target(
    resume.parse_header,
    seeds=(b"SWAPSPACE2S1SUSPEND\0".rjust(4096, b"\0"), b"SWAPSPACE2".rjust(4096, b"\0")),
    words=split(r"S1SUSPEND\0 S2SUSPEND ULSUSPEND LINHIB0001 SWAPSPACE2 SWAP-SPACE \0 \xff \x1b[2J"),
)
def swap_headers(data: bytes) -> None:
    memory = resume.parse_header(data)
    if memory is not None:
        shown(memory.writer)
        if memory.before not in (b"", b"SWAPSPACE2", b"SWAP-SPACE"):
            raise AssertionError(f"that is no mark of swap space: {memory.before!r}")


@target(
    luks_header.read,
    luks_header.parse_v1,
    luks_header.parse_v2,
    seeds=(LUKS_JSON, luks1()),
    words=split(
        r'{ } [ ] " : , null 1e999 -1 99999999999999999999 "type":"crypt" cipher_null "0" "memory":'
        r" \\u0000 \\ud800 LUKS\xba\xbe\0\1 \x1b[2J \xff \0"
    ),
)
def luks_headers(data: bytes) -> None:
    both = luks2(data) + luks2(data, luks_header.SECOND_MAGIC, 16384)
    for disk in (data, both, both[:16384], bytes(16384) + both[16384:]):
        found = luks_header.read(lambda offset, size, disk=disk: disk[offset : offset + size])  # type: ignore[misc]
        shown(*found.damage, *(header.weak for header in found.good))
        for header in found.good:
            luks_header.ciphers(header.cipher)
            if not header.weak and "null" in header.cipher.split("-"):
                raise AssertionError(f"it encrypts nothing: {header.cipher!r}")


@target(
    luks_tokens.is_fido,
    seeds=(bytes.fromhex("06d0f10901a1010920150026ff0075089540810209211500c0"),),
    words=split(r"\x06\xd0\xf1 \xfe\x02\x10 \x07\xd0\xf1\0\0 \x05\x01 \xc0"),
)
def report_descriptors(data: bytes) -> None:
    luks_tokens.is_fido(data)


@target(
    volumes.parse_sealed_volumes,
    volumes.parse_sealed_arrays,
    volumes.parse_volume,
    volumes.volume_of_path,
    volumes.array_uuid,
    md.exported,
    seeds=(
        volumes.dump([["vg/root"], ["vg"]]),
        volumes.dump([["0123456789abcdef0123456789abcdef", "host:0", "/dev/md0"]]),
        b"/dev/mapper/my--vg-root\n/dev/vg/root\nmd-uuid-01234567:89abcdef:01234567:89abcdef",
        b"MD_LEVEL=raid1\nMD_DEVICES=2\nMD_UUID=1:2:3:4\n",
    ),
    words=(
        *split(r"[ ] ' - -- / : , . .. \n = /dev/ /dev/mapper/ vg md-uuid- MD_ \\u0000 \xff \x1b[2J"),
        b'"',
        b"0" * 32,
    ),
)
def volumes_and_arrays(data: bytes) -> None:
    for parse in (volumes.parse_sealed_volumes, volumes.parse_sealed_arrays):
        try:
            parse(data)
        except ValueError as error:
            shown(printable(str(error)))
    lines = text_of(data).split("\n")
    md.exported(lines)
    for text in lines:
        for volume in (volumes.parse_volume(text), volumes.volume_of_path(text)):
            # They become words of a command.
            if volume is not None and (volume.group + volume.name).startswith("-"):
                raise AssertionError(f"taken for an option: {volume}")
            if volume is not None:
                shown(volume.group, volume.name)
        if uuid := volumes.array_uuid(text):
            shown(volumes.show_array(uuid))


@target(
    multipath.multipath_words,
    multipath.wwids_of_paths,
    multipath.is_wwid,
    paths.parse_wwids,
    seeds=(
        b"rd.multipath=35000c50015ea71aa rd.multipath=default rd.multipath=0 nompath multipath=off",
        b"/dev/disk/by-id/dm-uuid-part1-mpath-35000c50015ea71aa",
        b"# Valid WWIDs:\n/35000c50015ea71aa/\n/0QEMU_QEMU_HARDDISK_shared/\n",
    ),
    words=(*split(r"rd.multipath = / .. % \x00 \xff \x1b[2J nompath multipath=off"), b" ", b"\n"),
)
def disks_with_several_paths(data: bytes) -> None:
    warnings: list[str] = []
    named = multipath.multipath_words(cmdline.parse(data), warnings).wwids
    shown(*warnings)
    for wwid in (*named, *multipath.wwids_of_paths([text_of(data)]), *paths.parse_wwids(text_of(data))):
        # They become names of files.
        if "/" in wwid or wwid in ("", ".", "..") or not multipath.is_wwid(wwid):
            raise AssertionError(f"taken for the name of a disk: {wwid!r}")


@target(
    bcache.parse_superblock,
    bcache.bcache_words,
    bcache.uuids_of_paths,
    bcache.backing_uuid,
    volumes.parse_sealed_uuids,
    seeds=(
        bytes(8)
        + struct.pack("<QQ", 8, 1)
        + bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
        + bytes(range(32))
        + bytes(32)
        + struct.pack("<Q", 1 << 61),
        b"rd.bcache=01234567-89ab-cdef-0123-456789abcdef rd.bcache.degraded rd.auto",
        b"/dev/bcache/by-uuid/01234567-89ab-cdef-0123-456789abcdef",
        volumes.dump([["01234567-89ab-cdef-0123-456789abcdef"]]),
    ),
    words=(*split(r"rd.bcache = - /dev/bcache/by-uuid/ 0 1 \x00 \xff \x1b[2J"), b" ", b"0" * 32),
)
def devices_with_a_cache(data: bytes) -> None:
    if (found := bcache.parse_superblock(data)) is not None:
        shown(found.uuid, found.cache_set, found.state)
    warnings: list[str] = []
    named = bcache.bcache_words(cmdline.parse(data), warnings).uuids
    shown(*warnings, *named, *bcache.uuids_of_paths([text_of(data)]), bcache.backing_uuid(text_of(data)))
    try:
        volumes.parse_sealed_uuids(data)
    except ValueError as error:
        shown(printable(str(error)))


def superblock() -> bytes:
    """Of a clean ext4, as far as PID 1 looks at it."""
    made = bytearray(1024)
    struct.pack_into("<HhHH", made, 52, 1, -1, 0xEF53, 1)
    return bytes(made)


@target(
    fsck.ext_is_clean,
    fsck.percent,
    imagefile.recognise,
    seeds=(superblock(), b"hsqs", bytes(1024) + superblock(), b"1 17 200 /dev/vda1\n"),
    words=split(r"\x53\xef \xff\xff \x20 1 5 6 0 9999999999999999999999 -1 \xb2 \0\0\0\0"),
)
def checked_file_system(data: bytes) -> None:
    if fsck.ext_is_clean(data) and data[56:58] != b"\x53\xef":
        raise AssertionError("something else is clean")
    if imagefile.recognise(data) not in ("", "squashfs", "erofs", "ext4", "xfs", "iso9660", "btrfs"):
        raise AssertionError("no file system is called so")
    done = fsck.percent(data)
    if done is not None and not 0 <= done <= 100:
        raise AssertionError(f"{done} percent")


@target(
    Line.feed,
    Editor.decode,
    Editor.feed,
    seeds=(b"hunter2\r", "p\u00e4\x7f\x15\x1b[1;5Cab\x03".encode()),
    words=split(r"\r \n \x7f \x08 \x15 \x03 \x04 \x1b \x1b[ \x1bO \xc3 \xa4 [2J a"),
)
def typed_keys(data: bytes) -> None:
    for secret in (False, True):
        line = Line(secret=secret, limit=20)
        echo, taken = line.feed(data)
        shown(echo.decode("ascii").replace("\b \b", "").removesuffix("\n"), line.shown().decode("ascii"))
        if secret and set(echo.replace(b"\b \b", b"")) - set(b"*\n"):
            raise AssertionError(f"a secret is shown: {echo!r}")
        if not taken <= len(data) or len(line.take()) > 20:
            raise AssertionError("more is taken than there is")
    editor = Editor()
    for start in range(0, len(data), 5):
        rest = editor.decode(data[start : start + 5])
        while rest:
            _, how, rest = editor.feed(rest)
            if how:
                editor.begin()
        if not 0 <= editor.cursor <= len(editor.text):
            raise AssertionError(f"the cursor is at {editor.cursor} of {editor.text!r}")


@target(
    mount.parse_options,
    seeds=(b'rw,noatime,context="a:b,c",subvol=@,x-systemd.automount', b"defaults,ro,comment=x,_netdev"),
    words=(*split(r', " ro rw noatime norelatime x- ='), *HOSTILE_NAMES),
)
def mount_options(data: bytes) -> None:
    text = text_of(data)
    flags, rest = mount.parse_options(text)
    if len(rest) > len(text) or int(flags) < 0:
        raise AssertionError(f"{flags} {rest!r}")
    for writable in (False, True):
        shown(mount.root_mount(text[:20], text[20:30], text, writable).describe())
    if not mount.root_mount("a", "b", text, writable=False).flags & 1:
        raise AssertionError("rootflags= made the root writable")


@target(
    memory.parse_meminfo,
    memdebug.summary,
    seeds=(b"MemTotal:         506764 kB\nMemFree:  1 kB\nMemAvailable:     434708 kB\n",),
    words=(*split(r"MemTotal: MemAvailable: \x20 kB \n -1 \xb2"), b"9" * 5000),
)
def meminfo(data: bytes) -> None:
    if min(memory.parse_meminfo(data).values(), default=0) < 0:
        raise AssertionError("less than nothing")
    shown(memdebug.summary(data))


@target(
    messages.parse_kernel_message,
    seeds=(
        b"6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=net\n DEVICE=n1\n",
        b"3,1,0,c;EXT4-fs (vda1): \\x1b[2J\n",
        b"12,5,7,-,caller=T1;user",
    ),
    words=(*split(r", ; \n - 6 \\x1b 999999999999 caller="), *HOSTILE_NAMES),
)
def kernel_log(data: bytes) -> None:
    found = messages.parse_kernel_message(data)
    if found is not None:
        shown(found[1])
        if not 0 <= found[0] < 1 << 32:
            raise AssertionError(f"priority {found[0]}")


@target(
    real_environ,
    seeds=(b"HOME=/\0TERM=linux\0LD_PRELOAD=x\0PYTHONHOME=y\0a=b=c",),
    words=split(r"\x00 = LD_ PYTHON LC_CTYPE= PATH="),
)
def environment(data: bytes) -> None:
    made = real_environ(data.split(b"\0"))
    if any(name.startswith((b"LD_", b"PYTHON")) for name in made):
        raise AssertionError(f"a word for an interpreter: {made}")


@target(
    working.parse_stat,
    sealed.parse_drivers,
    seeds=(
        b"7 (udevd) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 123 1 1 18446744073709551615 1\n",
        b"ahci pci:v*d*sv* pci:x\nvirtio_blk virtio:d00000002v*\n",
    ),
    words=(*split(r"( ) \x20 \n S 1 -1 \xff \x1b[2J \0 * pci:"), b"9" * 400),
)
def processes_and_drivers(data: bytes) -> None:
    found = working.parse_stat(data)
    if found is not None:
        shown(*working.describe_work((), (found,), True, 9.0))
    sealed.parse_drivers(data)


# What file systems, programs and devices say to PID 1.


def elf_file(bits: int = 64, loader: bytes = b"/lib64/ld-linux-x86-64.so.2\0") -> bytes:
    """A small program with one segment, the name of its loader."""
    if bits == 64:
        head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0
        )
        return head + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(loader), len(loader), 1) + loader
    head = b"\x7fELF\1\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, 1, 40, 0, 0
    )
    return head + struct.pack("<IIIIIIII", 3, 84, 0, 0, len(loader), len(loader), 4, 1) + loader


def _bounded(data: bytes) -> executable.Reader:
    def read(offset: int, size: int) -> bytes:
        # What a file says of itself decides neither how much memory it takes nor where is read.
        if not 0 <= size <= 1 << 16:
            raise AssertionError(f"{size} bytes are asked for")
        return data[offset : offset + size]

    return read


@target(
    executable.read_elf,
    seeds=(elf_file(), elf_file(32), elf_file(loader=b"")),
    words=(
        *split(r"\x7fELF\x02\x01\x01 \x7fELF\x01\x02\x01 \xff\xff /lib/ld.so\x00 \x03\x00\x00\x00"),
        b"\xff" * 8,
        b"\x00" * 8,
    ),
)
def elf_program(data: bytes) -> None:
    try:
        executable.read_elf(_bounded(data))
    except ValueError as error:
        shown(str(error))


@target(
    executable.read_script,
    seeds=(b"#!/bin/sh -e\nexit\n", b"#! \t/usr/bin/env python3", b"#!/" + b"x" * 300),
    words=(*split(r"#! \x20 \x09 \n \x00 /bin/sh"), b"x" * 250, *HOSTILE_NAMES),
)
def script(data: bytes) -> None:
    try:
        name = executable.read_script(data)
    except ValueError as error:
        shown(str(error))
    else:
        if name is not None and ("\0" in name or not name):
            raise AssertionError(f"no path: {name!r}")


class _Device:
    """As pyudev shows one: text that is no UTF-8 raises when it is looked at."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name == "properties":
            return self
        if name == "device_number":
            return int.from_bytes(self._fields.get(b"device_number", b"")[:8], "little")
        if name == "device_links":
            return iter([word.decode() for word in self._fields.get(b"DEVLINKS", b"").split()])
        if name == "is_initialized":
            return b"NEW" not in self._fields
        return self._fields.get(name.encode(), b"").decode()

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._fields)

    def __getitem__(self, name: str) -> str:
        return self._fields[name.encode()].decode()


@target(
    udev._view,
    seeds=(
        b"device_node=/dev/sda\ndevice_number=\x08\nID_FS_LABEL=x\nDEVLINKS=/dev/a /dev/b\nsys_path=/sys/a",
    ),
    words=(*split(r"\n = DEVLINKS= ID_FS_LABEL= device_node= device_number= NEW="), *HOSTILE_NAMES),
)
def udev_properties(data: bytes) -> None:
    fields = dict(line.partition(b"=")[::2] for line in data.split(b"\n"))
    try:
        view = udev._view(_Device(fields))
    except (LookupError, ValueError):
        return  # What Devices.events() and Devices.enumerate() pass over.
    shown(waiting.describe(view), *report._properties(view))


# What people are shown.


@target(
    printable,
    seeds=(b"my disk", b"\x1b[31mred", "é\u202e\U0001f600".encode(), b"back\\slash"),
    words=HOSTILE_NAMES,
)
def foreign_text(data: bytes) -> None:
    shown(printable(data), printable(text_of(data)), printable(data.decode("latin-1")))
    if printable(data).encode().decode("unicode_escape").encode("latin-1") != data:
        raise AssertionError("other bytes come back")


@target(
    report.mask,
    report.masked,
    seeds=(
        b"root=x rd.luks.password=hunter2 quiet",
        b'passphrase: "two words", user=me',
        b"root=cifs://me:secr@host/share",
        b"systemd.set_credential=a:b wifi_token='x'",
    ),
    words=split(r"""password passwd pwd secret = : " ' // @ . \x20 - ,"""),
)
def report_lines(data: bytes) -> None:
    line = printable(data)
    hidden = report.mask(line)
    shown(hidden)
    # An odd quote before a word may make the first of its own quotes a closing one.
    quoted = () if set(line) & set("\"'") else ('x.secret: "a hunter2', '"rd.passphrase=a hunter2" b')
    for word in ("wifi.password=hunter2", "a.pwd='hunter2'", *quoted):
        if "hunter2" in report.mask(f"{line} {word}").removeprefix(hidden):
            raise AssertionError(f"{line} {word}")
    if report.masked({"a": [line, 1, None]}) != {"a": [hidden, 1, None]}:
        raise AssertionError("a record is masked in another way")


def _record() -> bytes:
    made = Record("1", "6.1")
    made.data["started"] = 1000
    made.add("stages", name="mount", start=1, end=5, outcome="E-MOUNT")
    made.add("modules", name="ext4", start=1, end=2, result="loaded")
    made.add("children", argv=["/bin/udevd"], pid=7, start=1, end=None, status=None)
    made.add("wants", name="root", spec="LABEL=x", asked=0, ended=9, outcome="expired", by="vda", event="add")
    made.add("mounts", source="/dev/vda", target="/sysroot", type="ext4", options="ro", start=1, end=2)
    made.data["handover"] = {"at": 9, "init": "/sbin/init", "method": "move", "killed": []}
    return made.encode()


@target(
    timeline,
    status.status,
    record.decode,
    seeds=(_record(),),
    words=(*split(r'" : , { } [ ] null 1e999 \\u001b \\ud800 "x"'), b"9" * 400),
)
def boot_record(data: bytes) -> None:
    try:
        known = record.decode(data)
    except ValueError:
        return
    shown(*timeline(known))
    shown(*status.status(status.Facts(known, "mount", "", (), "", (), (1, 2))))


@target(
    distance.distance,
    distance.closest,
    seeds=(b"3\nrd.brake\nrd.break", b"8\nsmal-root\nsmall-root"),
    words=split(r"\n a ab ba rd. 9"),
)
def near_words(data: bytes) -> None:
    first, *others = data.decode("latin-1").split("\n")
    limit = len(first) % 9
    for other in others[:4]:
        apart = distance.distance(first, other, limit)
        if not 0 <= apart <= limit + 1 or apart != distance.distance(other, first, limit):
            raise AssertionError(f"{apart} of at most {limit}")
    near = distance.closest(first, others, limit)
    if near is not None and near not in others:
        raise AssertionError(near)


# What the builder reads: a system's files, archives of other makers.


def _refusing(parse: Callable[[bytes], object], data: bytes) -> object:
    try:
        return parse(data)
    except BuildError as error:
        shown(str(error))
        return None


def _archive() -> bytes:
    members = [cpio.Member(b"dir", 0o40755), cpio.Member(b"dir/file", 0o100644, data=b"content")]
    return b"".join(cpio.write([*members, cpio.Member(b"link", 0o120777, data=b"dir/../file")]))


@target(
    cpio.read,
    archive.read,
    archive.tree,
    archive.lookup,
    seeds=(_archive(), _archive() + bytes(512) + _archive()),
    words=split(r"070701 070702 TRAILER!!!\x00 00000000 FFFFFFFF ../ / \x00\x00\x00\x00 \x1f\x8b\x08"),
)
def archives(data: bytes) -> None:
    segments = _refusing(lambda raw: archive.read(raw, limit=1 << 20), data)
    if isinstance(segments, list):
        members = _refusing(lambda raw: archive.tree(segments), data)
        for path in ("/dir/file", "/link", "/../.."):
            if isinstance(members, dict):
                archive.lookup(members, path)


@target(
    kmods.parse_dep,
    kmods.parse_alias,
    kmods.parse_softdep,
    kmods.parse_modprobe,
    seeds=(
        b"kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko.xz\nkernel/lib/crc16.ko:\n"
        b"kernel/fs/jbd2/jbd2.ko.xz:\n",
        b"alias fs-ext4 ext4\noptions a b=1 \\\n c\nblacklist x-y\n"
        b"softdep a pre: b post: c\ninstall z /bin/true\n",
    ),
    words=split(r"\n : \x20 .ko alias\x20 softdep\x20 pre: post: options\x20 \\\n # a"),
)
def module_tables(data: bytes) -> None:
    text = text_of(data)
    _refusing(lambda raw: kmods.parse_dep(text), data)
    kmods.parse_alias(text)
    kmods.parse_modprobe([text])
    kmods.parse_softdep(text.split())


@target(
    kmodindex.read,
    seeds=(kmodindex.write([("fs_ext4", "ext4", 0), ("fs_ext2", "ext4", 1), ("virtio:*", "virtio", 2)]),),
    words=(*split(r"\xb0\x07\xf4W \x00\x02\x00\x01 \x80\x00\x00 \x20\x00\x00 \x00"), b"\xff" * 4),
)
def module_index(data: bytes) -> None:
    _refusing(kmodindex.read, data)


@target(
    elf.parse,
    elf.parse_dlopen,
    stand_in.imported,
    kmods.modinfo,
    seeds=(
        elf_file(),
        elf_file(32),
        b'[{"soname":["libkmod.so.2"],"feature":"kmod","priority":"required"}]\0',
    ),
    words=(
        *split(r'\x7fELF\x02\x01\x01 \xff\xff .modinfo\x00 alias=x\x00 "soname" \x02\x00\x00\x00 []'),
        b"\x00" * 8,
    ),
)
def elf_objects(data: bytes) -> None:
    _refusing(elf.parse, data)
    elf.parse_dlopen(data)
    stand_in.imported(data, "libc.so.6", data)
    list(kmods.modinfo(data))


@target(
    sleeping.parse_conf,
    seeds=(b'RESUME="UUID=5a5a-1" # swap\n',),
    words=split(r"""\n RESUME= none auto " ' # \\ \x00 \xff"""),
)
def resume_of_initramfs_tools(data: bytes) -> None:
    value = sleeping.parse_conf(data)
    if "\n" in value:
        raise AssertionError("several lines")


@target(
    tables.parse_fstab,
    tables.parse_mdadm,
    seeds=(
        b'UUID=1-2 / ext4 errors=remount-ro 0 1\nLABEL="a" /mnt\\040x xfs\n',
        b"ARRAY /dev/md0 metadata=1.2\n  UUID=0:1:2:3 name='a:b'\n",
    ),
    words=split(r"""\n \x20 \\040 \\000 # UUID= " ' ARRAY\x20 name= \x00 / \xa0"""),
)
def system_tables(data: bytes) -> None:
    for parse in (tables.parse_fstab, tables.parse_mdadm):
        _, warnings = parse(data)
        shown(*warnings)


@target(
    facts.parse,
    facts.parse_cpus,
    facts.parse_mappers,
    facts.parse_ciphers,
    configuration.parse,
    plan.parse_manifest,
    seeds=(
        b"vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t: 85\nstepping\t: 7\n\n",
        b"dm_crypt 57344 1 - Live 0x0\n",
        b"name : xts(aes)\nmodule : aesni_intel\nrefcnt : 3\ntype : skcipher\n\n",
        b'mode = "list"\nmodule = ["ext4"]\n',
        plan.dump_manifest([], {"a": "b"}, ["c"]),
        b'{"schema":1}',
    ),
    words=(*split(r"""\n \n\n : = " [ ] { } 1e999 \\u0000 dm_ '''"""), b"9" * 5000),
)
def builder_inputs(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    facts.parse_cpus(text)
    facts.parse_mappers(text)
    facts.parse_ciphers(text)
    _refusing(facts.parse, data)
    _refusing(plan.parse_manifest, data)
    _refusing(lambda raw: configuration.parse(raw, "x.toml"), data)


@target(
    rules.programs,
    rules.owners,
    rules.passwd,
    rules.group,
    hooks._hook,
    seeds=(
        b'KERNEL=="vd*", IMPORT{program}="/bin/x $kernel", RUN+="/bin/y", OWNER="root", GROUP="disk"\n',
        b"root:x:0:0::/root:/bin/sh\ndisk:x:6:a\n",
        b"def mount(moment):\n    moment.log('x')\n",
    ),
    words=split(r'RUN+=" " \n : = PROGRAM GROUP= \\\n def\x20 (moment):\n pass'),
)
def rules_and_hooks(data: bytes) -> None:
    text = text_of(data)
    rules.programs(text)
    users, groups = rules.owners(text)
    rules.passwd(data.decode("utf-8", "replace"), {*users, "root"}, "/bin/sh")
    rules.group(data.decode("utf-8", "replace"), {*groups, "root"})
    _refusing(lambda raw: hooks._hook("10-x.py", raw, "10-x.py", "fuzz"), data)


# What a guest says to the harness.


@target(
    channel.parse_line,
    channel.Decoder.feed,
    plain.parse,
    moments.moments,
    witness.Witness.parse,
    seeds=(
        channel.encode({"kind": "hello", "pid": 1}),
        plain.encode(1, "done", {"a": "b c"}),
        b"[    1.234567] Run /init as init process\n",
        b"6,1,1234567,-;Run /init as init process\n",
        channel.encode({"kind": "witness", "kmsg": {"moments": ["6,1,2,-;x"]}, "uptime": "1.00 2"}),
    ),
    words=(*split(r'\n \x0d\n pyinit\x20 \x20 [ ] kind {"kind":" %41 00000000'), b"9" * 30),
)
def result_channel(data: bytes) -> None:
    decoder = channel.Decoder()
    for start in range(0, len(data), 7):
        for frame in decoder.feed(data[start : start + 7]):
            _frame(frame)
    for frame in decoder.close():
        _frame(frame)
    for line in data.split(b"\n"):
        plain.parse(line)
        channel.parse_line(line)
    moments.moments(data.decode("latin-1"))


def _frame(frame: object) -> None:
    if isinstance(frame, dict):
        moments.moments("", frame)
        try:
            witness.Witness.parse(frame)
        except witness.WitnessError:
            pass


@target(
    Cleaner.feed,
    screen.decode,
    Qmp.feed,
    kernel.vmlinux,
    deb.ar_members,
    deb.parse_release,
    deb.parse_packages,
    seeds=(
        b"\x1b[31mred\x1b[0m\r\n\x1b]0;title\x07login: \x1bP1$r\x1b\\",
        b'{"QMP": {}}\n{"event": "STOP"}\n{"id": 1, "return": {}}\n{"id": 1, "error": {"desc": 1}}\n',
        b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n",
        b"Package: a\nVersion: 1\nFilename: a.deb\nSize: 1\nSHA256: " + b"0" * 64 + b"\n\n",
    ),
    words=split(r'\x1b[ \x1b] \x07 \x9b m ; \n \x0d { "id" !<arch>\n MZ HdrS'),
)
def guest_output(data: bytes) -> None:
    cleaner = Cleaner()
    clean = (
        "".join(cleaner.feed(data[start : start + 5]) for start in range(0, len(data), 5)) + cleaner.close()
    )
    if "\x1b" in clean:
        raise AssertionError(f"an escape sequence is left: {clean!r}")
    screen.decode(data)
    qmp = Qmp()
    qmp.feed(data)
    for number in list(qmp.replies):
        try:
            qmp.reply(number, "x")
        except QmpError:
            pass
    qmp.find_event("STOP", {"a": 1})
    for refuse, parse in (
        (kernel.KernelError, kernel.vmlinux),
        (deb.DebError, deb.ar_members),
        (deb.DebError, lambda raw: deb.parse_release(raw.decode("latin-1"))),
        (deb.DebError, lambda raw: deb.parse_packages(raw.decode("latin-1"), re.compile("."))),
    ):
        try:
            parse(data)
        except refuse:
            pass


@target(
    probe.properties,
    small.process,
    seeds=(b"ID_FS_TYPE=ext4\n", b"1 (init) S 0 1 1 0 -1\0/init\0a\0"),
    words=split(r"( ) \n = \0 ID_ S"),
)
def programs_of_the_rescue_shell(data: bytes) -> None:
    probe.properties(data)
    stat, _, words = data.partition(b"\0")
    shown(small.process(stat, words))
