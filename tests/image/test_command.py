"""The command: what it says of images, good manners, and images of all shapes."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from built_image import Image
from hypothesis import given, settings
from hypothesis import strategies as st
from test_image_build import pyinit_image

from pyinit_image import archive, compress, cpio
from pyinit_image.cpio import Member
from pyinit_image.errors import BuildError

FILE = stat.S_IFREG | 0o644


def absent(image: Image, what: str) -> str:
    done = pyinit_image("explain", image.path, what)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{what}: not in this image (mode ")
    return done.stderr


@pytest.fixture(scope="module")
def listed(image: Callable[..., Image]) -> Image:
    return image("bookworm")


@pytest.fixture(scope="module")
def generic(image: Callable[..., Image]) -> Image:
    return image("bookworm", mode="generic", modules=())


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nvme", "mode list has what is named, and it was not"),
        ("nvme.ko", "To have it: --module nvme"),
        ("ext44", "Did you mean ext4?"),
        ("i8042", "built into the kernel"),
        ("ctypes.util", "pyinit puts the library names"),
        ("GenuineIntel.bin", "the target system has no microcode in /lib/firmware/intel-ucode"),
        ("60-cdrom_id.rules", "its driver sr_mod is not in the image"),
        ("75-net-description.rules", "taken from a list of those an initramfs needs"),
        ("/usr/bin/gcc", "To have it: --include /usr/bin/gcc"),
    ],
)
def test_explain_says_why_something_is_absent(listed: Image, what: str, why: str) -> None:
    assert why in absent(listed, what)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nouveau", "has the drivers of disks, keyboards and file systems, and it is none"),
        ("scsi_debug", "mode generic leaves it out: makes up disks for tests"),
        ("advansys/mcode.bin", "firmware for advansys, not installed in the target system"),
    ],
)
def test_explain_says_why_a_generic_image_lacks_something(generic: Image, what: str, why: str) -> None:
    assert why in absent(generic, what)


def test_explain_as_json(small: Image) -> None:
    (row,) = json.loads(pyinit_image("explain", "--json", small.path, "crc16").stdout)
    assert [step["reason"] for step in row["chain"]] == ["dependency", "--module ext4"]


def test_where_each_megabyte_goes(image: Callable[..., Image]) -> None:
    packed = image("bookworm", compress="zstd")
    rows = json.loads(pyinit_image("ls", "--by-reason", "--json", packed.path).stdout)
    # Estimates for parts of what is compressed as one: together they are all of it.
    total = sum(row["packed"] for row in rows.values())
    assert 0.99 < total / packed.path.stat().st_size <= 1
    assert rows["python"]["bytes"] > rows["pyinit"]["bytes"] > 0
    members = json.loads(pyinit_image("ls", "--json", packed.path).stdout)
    init = next(row for row in members if row["path"] == "/init")
    assert (init["mode"], init["source"]) == ("-rwxr-xr-x", "base") and init["reason"]
    assert sum(row["bytes"] for row in rows.values()) == sum(row["bytes"] for row in members)


def test_foreign_images_have_no_reasons(small: Image) -> None:
    for command in (
        ["explain", small.debian.initrd_debian, "init"],
        ["ls", "--by-reason", small.debian.initrd_debian],
    ):
        done = pyinit_image(*command)
        assert done.returncode == 1
        assert "no manifest: it was made by another program" in done.stderr


def test_a_reader_that_has_seen_enough(small: Image) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pyinit_image.cli", "cat", small.path, "/usr/bin/python3.11"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_interrupted(small: Image, tmp_path: Path) -> None:
    """Ctrl-C while it builds: nothing is left, and it says so in one line."""
    lead, follow = pty.openpty()
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "pyinit_image.cli", "build", "--no-cache", "-o", tmp_path / "image"),
            *("--sysroot", small.debian.tree),
        ],
        stderr=follow,
        stdin=subprocess.DEVNULL,
    ) as process:
        os.close(follow)
        seen = b""
        while b"kernel modules ..." not in seen:
            seen += os.read(lead, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 1
    while True:
        try:
            seen += os.read(lead, 4096)
        except OSError:
            break
        if seen.endswith(b"was written\r\n"):
            break
    os.close(lead)
    assert seen.endswith(b"\r\x1b[Kpyinit-image: interrupted; no image was written\r\n")
    assert list(tmp_path.iterdir()) == []


def test_quiet(small: Image, tmp_path: Path) -> None:
    arguments = (
        "build",
        "-o",
        tmp_path / "image",
        "--sysroot",
        small.debian.tree,
        "--mode",
        "list",
        "--module",
        "ext4",
    )
    done = pyinit_image(*arguments, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_completion_and_manual(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(pyinit_image("completion", "bash").stdout)
    script = (
        f". {tmp_path}/completion; complete -p pyinit-image; COMP_WORDS=(pyinit-image ex); COMP_CWORD=1; "
    )
    function = "$(complete -p pyinit-image | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    script += f"{function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[1:]) == {"explain", "extract"}
    manual = pyinit_image("man").stdout
    for word in ("build", "verify", "explain", "\\-\\-sysroot", "EXIT STATUS", "/etc/pyinit/image.toml"):
        assert word in manual
    assert all(line[0] != "'" for line in manual.splitlines() if line)


def test_an_include_whose_name_has_a_colon(small: Image, tmp_path: Path) -> None:
    (tmp_path / "a:b").write_text("with a colon")
    arguments = ["build", "-o", tmp_path / "image", "--sysroot", small.debian.tree, "--mode", "list"]
    arguments += ["--module", "ext4", "--compress", "none", "--include", f"{tmp_path}/a:b:/opt/c:d"]
    assert pyinit_image(*arguments).returncode == 0
    members = archive.tree(archive.read((tmp_path / "image").read_bytes()))
    assert members["/opt/c:d"].data == b"with a colon"


def test_a_list_for_the_kernels_build(small: Image, tmp_path: Path) -> None:
    arguments = ["build", "-o", tmp_path / "list", "--sysroot", small.debian.tree, "--mode", "list"]
    arguments += ["--module", "ext4", "--format", "list"]
    done = pyinit_image(*arguments)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "list" / "initramfs.list").read_text().splitlines()
    assert any(line.startswith("nod /dev/console 0600 0 0 c 5 1") for line in lines)
    again = pyinit_image(*arguments)
    assert again.returncode == 1 and "list" in again.stderr


#: Makes a stream of each kind, as other makers do.
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": lambda data: compress.compress(data, "zstd"),
    "lz4": lambda data: compress.compress(data, "lz4"),
}


@pytest.mark.parametrize("method", PACKERS)
def test_bombs_are_refused(tmp_path: Path, method: str) -> None:
    """Little that unpacks to much: named, with what to do, and never unpacked beyond the limit."""
    archived = b"".join(cpio.write([Member(b"zeros", FILE, bytes(64 << 20))]))
    (tmp_path / "image").write_bytes(PACKERS[method](archived))
    assert pyinit_image("ls", tmp_path / "image").stdout == "/zeros\n"
    done = pyinit_image("ls", "--max-size", "16", tmp_path / "image")
    assert (done.returncode, done.stdout) == (1, "")
    message = f"the {method} stream at byte 0 unpacks to more than the {16 << 20} bytes that are allowed"
    assert message in done.stderr and "--max-size" in done.stderr


def test_hard_links_have_the_content_of_the_one_that_has_it(tmp_path: Path) -> None:
    """As GNU cpio writes them: all but the last are empty."""
    for name in ("a", "b", "c"):
        if name == "a":
            (tmp_path / name).write_text("content")
        else:
            os.link(tmp_path / "a", tmp_path / name)
    image = pack(tmp_path, b"a\0b\0c\0")
    members = archive.tree(archive.read(image))
    assert {path: member.data for path, member in members.items()} == dict.fromkeys(
        ("/a", "/b", "/c"), b"content"
    )


def pack(folder: Path, names: bytes) -> bytes:
    """The archive that GNU cpio makes of some files."""
    done = subprocess.run(
        ["cpio", "-o", "-0", "-H", "newc", "--quiet", "-D", folder],
        input=names,
        capture_output=True,
        check=True,
    )
    return done.stdout


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..", b"TRAILER!!!")
)


@settings(max_examples=40, deadline=None)
@given(files=st.dictionaries(NAMES, st.one_of(st.binary(max_size=50), st.just(None)), min_size=1, max_size=6))
def test_gnu_cpio_writes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes | None]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    place = os.fsencode(folder)
    for name, content in files.items():
        if content is None:
            os.mkdir(os.path.join(place, name))
        else:
            with open(os.path.join(place, name), "wb") as stream:
                stream.write(content)
    members = archive.tree(archive.read(pack(folder, b"".join(name + b"\0" for name in files))))
    seen = {os.fsencode(path[1:]): None if stat.S_ISDIR(m.mode) else m.data for path, m in members.items()}
    assert seen == files


@settings(max_examples=40, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=50), min_size=1, max_size=6), summed=st.booleans())
def test_gnu_cpio_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes], summed: bool
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    image = b"".join(cpio.write([Member(name, FILE, data) for name, data in files.items()], summed=summed))
    subprocess.run(["cpio", "-i", "--quiet", "-D", folder], input=image, capture_output=True, check=True)
    place = os.fsencode(folder)
    assert {
        name: Path(os.fsdecode(os.path.join(place, name))).read_bytes() for name in os.listdir(place)
    } == files


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PACKERS)), st.integers(0), st.integers(0, 255), st.booleans())
def test_a_damaged_image_is_an_error_of_our_own(method: str, at: int, byte: int, cut: bool) -> None:
    image = bytearray(PACKERS[method](b"".join(cpio.write([Member(b"a", FILE, b"some text " * 30)]))))
    at %= len(image)
    image[at] = byte
    try:
        archive.read(bytes(image[:at] if cut else image), limit=1 << 20)
    except BuildError as error:
        assert str(error)


def test_verify_tells_which_level_failed(small: Image, tmp_path: Path) -> None:
    def verified(image: Path, *options: str | Path) -> tuple[int, str]:
        done = pyinit_image("verify", image, "--sysroot", small.debian.tree, *options)
        return done.returncode, done.stdout

    assert verified(small.path) == (0, f"{small.path}: passed: static\n")
    (tmp_path / "cut").write_bytes(small.path.read_bytes()[:-3000])
    status, text = verified(tmp_path / "cut")
    assert status == 3 and text.startswith("archive: /: ")
    status, text = verified(small.path, "--memory", "50")
    assert status == 3 and text.startswith("memory: ")
    # A machine with a disk that this image has no driver for.
    device = {"path": "devices/pci0000:00/0000:00:1f.2", "module": "ahci"}
    device["modalias"] = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
    machine = json.loads(pyinit_image("devices").stdout)
    machine["devices"].append(device)
    (tmp_path / "devices.json").write_text(json.dumps(machine))
    status, text = verified(small.path, "--devices", tmp_path / "devices.json")
    assert status == 4 and "ahci is not in the image" in text and "build it with --module ahci" in text
    status, text = verified(small.path, "--devices", tmp_path / "devices.json", "--json")
    assert (status, json.loads(text)["status"]) == (4, 4)
    done = pyinit_image("verify", small.path, "--sysroot", small.debian.tree, "--replay")
    assert done.returncode == 1 and "this is not the machine to boot" in done.stderr


def test_verify_does_not_run_a_strangers_python(small: Image, tmp_path: Path) -> None:
    """With --no-execute nothing of the image is executed, whatever is in it."""
    members = dict(small.members)
    place = "/usr/bin/python3.11"
    script = f"#!/bin/sh\ntouch {tmp_path}/executed\n".encode()
    members[place] = Member(place[1:].encode(), stat.S_IFREG | 0o755, script)
    order = sorted(members, key=lambda path: (path == "/.pyinit-complete", path.split("/")))
    content = b"".join(cpio.write(members[path] for path in order))
    (tmp_path / "image").write_bytes(content)
    done = pyinit_image("verify", tmp_path / "image", "--no-execute", "--sysroot", small.debian.tree)
    assert done.returncode == 3
    assert not (tmp_path / "executed").exists()
