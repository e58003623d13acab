"""Disks made by the real tools, read by others: blkid, partx, debugfs and fsck from Debian's base system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.declare import blank, esp, ext4, gpt, mbr, part, swap
from pyinit_qemu.disks.filesystems import (
    FILESYSTEMS,
    Btrfs,
    Erofs,
    Ext2,
    Ext3,
    Ext4,
    F2fs,
    Filesystem,
    Squashfs,
    Swap,
    Tree,
    Vfat,
    Xfs,
)
from pyinit_qemu.disks.gpt import ESP
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.disks.tools import SEARCH_PATH, ToolError, find, run

UUID = "5c7cd6fe-2a6f-4b5e-9f0e-2f6b8f1f4b11"
PARTUUID = "8d0f8c2a-6a8e-4f5b-a9a4-6b6d2f0c9e77"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A small tree with what file systems can get wrong."""
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hello").write_text("hello\n")
    (root / "link").symlink_to("/etc/hello")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "su").write_bytes(b"\x7fELF" * 4096)
    (root / "su").chmod(0o4755)
    return Tree(root)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def probe(path: Path, offset: int = 0) -> dict[str, str]:
    """What blkid sees, decoded."""
    out = run(["blkid", "--probe", "--output", "export", "--offset", str(offset), path])
    pairs = [re.sub(r"\\(.)", r"\1", line).partition("=") for line in out.splitlines()]
    return {name: value for name, _, value in pairs}


