"""Equal inputs give equal bytes, whoever builds, wherever and however."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from built_image import MODULES

from pyinit_image.build import BuildSpec, build
from pyinit_qemu.debian import DebianRoot

#: Reads directories backwards in every process that finds it.
BACKWARDS = """
import os
listdir, walk = os.listdir, os.walk
os.listdir = lambda *arguments: sorted(listdir(*arguments), reverse=True)
"""

#: Two computers that have nothing in common but the builder: sh code that runs in their /etc.
HOSTS = {
    "one": """
        echo one > hostname
        echo 'UUID=1 / xfs defaults 0 1' > fstab
        echo 'options ext4 a=1' > modprobe.d/a.conf
        """,
    "other": """
        rm -rf fstab udev modprobe.d
        mkdir -p pyinit/hooks.d udev/rules.d
        echo 'cmdline = "quiet"' > pyinit/image.toml
        echo 'def mount(moment): pass' > pyinit/hooks.d/no.py
        echo 'KERNEL=="sda", RUN+="/bin/true"' > udev/rules.d/10-a.rules
        echo other > hostname
        """,
}

#: What the builder consists of.
PACKAGES = ("pyinit", "pyinit_image", "pyudev", "psutil", "elftools", "zstandard")
PACKAGES += ("lz4", "lzallright", "shtab")


def command(sysroot: Path | str, output: Path | str) -> list[str]:
    words = ["-m", "pyinit_image.cli", "build", "--no-cache", "--sysroot", str(sysroot), "-o", str(output)]
    return [*words, "--mode", "list", *(word for name in MODULES for word in ("--module", name))]


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def reference(debian: Callable[..., DebianRoot]) -> bytes:
    return build(BuildSpec(sysroot=debian("bookworm").tree, mode="list", modules=MODULES)).image


def started(
    arguments: list[str | Path], prefix: tuple[str, ...] = (), umask: int = 0o22, **environment: str
) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, *arguments],
        env={**os.environ, **environment},
        umask=umask,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_language_time_zone_and_habits(bookworm: DebianRoot, tmp_path: Path, reference: bytes) -> None:
    started(
        [*command(bookworm.tree, tmp_path / "image")],
        umask=0o077,
        LC_ALL="tr_TR.UTF-8",
        LANG="xx",
        TZ="Pacific/Kiritimati",
        HOME="/nonexistent",
        PYTHONHASHSEED="77",
        PYTHONUTF8="0",
        TMPDIR=str(tmp_path),
    )
    assert (tmp_path / "image").read_bytes() == reference


def test_one_processor(bookworm: DebianRoot, tmp_path: Path, reference: bytes) -> None:
    started([*command(bookworm.tree, tmp_path / "image")], ("taskset", "--cpu-list", "0"))
    assert (tmp_path / "image").read_bytes() == reference


def test_directories_in_another_order(bookworm: DebianRoot, tmp_path: Path, reference: bytes) -> None:
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    started([*command(bookworm.tree, tmp_path / "image")], PYTHONPATH=str(tmp_path))
    assert (tmp_path / "image").read_bytes() == reference


def test_another_name_of_the_system_and_another_clock(
    bookworm: DebianRoot, tmp_path: Path, reference: bytes
) -> None:
    (tmp_path / "link").symlink_to(bookworm.tree)
    # A clock that started somewhere else (time_namespaces(7)), and files that look newer.
    prefix = ("unshare", "--user", "--map-root-user", "--time", "--boottime", "86400", "--monotonic", "86400")
    started([*command(tmp_path / "link", tmp_path / "image")], prefix)
    assert (tmp_path / "image").read_bytes() == reference


def test_a_user_without_rights(bookworm: DebianRoot, tmp_path: Path, reference: bytes) -> None:
    """Whoever can read the inputs can build: here a user who owns nothing but the output's directory."""
    if os.geteuid() != 0:
        pytest.skip("is a user without rights already")
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 65534, 65534)
    script = f"""set -e
mount -t tmpfs -o mode=755 none /mnt
mkdir /mnt/system /mnt/out /mnt/site
for package; do
    mkdir "/mnt/site/$(basename "$package")"
    mount --bind "$package" "/mnt/site/$(basename "$package")"
done
mount --bind "{bookworm.tree}" /mnt/system
mount --bind "{tmp_path}/out" /mnt/out
exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all python3 """
    script += " ".join(command("/mnt/system", "/mnt/out/image"))
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *map(package, PACKAGES)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": "/mnt/site"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "image").read_bytes() == reference


@pytest.mark.parametrize("name", HOSTS)
def test_nothing_of_the_building_machine_leaks_in(
    bookworm: DebianRoot, tmp_path: Path, reference: bytes, name: str
) -> None:
    """The same system, built in a chroot on a computer with other settings, tools and devices."""
    script = f"""set -e
cd "{tmp_path}"
mkdir over work host out
mount -t tmpfs none work
mkdir work/upper work/work work/etc
mount -t overlay none -o "lowerdir={bookworm.tree},upperdir=$PWD/work/upper,workdir=$PWD/work/work" host
cd host/etc
{HOSTS[name]}
cd ../..
mkdir -p host/opt/site host/opt/target host/opt/out
for package; do
    place="host/opt/site/$(basename "$package")"
    mkdir "$place"
    mount --bind "$package" "$place"
done
mount --bind "{bookworm.tree}" host/opt/target
mount --bind out host/opt/out
exec chroot host /usr/bin/env -i PATH=/usr/bin:/bin PYTHONPATH=/opt/site /usr/bin/python3 """
    script += " ".join(command("/opt/target", "/opt/out/image"))
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *map(package, PACKAGES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "image").read_bytes() == reference
