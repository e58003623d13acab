"""Layers: made once, used again as long as nothing they were made of has changed; never a different image."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built_image import MODULES, Image
from elftools.elf.elffile import ELFFile
from test_image_build import pyinit_image

from pyinit_image import archive, layers, stand_in
from pyinit_image.build import BuildResult, BuildSpec, build
from pyinit_image.elf import parse
from pyinit_image.layers import SUFFIX
from pyinit_image.trace import TICK
from pyinit_qemu.debian import DebianRoot


@pytest.fixture
def system(debian: Callable[..., DebianRoot], tmp_path: Path) -> Path:
    """A Debian 12 whose /etc may be changed: everything else is the real one, through links."""
    tree = tmp_path / "tree"
    tree.mkdir()
    source = debian("bookworm").tree
    for name in os.listdir(source):
        if (source / name).is_symlink() or name not in ("etc", "usr", "boot"):
            continue
        if name == "etc":
            (tree / name).mkdir()
            for inner in (
                "os-release",
                "passwd",
                "group",
                "ld.so.conf",
                "ld.so.conf.d",
                "udev",
                "modprobe.d",
            ):
                if (source / name / inner).is_dir():
                    shutil.copytree(source / name / inner, tree / name / inner)
                elif (source / name / inner).exists():
                    shutil.copy2(source / name / inner, tree / name / inner)
        else:
            shutil.copytree(source / name, tree / name, symlinks=True, copy_function=os.link)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / name).symlink_to(f"usr/{name}")
    settle(tree / "sbin")
    return tree


def settle(path: Path) -> None:
    """Wait until a change of ``path`` would get another time than it has now."""
    while time.time_ns() <= path.lstat().st_ctime_ns + TICK:
        pass


def kept(result: BuildResult) -> dict[str, bool]:
    return {layer.name: layer.cached for layer in result.layers}


def test_another_copy_of_the_builder_does_not_use_what_this_one_kept(
    bookworm: DebianRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = BuildSpec(
        sysroot=bookworm.tree, mode="list", modules=MODULES, cache=tmp_path / "cache", compress="lz4"
    )
    build(spec)
    assert kept(build(spec)) == {"system": True, "modules": True, "settings": False}
    monkeypatch.setattr(layers, "own_places", lambda: ["/elsewhere/pyinit_image", "/elsewhere/pyinit"])
    assert kept(build(spec)) == {"system": False, "modules": False, "settings": False}


def test_only_what_changed_is_made_again(system: Path, tmp_path: Path) -> None:
    def made(**options: object) -> BuildResult:
        spec = {"sysroot": system, "mode": "list", "modules": MODULES, "cache": tmp_path / "cache", **options}
        return build(BuildSpec(**spec))

    nothing = {"system": False, "modules": False, "settings": False}
    everything = {"system": True, "modules": True, "settings": False}
    first = made()
    assert kept(first) == nothing
    again = made()
    assert kept(again) == everything
    assert again.image == first.image == made(cache=None).image
    # Configuration: only the layer it is in.
    quiet = made(cmdline="quiet", includes=((b"#!/bin/sh\n", "/usr/bin/mine"),))
    assert kept(quiet) == everything
    assert (
        quiet.image == made(cmdline="quiet", includes=((b"#!/bin/sh\n", "/usr/bin/mine"),), cache=None).image
    )
    assert kept(made(modules=(*MODULES, "xfs"))) == {**everything, "modules": False}
    assert kept(made(rescue="none")) == {**everything, "system": False}
    assert kept(made()) == everything
    # A new file where one was looked for in vain, a changed one, one that goes.
    (system / "etc/modprobe.d/mine.conf").write_text("options ext4 mine=1\n")
    settle(system / "etc/modprobe.d/mine.conf")
    assert kept(made()) == {**everything, "modules": False}
    (system / "etc/modprobe.d/mine.conf").unlink()
    changed = made()
    assert kept(changed)["modules"] is False
    assert changed.image == first.image
    with open(system / "etc/group", "a") as stream:
        stream.write("more:x:99:\n")
    settle(system / "etc/group")
    assert kept(made()) == {**everything, "system": False}


def test_a_damaged_layer_is_made_again(small: Image, tmp_path: Path) -> None:
    spec = BuildSpec(sysroot=small.debian.tree, mode="list", modules=("ext4",), cache=tmp_path / "cache")
    first = build(spec)
    for path in (tmp_path / "cache").glob(f"*{SUFFIX}"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = build(spec)
    assert kept(again) == {"system": False, "modules": False, "settings": False}
    assert again.image == first.image
    for path in (tmp_path / "cache").glob(f"*{SUFFIX}"):
        path.write_bytes(b"[1]")
    assert build(spec).image == first.image


def test_a_cache_that_others_can_write_to_is_not_used(small: Image, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    result = build(BuildSpec(sysroot=small.debian.tree, mode="list", cache=folder))
    assert result.warnings == (f"no layers are kept: {folder} can be written to by others",)
    assert list(folder.iterdir()) == []
    if os.geteuid() == 0:
        folder.chmod(0o700)
        os.chown(folder, 12345, -1)
        result = build(BuildSpec(sysroot=small.debian.tree, mode="list", cache=folder))
        assert "belongs to user 12345" in result.warnings[0]


def test_the_command_tells_what_was_kept(small: Image, tmp_path: Path) -> None:
    command = ["build", "-o", tmp_path / "i.img", "--sysroot", small.debian.tree, "--mode", "list"]
    command += ["--module", "ext4", "--json", "--cache", tmp_path / "cache"]
    for cached in (False, True):
        report = json.loads(pyinit_image(*command).stdout)
        assert [layer["cached"] for layer in report["layers"]] == [cached, cached, False]
        assert [layer["name"] for layer in report["layers"]] == ["system", "modules", "settings"]
    report = json.loads(pyinit_image(*command, "--no-cache").stdout)
    assert not any(layer["cached"] for layer in report["layers"])


def test_libraries_that_serve_nothing_have_stand_ins(small: Image, tmp_path: Path) -> None:
    """kmod and libselinux load and work with them; whatever needs the real ones brings them along."""
    replaced = {
        path for path in small.members if stand_in.reason(path) and len(small.members[path].data) > 100
    }
    names = {path.rpartition("/")[2].partition(".so")[0] for path in replaced}
    assert names == {"libcrypto", "libzstd", "liblzma", "libpcre2-8", "libexpat", "libselinux"}
    for path in replaced:
        assert len(small.members[path].data) < 4000
        segments = ELFFile(io.BytesIO(small.members[path].data)).iter_segments("PT_GNU_STACK")
        # Readable, writable, and not executable: glibc 2.41 loads no other into a program that runs.
        assert [segment["p_flags"] for segment in segments] == [6]
    assert "ext4.ko" in small.run(
        "/sbin/modprobe", "--show-depends", "--set-version", small.debian.release, "ext4"
    )
    assert small.run("/bin/sh", "-c", "echo some words | grep -o wo.d") == "word\n"
    # With a function of the stand-in that is called: SELinux is not enabled.
    assert small.run("/bin/ls", "-lZ", "/etc").split()
    program = small.debian.tree / "usr/bin/systemctl"
    spec = BuildSpec(
        sysroot=small.debian.tree, mode="list", compress="none", includes=((program, "/usr/bin/x"),)
    )
    members = archive.tree(archive.read(build(spec).image))
    crypto = next(path for path in members if path.endswith("/libcrypto.so.3"))
    assert members[crypto].data == (small.debian.tree / crypto[1:]).read_bytes()


def test_stand_ins_that_cannot_be(small: Image) -> None:
    tree = small.debian.tree / "usr/lib/x86_64-linux-gnu"
    kmod, crypto = (small.debian.tree / "usr/bin/kmod").read_bytes(), (tree / "libcrypto.so.3").read_bytes()
    files = {"/kmod": kmod, "/libcrypto.so.3": crypto}
    needed = {"/kmod": ("libcrypto.so.3",)}
    assert set(stand_in.choose(files, needed, lambda path: False, ())) == {"/libcrypto.so.3"}
    # Somebody else uses it; two of them; the user is no sound file.
    other = {**needed, "/tool": ("libcrypto.so.3",)}
    assert stand_in.choose({**files, "/tool": kmod}, other, lambda path: False, ()) == {}
    assert stand_in.choose({**files, "/x/libcrypto.so.3": crypto}, needed, lambda path: False, ()) == {}
    assert stand_in.choose({**files, "/kmod": kmod[:4000]}, needed, lambda path: False, ()) == {}
    zstd = (tree / "libzstd.so.1").resolve().read_bytes()
    files, needed = {"/kmod": kmod, "/libzstd.so.1": zstd}, {"/kmod": ("libzstd.so.1",)}
    assert stand_in.choose(files, needed, lambda path: False, (".xz", ".zst")) == {}
    chosen = stand_in.choose(files, needed, lambda path: False, ())
    binary = parse(chosen["/libzstd.so.1"])
    assert binary is not None and binary.needed == ()
    # Each for the reason that its real one is needed for after all.
    for soname, user in (("libselinux.so.1", "usr/bin/ls"), ("libexpat.so.1", "usr/bin/python3.11")):
        name = f"/{user.rpartition('/')[2]}"
        files = {name: (small.debian.tree / user).read_bytes()}
        files[f"/{soname}"] = (tree / soname).resolve().read_bytes()
        needed = {name: (soname,)}
        assert set(stand_in.choose(files, needed, lambda path: False, ())) == {f"/{soname}"}
        with_policy, with_xml = lambda path: path == "/etc/selinux/config", {"pyexpat"}
        kept = soname == "libselinux.so.1"
        assert (stand_in.choose(files, needed, with_policy, ()) == {}) is kept
        assert (stand_in.choose(files, needed, lambda path: False, (), with_xml) == {}) is not kept
