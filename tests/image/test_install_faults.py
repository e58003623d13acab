"""Installing an image while calls fail, disks are full and builders are killed: I1, I3, I4, I5 and S16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from pyinit.config.sealed import CONFIG_PATH, SENTINEL_PATH, parse_config
from pyinit_image import archive
from pyinit_qemu.debian import DebianRoot

SHIM = Path(__file__).with_name("install_faults.py")
KILLED, DONE, REFUSED = -9, 0, 1


def cases(what: str, directory: Path, *prefix: str, more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        [*prefix, sys.executable, str(SHIM), what, str(directory), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_after_a_kill(case: dict[str, Any]) -> None:
    assert case["image"] in ("old", "new"), case
    assert case["previous"] in ("older", "old"), case
    # What takes room besides the two images is one temporary file at most, and the next run removes it.
    assert case["inodes"] <= 3, case
    assert case["again"] == DONE
    assert case["then"]["image"] == "new" and case["then"]["litter"] == [], case
    assert case["then"]["mode"] == 0o600


@pytest.mark.parametrize("more", [(), ("without-links",)], ids=["links", "no-links"])
def test_I1_I3_every_call_of_the_installation_fails_or_is_the_last(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    found = cases("calls", tmp_path / "boot", more=more)
    names = {case["name"] for case in found}
    assert {"open", "flock", "write", "fsync", "link", "rename", "unlink"} <= names
    assert ("exchange" in names) == bool(more)
    kills = [case for case in found if case["action"].startswith("kill")]
    failures = [case for case in found if not case["action"].startswith("kill")]
    for case in kills:
        assert case["status"] == KILLED, case
        check_after_a_kill(case)
    assert {case["image"] for case in kills} == {"old", "new"}
    last_call = max(case["call"] for case in found)
    for case in failures:
        # Closing a file that is synced, and removing what is not there, may fail without a consequence.
        assert case["image"] in ("old", "new"), case
        assert (case["image"] == "new") == (case["status"] == DONE) or case["call"] >= last_call - 1, case
        assert case["status"] in (DONE, REFUSED), case
        assert case["previous"] in ("older", "old"), case
        assert case["again"] == DONE and case["then"]["image"] == "new" and not case["then"]["litter"], case


def test_I2_what_a_power_cut_may_undo_is_never_the_only_image(tmp_path: Path) -> None:
    """Nothing gets the image's name before its bytes are on the disk, and the names are synced at the end."""
    (case,) = cases("order", tmp_path / "boot")
    shown = ("flock", "open", "fchmod", "write", "fsync", "read", "link", "rename")
    calls = [call for call, _ in groupby(call for call in case["calls"] if call in shown)]
    assert calls == [
        *("open", "flock", "open", "fchmod", "write", "fsync", "read"),
        *("link", "rename", "fsync"),
    ]  # fmt: skip


def test_I3_a_full_disk_leaves_the_old_image(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    found = cases(
        "full", place / "boot",
        "unshare", "--mount", "--propagation", "private",
        "sh", "-ec", f'mount -t tmpfs -o size=1m,mode=0700 none {place}; mkdir {place}/boot; exec "$@"', "sh",
    )  # fmt: skip
    assert {case["status"] for case in found} == {DONE, REFUSED}
    for case in found:
        assert case["image"] == ("new" if case["status"] == DONE else "old"), case
        assert case["litter"] == []


def test_I5_a_builder_that_is_killed_anywhere(tmp_path: Path) -> None:
    found = cases("killed", tmp_path / "boot")
    assert len(found) > 40
    for case in found:
        check_after_a_kill(case)


def test_I4_eight_builders_at_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    code = (
        "import sys; from pathlib import Path; from pyinit_image.install import install\n"
        "sys.stdin.read()\n"
        "for turn in range(5): install(Path(sys.argv[1]), bytes([int(sys.argv[2]), turn]) * 100_000)\n"
    )
    reader, writer = os.pipe()
    builders = [
        subprocess.Popen([sys.executable, "-c", code, image, str(number)], stdin=reader)
        for number in range(8)
    ]
    os.close(reader)
    os.close(writer)  # Now all of them start.
    assert [builder.wait() for builder in builders] == [0] * 8
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]
    for path in (image, tmp_path / "image.old"):
        content = path.read_bytes()
        assert len(content) == 200_000 and content == content[:2] * 100_000


def test_I4_eight_whole_builds_at_once(bookworm: DebianRoot, tmp_path: Path) -> None:
    command = (
        *(
            sys.executable,
            "-m",
            "pyinit_image.cli",
            "build",
            "--quiet",
            "--no-cache",
            "-o",
            tmp_path / "image",
        ),
        *(
            "--sysroot",
            bookworm.tree,
            "--mode",
            "list",
            "--module",
            "ext4",
            "--compress",
            "none",
            "--cmdline",
        ),
    )
    builders = [subprocess.Popen([*command, f"builder={number}"]) for number in range(8)]
    assert [builder.wait() for builder in builders] == [0] * 8
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]
    winners = []
    for name in ("image", "image.old"):
        members = archive.tree(archive.read((tmp_path / name).read_bytes()))
        assert list(members)[-1] == SENTINEL_PATH
        winners.append(parse_config(members[CONFIG_PATH].data).cmdline)
    assert len(set(winners)) == 2 and all(winner.startswith("builder=") for winner in winners)


@pytest.mark.parametrize("name", [".image.new", ".image.spare", "image.old"])
def test_S16_a_planted_link_is_not_written_through(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "image").write_bytes(b"old")
    (boot / name).symlink_to(victim)
    code = "import sys; from pathlib import Path; from pyinit_image.install import install\n"
    code += "install(Path(sys.argv[1]), b'new')"
    subprocess.run([sys.executable, "-c", code, boot / "image"], check=True)
    assert victim.read_bytes() == b"precious"
    assert (boot / "image").read_bytes() == b"new"
    assert (boot / "image.old").read_bytes() == b"old" and not (boot / "image.old").is_symlink()
    assert sorted(os.listdir(boot)) == ["image", "image.old"]
