"""Building: equal inputs, equal bytes; errors that tell what to do; the command line."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from built_image import MODULES, Image

from pyinit.config.sealed import MODULES_PATH, parse_modules
from pyinit_image import archive
from pyinit_image.build import BuildSpec, build
from pyinit_image.elf import closure, parse
from pyinit_image.errors import BuildError
from pyinit_image.sysroot import Sysroot


def pyinit_image(
    *arguments: str | Path, cwd: Path | None = None, umask: int = 0o22, **environment: str
) -> subprocess.CompletedProcess[str]:
    if "build" in arguments and "--cache" not in arguments:
        # Nothing of this machine's cache, nor anything into it.
        arguments = (*arguments, "--no-cache")
    return subprocess.run(
        [sys.executable, "-m", "pyinit_image.cli", *arguments],
        cwd=cwd,
        umask=umask,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_equal_inputs_give_equal_bytes(small: Image, tmp_path: Path) -> None:
    """Other time zone, locale, umask, hash seed, directory, clock, place of the sysroot: the same image."""
    (tmp_path / "elsewhere").symlink_to(small.debian.tree)
    output = tmp_path / "other.img"
    arguments = [word for name in MODULES for word in ("--module", name)]
    # The image of the fixture was built in this process, through another name of the system.
    done = pyinit_image(
        "build",
        *("-o", output, "--sysroot", tmp_path / "elsewhere", "--mode", "list", "--compress", "none"),
        *arguments,
        cwd=tmp_path,
        umask=0o077,
        TZ="Pacific/Kiritimati",
        LC_ALL="C",
        LANG="xx",
        HOME="/nonexistent",
        PYTHONHASHSEED="1234",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == small.path.read_bytes()
    assert f"kernel {small.debian.release}, list" in done.stdout


def test_only_the_owner_may_read_it_and_the_previous_one_is_kept(small: Image, tmp_path: Path) -> None:
    output = tmp_path / "initrd.img"
    output.write_bytes(b"the previous image")
    output.chmod(0o644)
    old = os.umask(0)
    try:
        build(BuildSpec(output, small.debian.tree, mode="list", modules=("ext4",), compress="zstd"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert (tmp_path / "initrd.img.old").read_bytes() == b"the previous image"
    assert sorted(os.listdir(tmp_path)) == ["initrd.img", "initrd.img.old"]


def test_includes(small: Image, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("deep")
    (folder / "link").symlink_to("deep/file")
    program = small.debian.tree / "usr/bin/bash"
    result = build(
        BuildSpec(
            sysroot=small.debian.tree,
            mode="list",
            compress="none",
            includes=(
                (folder, "/opt/folder"),
                (folder / "deep", "/root"),
                (b"#!/bin/sh\n", "/sbin/hook"),
                (program, "/opt/bash"),
                (b"replaced", "/etc/udev/udev.conf"),
            ),
        )
    )
    members = archive.tree(archive.read(result.image))
    assert members["/opt/folder/deep/file"].data == b"deep"
    assert members["/opt/folder/link"].data == b"deep/file"
    assert members["/root/file"].data == b"deep" and stat.S_IMODE(members["/root"].mode) == 0o700
    # /sbin is a link: the file lands where it leads.
    assert members["/usr/sbin/hook"].mode == stat.S_IFREG | 0o755
    assert members["/etc/udev/udev.conf"].data == b"replaced"
    binary = parse(members["/opt/bash"].data)
    assert binary is not None
    names = {path.rpartition("/")[2] for path in members}
    assert set(binary.needed) <= names


def test_firmware_comes_along(small: Image, tmp_path: Path) -> None:
    """A module's firmware is included from where the kernel looks for it; a missing one is a warning."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in os.listdir(small.debian.tree):
        source = small.debian.tree / name
        (tree / name).symlink_to(os.readlink(source) if source.is_symlink() else source)
    # A view of the system with a /usr/lib of our own, in which everything but firmware is the real one.
    (tree / "usr").unlink()
    (tree / "usr/lib/firmware/advansys").mkdir(parents=True)
    (tree / "usr/lib/firmware/advansys/3550.bin").write_bytes(b"firmware")
    for directory in ("usr", "usr/lib"):
        for source in (small.debian.tree / directory).iterdir():
            if source.name not in ("lib", "firmware"):
                target = tree / directory / source.name
                if source.is_dir() and not source.is_symlink():
                    shutil.copytree(source, target, symlinks=True, copy_function=os.link)
                elif source.is_symlink():
                    target.symlink_to(os.readlink(source))
                else:
                    os.link(source, target)
    for name in ("etc", "boot"):
        (tree / name).unlink()
        shutil.copytree(small.debian.tree / name, tree / name, symlinks=True, copy_function=os.link)
    result = build(BuildSpec(sysroot=tree, mode="list", modules=("advansys",), compress="none"))
    members = archive.tree(archive.read(result.image))
    assert members["/usr/lib/firmware/advansys/3550.bin"].data == b"firmware"
    assert any("advansys (advansys/38C0800.bin)" in warning for warning in result.warnings)


