"""The examples of docs/extending.md: a feature of another package and a boot hook, built in and booted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MODULES = ("virtio_pci", "virtio_blk", "ext4")
HOOKS = "/usr/lib/pyinit/pyinit_hooks"

# Beside the example: one that fails when it is told to, with what a terminal must not be sent.
MISHAP = """
import bisect


def pre_mount(moment):
    if moment.command_line.last("site.mishap"):
        _fail(moment.root.node)


def _fail(node):
    raise ValueError(f"cannot use {node}\\x1b[31m")
"""


@pytest.fixture(scope="module")
def extended(bookworm: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with the example feature, installed as pip would, and the example hook."""
    folder = tmp_path_factory.mktemp("extended")
    project = tomllib.loads((EXAMPLES / "feature-findmnt/pyproject.toml").read_text())["project"]
    information = folder / "packages" / "pyinit_feature_findmnt-1.0.dist-info"
    information.mkdir(parents=True)
    lines = [
        f"[{group}]\n{name} = {value}\n"
        for group, names in project["entry-points"].items()
        for name, value in names.items()
    ]
    (information / "entry_points.txt").write_text("".join(lines))
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    shutil.copy(EXAMPLES / "feature-findmnt/pyinit_feature_findmnt.py", folder / "packages")
    (folder / "60-mishap.py").write_text(MISHAP)
    output = folder / "initrd.img"
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pyinit_image.cli",
                "build",
                "--no-cache",
                "-o",
                output,
                "--sysroot",
                bookworm.tree,
            ),
            *("--kernel-version", bookworm.release, "--mode", "list"),
            *(word for name in MODULES for word in ("--module", name)),
            *("--hook", EXAMPLES / "50-last-boot.py", "--hook", folder / "60-mishap.py"),
        ],
        env={**os.environ, "PYTHONPATH": str(folder / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return output


def test_example_hook_and_feature_do_what_they_say(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    extended: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    vm = boot(
        kernel=bookworm.kernel, initrd=extended, disks=(Disk(small_disk()),),
        append="quiet root=LABEL=small-root last-boot.require=/sbin/init rd.break=cleanup",
    )  # fmt: skip
    shell = Shell.rescue(vm, "cleanup")
    note = json.loads(shell.check("cat /run/last-boot.json"))
    assert note["device"] == "/dev/vda1"
    assert {"etc", "usr", "sbin"} <= set(note["names"])
    assert shell.check("findmnt --noheadings --output SOURCE /sysroot") == "/dev/vda1"
    shell.leave()
    seen = witness_of(vm)
    assert "/run/last-boot.json" in seen.run
    assert seen.boot is not None
    messages = [message["text"] for message in seen.boot["messages"]]
    assert messages.count("hook 50-last-boot: wrote /run/last-boot.json") == 1


def test_a_failing_hook_is_explained_corrected_and_called_again(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    extended: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    vm = boot(
        kernel=bookworm.kernel, initrd=extended, disks=(Disk(small_disk()),), allow=("banner",),
        append="quiet root=LABEL=small-root site.mishap=1 last-boot.require=/none",
    )  # fmt: skip
    shell = Shell.rescue(vm, "pre-mount")
    expect_screen(vm, "E-HOOK")
    # The file is corrected, and what it says now is what is called.
    shell.check(f"echo 'def pre_mount(moment): moment.warn(\"mended\")' > {HOOKS}/60-mishap.py")
    shell.leave()
    # The next hook: its cause is on the command line.
    shell = Shell.rescue(vm, "pre-pivot")
    assert "pyinit: warning: hook 60-mishap: mended" in vm.console
    assert "E-HOOK hook 50-last-boot failed: FileNotFoundError: the root has no /none" in shell.check(
        "pyinit explain"
    )
    shell.check("pyinit set last-boot.require=/etc")
    shell.leave()
    seen = witness_of(vm)
    assert "/run/last-boot.json" in seen.run
    assert seen.boot is not None
    outcomes = [
        stage["outcome"] for stage in seen.boot["stages"] if stage["name"] in ("pre-mount", "pre-pivot")
    ]
    assert outcomes == ["E-HOOK", "done", "E-HOOK", "done", "done"]