KINDS: dict[str, Callable[[Tree], Filesystem]] = {
    "ext4": lambda tree: Ext4(tree, label='my "root"', uuid=UUID),
    "ext3": lambda tree: Ext3(tree, label='my "root"', uuid=UUID),
    "ext2": lambda tree: Ext2(tree, label='my "root"', uuid=UUID),
    "f2fs": lambda tree: F2fs(tree, label="a 'b' \"c\"", uuid=UUID),
    "erofs": lambda tree: Erofs(tree, uuid=UUID),
    "swap": lambda tree: Swap(label="s w a p", uuid=UUID),
    "xfs": lambda tree: Xfs(tree, label='a "b" c', uuid=UUID),
    "btrfs": lambda tree: Btrfs(tree, label="it's a root", uuid=UUID),
    "squashfs": Squashfs,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_disk(kind: str, tree: Tree, cache: Cache) -> None:
    filesystem = KINDS[kind](tree)
    path = Image(whole=filesystem).build(cache=cache)
    seen = probe(path)
    assert seen["TYPE"] == kind
    if kind != "squashfs":
        assert seen["UUID"] == UUID
        assert seen.get("LABEL", "") == filesystem.label  # type: ignore[attr-defined]
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_blocks * 512 < 80 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_partition(kind: str, tree: Tree, cache: Cache) -> None:
    path = Image(
        gpt=(
            Partition(size=3 << 20, name="first"),
            Partition(KINDS[kind](tree), partuuid=PARTUUID, name='an "x" y', type=ROOT_X86_64),
        )
    ).build(cache=cache)
    out = run(["partx", "--raw", "--noheadings", "--output", "START,UUID,TYPE,NAME", path])
    first, second = out.splitlines()
    assert first.startswith("2048 ") and first.endswith(" first")
    assert second.split(maxsplit=3) == ["8192", PARTUUID, ROOT_X86_64, 'an\\x20"x"\\x20y']
    assert probe(path, 4 << 20)["TYPE"] == kind


def test_ext4_holds_the_tree(tree: Tree, cache: Cache) -> None:
    path = Image(whole=Ext4(tree)).build(cache=cache)
    run(["e2fsck", "-f", "-n", path])
    for name, mode in {"/su": "04755", "/tmp": "01777", "/etc/hello": "0644"}.items():
        out = run(["debugfs", "-R", f"stat {name}", path])
        assert f"Mode:  {mode}" in out and "User:     0   Group:     0" in out
    assert run(["debugfs", "-R", "cat /etc/hello", path]).endswith("hello\n")


def test_xfs_holds_the_tree(tree: Tree, cache: Cache) -> None:
    path = Image(whole=Xfs(tree)).build(cache=cache)
    run(["xfs_repair", "-n", "-f", path])
    for name, mode in {"/su": "0104755", "/tmp": "041777", "/etc/hello": "0100644"}.items():
        assert f"core.mode = {mode}" in run(["xfs_db", "-r", "-c", f"path {name}", "-c", "print", path])


def test_btrfs_holds_the_tree(tree: Tree, cache: Cache) -> None:
    run(["btrfs", "check", "--readonly", Image(whole=Btrfs(tree)).build(cache=cache)])


def test_f2fs_holds_the_tree(tree: Tree, cache: Cache) -> None:
    out = run(["fsck.f2fs", "--dry-run", Image(whole=F2fs(tree)).build(cache=cache)])
    assert "[FSCK] other corrupted bugs                           [Ok..]" in out


def test_erofs_holds_the_tree(tree: Tree, cache: Cache) -> None:
    path = Image(whole=Erofs(tree)).build(cache=cache)
    run(["fsck.erofs", path])
    assert "Access: 0644" in run(["dump.erofs", "--path=/etc/hello", path])


def test_vfat_holds_files_and_directories_and_nothing_else(tree: Tree, cache: Cache, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    (plain / "EFI" / "Long name").mkdir(parents=True)
    (plain / "EFI" / "Long name" / "a.efi").write_text("hello\n")
    path = Image(whole=Vfat(Tree(plain), label="BOOT", uuid="12ab-CDEF")).build(cache=cache)
    seen = probe(path)
    assert (seen["TYPE"], seen["LABEL"], seen["UUID"]) == ("vfat", "BOOT", "12AB-CDEF")
    assert run(["mtype", "-i", path, "::/EFI/Long name/a.efi"]) == "hello\n"
    with pytest.raises(ValueError, match="link is neither a file nor a directory: a vfat cannot hold it"):
        Vfat(tree).write(tmp_path / "no.img", 512)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda tree: Vfat(label="TWELVE-BYTES"), "no label of a vfat: at most 11 characters"),
        (lambda tree: Vfat(uuid=UUID), "UUID of a vfat is XXXX-XXXX"),
        (lambda tree: Erofs(tree, label="x"), "erofs has no label"),
        (lambda tree: Erofs(), "erofs needs a tree"),
        (lambda tree: Swap(tree), "a swap area holds no tree"),
        (lambda tree: Swap(label="seventeen bytes!!"), "no label of swap: at most 16 bytes"),
        (lambda tree: Ext2(label="seventeen bytes!!"), "no label of ext2: at most 16 bytes"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    made: Callable[[Tree], Filesystem], message: str, tree: Tree, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        made(tree).write(tmp_path / "x.img", 512)


@pytest.mark.parametrize("kind", sorted(set(FILESYSTEMS) - {"btrfs", "xfs"}))
def test_the_same_declaration_gives_the_same_bytes(kind: str, tree: Tree, tmp_path: Path) -> None:
    # btrfs draws the identifiers of its device and its chunks, xfs has the time at which it was made.
    content = None if kind in ("swap", "vfat") else tree
    for name in ("a", "b"):
        FILESYSTEMS[kind](content).write(tmp_path / name, 512)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_disk_in_one_expression(tree: Tree, cache: Cache) -> None:
    root = part(ext4(tree, label="r"), name="root", type=ROOT_X86_64, size=64 << 20)
    path = gpt(esp(label="ESP"), root, swap(label="s"), blank(1 << 20, name="rest")).build(cache=cache)
    out = run(["partx", "--raw", "--noheadings", "--output", "TYPE,SIZE,NAME", path])
    types = [line.split()[0] for line in out.splitlines()]
    assert types[0] == ESP and types[1] == ROOT_X86_64
    assert [line.split()[1:] for line in out.splitlines()][1:] == [["64M", "root"], ["16M"], ["1M", "rest"]]
    old = mbr(ext4(tree), swap()).build(cache=cache)
    assert run(["partx", "--raw", "--noheadings", "--output", "TYPE", old]).split() == ["0x83", "0x82"]


def test_squashfs_holds_the_tree(tree: Tree, cache: Cache) -> None:
    out = run(["unsquashfs", "-lls", Image(whole=Squashfs(tree)).build(cache=cache)])
    assert "drwxrwxrwt root/root" in out and "-rwsr-xr-x root/root" in out and "link -> /etc/hello" in out


def test_same_declaration_same_bytes(tree: Tree, tmp_path: Path) -> None:
    declared = Image(gpt=(Partition(Ext4(tree)),))
    one, two = (declared.build(cache=Cache(tmp_path / name)).read_bytes() for name in ("one", "two"))
    assert one == two


def test_changed_tree_is_another_disk(tree: Tree, cache: Cache) -> None:
    before = Image(whole=Ext4(tree)).build(cache=cache)
    (tree.path / "new").touch()
    assert Image(whole=Ext4(Tree(tree.path))).build(cache=cache) != before


def test_a_tree_with_other_files_is_made_of_the_same_one(tree: Tree, cache: Cache) -> None:
    other = tree.changed({"/etc/hello": b"other\n"}).changed({"/srv/new": b"new\n"})
    assert len({tree.digest, other.digest, tree.changed({"/srv/new": b"new\n"}).digest}) == 3
    path = Image(whole=Ext4(other)).build(cache=cache)
    for name, content in (("/etc/hello", "other\n"), ("/srv/new", "new\n")):
        assert run(["debugfs", "-R", f"cat {name}", path]).endswith(content)
    assert "Mode:  04755" in run(["debugfs", "-R", "stat /su", path])
    assert "Mode:  0644" in run(["debugfs", "-R", "stat /srv/new", path])
    assert (tree.path / "etc/hello").read_text() == "hello\n"
    assert not (tree.path / "srv").exists()


def test_sectors_of_4096_bytes(tree: Tree, cache: Cache) -> None:
    path = Image(gpt=(Partition(Xfs(tree)),), sector=4096).build(cache=cache)
    with path.open("rb") as disk:
        disk.seek(4096)
        assert disk.read(8) == b"EFI PART"
    assert probe(path, 1 << 20)["BLOCK_SIZE"] == "4096"


def test_mbr(tree: Tree, cache: Cache) -> None:
    declared = Image(mbr=(Partition(Ext4(tree)), Partition(size=1 << 20, type="82")), disk_uuid=UUID)
    path = declared.build(cache=cache)
    out = run(["partx", "--raw", "--noheadings", "--output", "UUID,TYPE", path])
    assert out.split() == ["5c7cd6fe-01", "0x83", "5c7cd6fe-02", "0x82"]


def test_xfs_refuses_what_its_tool_cannot_hold(tree: Tree, cache: Cache) -> None:
    (tree.path / "two words").touch()
    with pytest.raises(ValueError, match="white space"):
        Image(whole=Xfs(Tree(tree.path))).build(cache=cache)


def test_contradictions_are_refused(tree: Tree, cache: Cache) -> None:
    with pytest.raises(ValueError, match="either"):
        Image().build(cache=cache)
    with pytest.raises(ValueError, match="neither label"):
        Image(whole=Squashfs(tree, label="x")).build(cache=cache)
    with pytest.raises(ToolError, match=r"(?s)mke2fs failed with exit status 1: .*mke2fs .*Not enough space"):
        Image(whole=Ext4(tree, size=64 << 10)).build(cache=cache)


def test_missing_tool_names_its_package() -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed; try: apt-get install no-such-tool"):
        find("no-such-tool")


@pytest.mark.skipif(os.geteuid() != 0, reason="owners can only be shown as root")
def test_archive_keeps_owners_for_a_normal_user(tmp_path: Path, cache: Cache) -> None:
    """What a normal user gets: an archive with owners, their own unpacked files, and a disk with owners."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "shadow").write_text("secret")
    os.chown(source / "shadow", 0, 42)
    archive = tmp_path / "root.tar"
    run(["tar", "--create", "--numeric-owner", "--file", archive, "--directory", source, "."])
    unpacked = tmp_path / "tree"
    shutil.copytree(source, unpacked)
    os.chown(unpacked / "shadow", 65534, 65534)
    tree = Tree(unpacked, archive=archive, digest="x").changed({"/etc/new": b"new"})
    disk = Image(whole=Ext4(tree)).build(cache=cache)
    assert run(["debugfs", "-R", "cat /etc/new", disk]).endswith("new")
    assert "User:     0   Group:    42" in run(["debugfs", "-R", "stat /shadow", disk])
    assert [path.name for path in disk.parent.iterdir() if not path.name.startswith(".")] == ["disk.img"]


def test_interrupted_tool_is_ended(tmp_path: Path) -> None:
    """An exception while a tool runs ends the tool and what it started."""
    seen: list[str] = []

    def stop(line: str) -> None:
        seen.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "sleep 1000 & echo $!; wait"], line=stop)
    path = shutil.which("ps", path=SEARCH_PATH)
    assert path is not None
    state = subprocess.run([path, "-o", "stat=", seen[0]], capture_output=True, text=True, check=False).stdout
    assert state.strip() in ("", "Z", "Z+")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount without a user namespace")
def test_contained_tool_leaves_neither_mounts_nor_daemons(tmp_path: Path) -> None:
    mark = f"pyinit-{tmp_path.name}"
    run(["sh", "-c", f"mount -t tmpfs {mark} {tmp_path}; sh -c 'sleep 1000; :' {mark} &"], contained=True)
    assert mark not in Path("/proc/self/mountinfo").read_text()
    assert not [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if mark in path.read_text(errors="replace")
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount without a user namespace")
def test_what_is_mounted_in_a_tree_is_never_removed(tmp_path: Path) -> None:
    victim = tmp_path / "with blank"
    (victim / "below").mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from pyinit_qemu.disks.cache import remove\n"
        "try: remove(Path(sys.argv[1]))\n"
        "except OSError as error: print(error)"
    )
    script = 'mount -t tmpfs none "$1/below" && touch "$1/below/file" && "$2" -c "$3" "$1" && ls "$1/below"'
    out = run(["sh", "-c", script, "sh", victim, sys.executable, code], contained=True)
    assert "something is mounted in it" in out and out.endswith("file\n")
