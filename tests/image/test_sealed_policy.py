"""Images with a password before the rescue shell, and what a build refuses or decides by itself."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from built_image import Image

from pyinit.config.sealed import CONFIG_PATH, parse_config
from pyinit.kernel.syscalls import crypt
from pyinit_image import access, archive
from pyinit_image.build import BuildSpec, build
from pyinit_image.errors import BuildError
from pyinit_qemu.disks.cache import Cache

LAYERS = Cache().root / "layers"


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hash") / "rescue.hash"
    path.write_text(f"{access.make_hash(bytearray(b'correct horse'))}\n")
    return path


@pytest.fixture(scope="module")
def locked(image: Callable[..., Image], hashed: Path) -> Image:
    return image("bookworm", rescue_password_file=hashed)


@pytest.mark.fault("row-4", "row-14", "A4")
def test_an_image_with_a_password(locked: Image, hashed: Path) -> None:
    member = locked.members[CONFIG_PATH]
    config = parse_config(member.data)
    assert (config.rescue, config.password) == ("password", hashed.read_text().strip())
    assert stat.S_IMODE(member.mode) == 0o600
    for path in access.FALLBACKS:
        assert archive.lookup(locked.members, path) is None, path
    shell = locked.members[config.shell]
    assert stat.S_IMODE(shell.mode) & 0o111
    assert locked.run(config.shell, "-c", "pyinit help; ls /").count("init") > 1


def test_the_targets_own_library_checks_the_password(locked: Image, hashed: Path) -> None:
    config = parse_config(locked.members[CONFIG_PATH].data)
    check = (
        "from pyinit.rescue.password import _is_right as right; import sys; "
        "print([right(bytearray(word.encode()), *sys.argv[1:3]) for word in sys.argv[3:]])"
    )
    words = ("correct horse", "correct hors", "")
    said = locked.run("/usr/bin/python3", "-c", check, config.password, config.libraries["crypt"], *words)
    assert said == "[True, False, False]\n"


@pytest.mark.parametrize("rescue", ["none", "password"])
def test_a_shell_may_not_come_in_by_another_way(rescue: str, locked: Image, hashed: Path) -> None:
    spec = BuildSpec(
        sysroot=locked.debian.tree,
        kernel_version=locked.debian.release,
        mode="list",
        compress="none",
        cache=LAYERS,
        rescue=rescue,
        rescue_password_file=hashed,
        includes=((b"#!/usr/bin/python3\n", "/sbin/init"),),
    )
    with pytest.raises(BuildError, match="/sbin/init may not be in the image"):
        build(spec)


def pyinit_image(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyinit_image.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_password_is_hashed_and_built_in_by_command(locked: Image, tmp_path: Path) -> None:
    made = pyinit_image("hash-password", stdin="größe\n")
    assert made.returncode == 0 and "US keyboard" in made.stderr
    (tmp_path / "rescue.hash").write_text(made.stdout)
    assert crypt("libcrypt.so.1", bytearray("größe".encode()), made.stdout.strip().encode()) == (
        made.stdout.strip().encode()
    )
    assert pyinit_image("hash-password", stdin="\n").returncode == 1
    arguments = ["build", "-o", tmp_path / "image", "--sysroot", locked.debian.tree, "--mode", "list"]
    arguments += ["--module", "ext4", "--compress", "none", "--cache", LAYERS]
    built = pyinit_image(*arguments, "--rescue-password-file", tmp_path / "rescue.hash")
    assert built.returncode == 0, built.stderr
    assert "rescue password: a password was given\n" in built.stdout
    members = archive.tree(archive.read((tmp_path / "image").read_bytes()))
    assert json.loads(members[CONFIG_PATH].data)["password"] == made.stdout.strip()
    without = pyinit_image(*arguments, "--rescue", "password")
    assert without.returncode == 1 and "--rescue-password-file" in without.stderr


@pytest.mark.fault("row-8")
@pytest.mark.parametrize("umask", [0, 0o077])
def test_an_image_is_for_its_owner_alone(umask: int, locked: Image, hashed: Path, tmp_path: Path) -> None:
    """Whatever the umask, and in the place of one that everybody could read."""
    image = tmp_path / "image"
    image.write_bytes(b"an older image")
    image.chmod(0o644)
    before = os.umask(umask)
    try:
        for output in ("image", "list"):
            spec = BuildSpec(
                output=tmp_path / ("image" if output == "image" else "list"),
                sysroot=locked.debian.tree,
                kernel_version=locked.debian.release,
                mode="list",
                format=output,
                compress="none",
                cache=LAYERS,
                rescue_password_file=hashed,
            )
            build(spec)
    finally:
        os.umask(before)
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "list").stat().st_mode) == 0o700
