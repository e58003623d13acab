"""Running the host's disk tools: one gateway, so that failures read the same and no child is left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

Progress = Callable[[str], None]

# Debian installs mkfs and friends outside the search path of a normal user.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PACKAGES = {
    "btrfs": "btrfs-progs",
    "depmod": "kmod",
    "fakeroot": "fakeroot",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.f2fs": "f2fs-tools",
    "mkfs.vfat": "dosfstools",
    "mkfs.xfs": "xfsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "sload.f2fs": "f2fs-tools",
    "xfs_db": "xfsprogs",
}
"""The Debian package of every tool that is started from here."""


def silent(_message: str) -> None:
    """The progress callback of those who do not want to know."""


def terminal_progress() -> Progress:
    """One that writes each message over the last, where standard error is a terminal."""
    if not sys.stderr.isatty():
        return silent
    return lambda message: print(f"\r\033[K{message[:100]}", end="\r", file=sys.stderr, flush=True)


class ToolError(Exception):
    """A tool is missing or failed. The text names the command, its exit status and the end of its output."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def find(name: str) -> str:
    """Absolute path of a tool; :class:`ToolError` says which package has it."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        package = PACKAGES.get(name, name)
        raise ToolError(f"{name} is not installed; try: apt-get install {package}")
    return path


@cache
def version(name: str) -> str:
    """What the tool says about its version: part of every cache key, because tools change their output."""
    flag = {
        "mke2fs": "-V",
        "mkfs.f2fs": "-V",
        "mkfs.vfat": "--help",
        "mkfs.xfs": "-V",
        "mksquashfs": "-version",
    }.get(name, "--version")
    result = subprocess.run(
        [find(name), flag],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return result.stdout.partition("\n")[0].strip()


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    owners: bool = False,
    contained: bool = False,
    line: Progress = silent,
) -> str:
    """Run a tool to its end and return everything it wrote; ``line`` sees each line as it comes.

    ``owners`` says that the tool copies file owners: for a normal user it then runs under fakeroot, which
    shows the user's own files as root's. ``contained`` (root only) gives it namespaces of its own, so that
    neither its mounts nor its daemons outlive it; where the kernel refuses that it runs without. An exception
    here (an interrupt, say) ends the tool and all it started.
    """
    words = [str(word) for word in argv]
    words[0] = find(words[0])
    prefix: list[str] = []
    if owners and os.geteuid() != 0:
        prefix = [find("fakeroot"), "--"]
    ending = "TERM"
    if contained and _can_contain():
        prefix = [*_CONTAINER, *prefix]
        ending = "KILL"  # unshare(1) blocks SIGTERM
    # Not even SIGKILL for this process leaves the tool running.
    prefix = [find("setpriv"), "--pdeathsig", ending, "--", *prefix]
    process = subprocess.Popen(
        [*prefix, *words],
        cwd=cwd,
        env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        with process.stdout:
            for text in process.stdout:
                lines.append(text)
                line(text.rstrip("\n"))
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    output = "".join(lines)
    if status != 0:
        how = f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
        tail = "".join(f"\n    {text.rstrip()}" for text in lines[-12:])
        raise ToolError(f"{Path(words[0]).name} failed with {how}: {shlex.join(words)}{tail}", output)
    return output


# The death of unshare(1) kills the first process of the new namespace, and so all of them.
_CONTAINER = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--")


@cache
def _can_contain() -> bool:
    result = subprocess.run([*_CONTAINER, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return result.returncode == 0


def _end(process: subprocess.Popen[str]) -> None:
    """End the process group; the tool gets time to remove what it has made."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            continue
