"""Debian systems in the cache: what is in them, and what is said when the archive fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import debian as module
from pyinit_qemu.cli import main
from pyinit_qemu.debian import ArchiveError, DebianRoot, ProvisionError, Suite, host_mirror, provision
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.tools import run
from pyinit_qemu.smallroot import small_root


@pytest.mark.parametrize("suite", module.SUITES)
def test_is_a_debian(debian: Callable[[Suite], DebianRoot], suite: Suite) -> None:
    root = debian(suite)
    etc = root.tree / "etc"
    assert root.kernel.name == f"vmlinuz-{root.release}"
    assert root.initrd_debian.stat().st_size > 1 << 20
    assert (root.tree / "usr/lib/modules" / root.release / "modules.dep").exists()
    assert (etc / "hostname").read_text() == "pyinit-debian\n"
    assert re.fullmatch(r"[0-9a-f]{32}\n", (etc / "machine-id").read_text())
    assert "LABEL=debian-root / auto" in (etc / "fstab").read_text()
    assert "systemd" in str((root.tree / "usr/sbin/init").readlink())
    # Neither package lists nor downloaded packages take room.
    assert not list(root.tree.glob("var/cache/apt/archives/*.deb"))
    assert not list(root.tree.glob("var/lib/apt/lists/*Packages*"))


def test_disk_keeps_owners_and_root_may_log_in(bookworm: DebianRoot) -> None:
    disk = bookworm.disk()
    place = f"{disk}?offset=1048576"
    stat = run(["debugfs", "-R", "stat /etc/shadow", place])
    assert re.search(r"Mode:  0640", stat) and re.search(r"Group:    42\b", stat)
    assert "\nroot::" in "\n" + run(["debugfs", "-R", "cat /etc/shadow", place]).partition("\n")[2]
    assert "Mode:  04755" in run(["debugfs", "-R", "stat /usr/bin/su", place])
    out = run(["partx", "--raw", "--noheadings", "--output", "UUID,NAME", disk])
    assert out.split() == [bookworm.id("partition"), "debian-root"]
    export = run(["blkid", "--probe", "--output", "export", "--offset", "1048576", disk]).splitlines()
    assert f"UUID={bookworm.id('fs')}" in export and "LABEL=debian-root" in export


def test_small_root_is_small_and_complete(bookworm: DebianRoot) -> None:
    tree = small_root(bookworm).path
    assert sum(path.lstat().st_size for path in tree.rglob("*")) < 32 << 20
    assert (tree / "sbin").readlink() == Path("usr/sbin")
    assert (tree / "sbin/init").readlink() == Path("/usr/lib/witness/init")
    assert (tree / "usr/lib/witness/init").read_bytes()[:4] == b"\x7fELF"
    assert (tree / "bin/sh").resolve().is_relative_to(tree)


def test_the_command_says_where_it_is(bookworm: DebianRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debian", "bookworm"]) == 0
    assert capsys.readouterr().out == f"{bookworm.tree}\n"
    with pytest.raises(SystemExit):
        main(["debian", "buster"])
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "DEBIAN=$(.venv/bin/pyinit-qemu debian bookworm)" in readme


def test_unreachable_archive_is_the_archives_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Port 9 of this machine: nobody answers.
    monkeypatch.setattr(module, "host_mirror", lambda: "http://127.0.0.1:9/debian")
    with pytest.raises(
        ArchiveError, match=r"Debian sid cannot be installed from http://127\.0\.0\.1:9/debian now"
    ):
        provision("sid", cache=Cache(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == [tmp_path / "debian"]


def test_trouble_of_this_machine_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_options", lambda packages: ("--no-such-option",))
    with pytest.raises(ProvisionError, match="could not be installed") as caught:
        provision("sid", cache=Cache(tmp_path))
    assert not isinstance(caught.value, ArchiveError)


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="'buster'; known: bookworm, trixie, sid"):
        provision("buster")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        (
            "debian.sources",
            "Types: deb\nURIs: http://ftp.xx.debian.org/debian/\n",
            "http://ftp.xx.debian.org/debian",
        ),
        (
            "a.list",
            "deb [arch=amd64] https://mirror.example/debian bookworm main\n",
            "https://mirror.example/debian",
        ),
        ("a.list", "# deb http://off.example/debian bookworm main\n", module.DEFAULT_MIRROR),
        ("a.list", "deb http://security.debian.org/debian-security x main\n", module.DEFAULT_MIRROR),
        ("a.sources", "URIs: http://archive.ubuntu.com/ubuntu\n", module.DEFAULT_MIRROR),
        ("a.list", "deb cdrom:[Debian]/debian bookworm main\n", module.DEFAULT_MIRROR),
        ("a.list", "", module.DEFAULT_MIRROR),
    ],
)
def test_mirror_is_the_hosts(tmp_path: Path, name: str, text: str, mirror: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    assert host_mirror(tmp_path) == mirror