def test_libraries_that_only_the_loader_cache_knows_get_a_link(small: Image, tmp_path: Path) -> None:
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "opt/acl").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf.d").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "lib64").symlink_to("usr/lib")
    (tmp_path / "etc/ld.so.conf").write_text("include ld.so.conf.d/*.conf\n")
    (tmp_path / "etc/ld.so.conf.d/acl.conf").write_text("# comment\n/opt/acl\n")
    for item in closure(small.debian.tree, ["/usr/bin/ls", "/usr/bin/udevadm"]):
        target = tmp_path / item.path.lstrip("/")
        if item.path.startswith("/lib"):
            continue
        if "libacl" in item.path:
            target = tmp_path / "opt/acl" / target.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.target is None:
            shutil.copy(small.debian.tree / item.path.lstrip("/"), target)
        else:
            target.symlink_to(item.target)
    (tmp_path / "usr/lib/ld-linux-x86-64.so.2").symlink_to("x86_64-linux-gnu/ld-linux-x86-64.so.2")
    links = {item.path: item.target for item in closure(Sysroot(tmp_path), ["/usr/bin/udevadm"])}
    assert links["/usr/lib/x86_64-linux-gnu/libacl.so.1"] == "/opt/acl/libacl.so.1"


def test_a_missing_library_is_named(small: Image, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(small.debian.tree / "usr/bin/udevadm", tmp_path / "bin")
    with pytest.raises(
        BuildError, match="ld-linux.* is missing in .*; /bin/udevadm needs it|is linked against"
    ):
        closure(tmp_path, ["/bin/udevadm"])


@pytest.mark.parametrize(
    ("files", "links", "message"),
    [
        ({}, {}, "/usr/bin/python3 is missing in .*; pyinit needs Python 3.11 or later"),
        (
            {"usr/bin/python3.9": b""},
            {"usr/bin/python3": "python3.9"},
            "is Python 3.9; pyinit needs Python 3.11",
        ),
        ({"usr/bin/python3": b"#!/bin/sh"}, {}, "does not tell its version"),
        ({}, {"usr/bin/python3": "python3"}, "a loop of symbolic links"),
    ],
)
def test_a_system_without_a_fitting_python(
    tmp_path: Path, files: dict[str, bytes], links: dict[str, str], message: str
) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with pytest.raises(BuildError, match=message):
        build(BuildSpec(sysroot=tmp_path))


def test_a_system_of_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    binary = bytearray(Path(sys.executable).read_bytes()[:4096])
    binary[18:20] = b"\xb7\x00"  # EM_AARCH64
    binary[56:58] = b"\x00\x00"  # no program headers
    (tmp_path / "usr/bin/python3").symlink_to("python3.12")
    (tmp_path / "usr/bin/python3.12").write_bytes(binary)
    with pytest.raises(BuildError, match="is a system for aarch64, this machine is x86_64"):
        build(BuildSpec(sysroot=tmp_path))


def test_a_module_that_is_not_there_leaves_the_old_image(small: Image, tmp_path: Path) -> None:
    output = tmp_path / "initrd.img"
    output.write_bytes(b"old")
    done = pyinit_image("build", "-o", output, "--sysroot", small.debian.tree, "--module", "ext44")
    assert done.returncode == 1
    assert "has no module ext44" in done.stderr
    assert "Did you mean ext4?" in done.stderr
    assert output.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["initrd.img"]


def test_explain_prints_the_chain(small: Image) -> None:
    done = pyinit_image("explain", small.path, "crc16")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.endswith("/crc16.ko: dependency")
    assert second.strip().startswith("<- ") and second.endswith("/ext4.ko: --module ext4")
    done = pyinit_image("explain", small.path, "/lib/x86_64-linux-gnu/libcrypto.so.3")
    assert "shared library" in done.stdout and "the kernel starts it" in done.stdout
    done = pyinit_image("explain", small.path, "nvme")
    assert done.returncode == 1
    assert "nvme: not in this image" in done.stderr and "--module" in done.stderr
    done = pyinit_image("explain", small.path, "ext44")
    assert done.returncode == 1 and "Did you mean ext4?" in done.stderr
    builtin = min(parse_modules(small.members[MODULES_PATH].data).builtin)
    done = pyinit_image("explain", small.path, builtin)
    assert done.returncode == 1 and "built into the kernel" in done.stderr


def test_looking_into_an_image(small: Image) -> None:
    assert "/usr/lib/pyinit/pyinit/__main__.py\n" in pyinit_image("ls", small.path).stdout
    long = pyinit_image("ls", "--long", small.path).stdout
    assert "crw-------    0    0      5, 1 /dev/console\n" in long
    assert "/bin -> usr/bin\n" in long
    totals = pyinit_image("ls", "--by-reason", small.path).stdout
    assert {"modules", "python", "udev", "rescue", "pyinit", "base"} <= set(totals.split())
    assert "VARIANT=initrd" in pyinit_image("cat", small.path, "/etc/os-release").stdout
    missing = pyinit_image("cat", small.path, "/etc/nothing")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "/etc/nothing is not in this image" in missing.stderr


def test_images_of_other_makers(small: Image) -> None:
    done = pyinit_image("ls", small.debian.initrd_debian)
    assert done.returncode == 0, done.stderr
    assert "/init\n" in done.stdout


def test_usage_errors(tmp_path: Path) -> None:
    assert pyinit_image("--help").returncode == 0
    assert pyinit_image("build", "--help").returncode == 0
    assert pyinit_image().returncode == 2
    assert pyinit_image("build").returncode == 2
    assert pyinit_image("build", "-o", "x", "--mode", "some").returncode == 2
    done = pyinit_image("ls", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.startswith("pyinit-image: ") and "No such file" in done.stderr
