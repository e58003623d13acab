"""What scripts/boot and scripts/test share: Debian packages, a Python environment in .venv, progress.

Standard library only: this runs with whatever python3 (3.11 or later) is there before anything is installed.
Everything may be interrupted at any moment and run again. Outside the repository and the cache folder nothing
but Debian packages is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".complete"
PYPROJECT = ROOT / "pyproject.toml"

PACKAGES = {
    "qemu-system-x86": "the virtual machine",
    "mmdebstrap": "makes the Debian that is booted",
    "debian-archive-keyring": "verifies it",
    "gpgv": "verifies the archive that kernels are fetched from",
    "e2fsprogs": "makes ext4 disks",
    "xfsprogs": "makes xfs disks",
    "cpio": "reads archives as others do, in tests",
    "btrfs-progs": "makes btrfs disks",
    "squashfs-tools": "makes squashfs disks",
    "dosfstools": "makes vfat disks",
    "mtools": "fills them",
    "f2fs-tools": "makes f2fs disks",
    "erofs-utils": "makes erofs disks",
    "swtpm": "a TPM for virtual machines",
    "ovmf": "UEFI for virtual machines",
    "zstd": "compresses images",
    "gcc": "compiles the init of a test",
    "libc6-dev": "likewise",
    "kmod": "what the order of modules is compared with",
    "python3-venv": "the Python environment in .venv",
}
USER_PACKAGES = {
    "fakeroot": "file owners on disks that a normal user makes",
    "uidmap": "lets a normal user make a Debian",
}


class SetupError(Exception):
    """Something cannot be set up; the text says what and what to do."""


class Progress:
    """One task on the terminal: its name, what it does just now, how long it has taken.

    On a terminal it is one line that is written over, and nothing remains of a task of less than two seconds;
    elsewhere a line at the start, and one for a change when the last was more than two seconds ago.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._detail = ""
        self._start = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> Progress:
        if self._terminal:
            self._thread.start()
        else:
            self._line(self._title)
        return self

    def __call__(self, detail: str) -> None:
        """Say what is being done now."""
        self._detail = detail.strip()
        if not self._terminal and time.monotonic() - self._told > 2:
            self._line(f"{self._title}: {self._detail} ({self._elapsed()})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._terminal:
            self._thread.join()
            sys.stderr.write("\r\033[K")
        if kind is not None:
            self._line(f"{self._title}: {'interrupted' if kind is KeyboardInterrupt else 'failed'}")
        elif time.monotonic() - self._start > 2:
            self._line(f"{self._title}: done ({self._elapsed()})")

    def _spin(self) -> None:
        while not self._stop.wait(0.2):
            width = shutil.get_terminal_size().columns - 1
            mark = "|/-\\"[int(time.monotonic() * 5) % 4]
            text = f"{mark} {self._title} {self._elapsed()}  {self._detail}"
            sys.stderr.write(f"\r\033[K{text[:width]}")
            sys.stderr.flush()

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._start:.0f} s"

    def _line(self, text: str) -> None:
        self._told = time.monotonic()
        print(f"- {text}", file=sys.stderr, flush=True)


def main(script: Callable[[list[str]], int]) -> NoReturn:
    """Run a script in the environment it needs: the first time this sets all of it up.

    Interrupts and termination end it with the status that a shell expects, without a traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if any(word in ("-h", "--help") for word in sys.argv[1:]) or _in_environment():
            status = script(sys.argv[1:])
        else:
            install_packages(PACKAGES if os.geteuid() == 0 else {**PACKAGES, **USER_PACKAGES})
            _make_environment()
            python = str(VENV / "bin" / "python")
            os.execv(python, [python, *sys.argv])
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        status = 128 + signal.SIGINT
    except SetupError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _in_environment() -> bool:
    return Path(sys.prefix) == VENV and _stamped()


def _stamped() -> bool:
    try:
        return STAMP.read_text() == _requirements()
    except OSError:
        return False


def _requirements() -> str:
    """Changes whenever the environment must be made anew."""
    return hashlib.sha256(PYPROJECT.read_bytes() + str(ROOT).encode()).hexdigest() + "\n"


def install_packages(wanted: dict[str, str]) -> None:
    """Install those of these Debian packages that are missing; the values say what they are for.

    Raises :class:`SetupError`.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        if shutil.which("qemu-system-x86_64") is None or shutil.which("mmdebstrap") is None:
            raise SetupError(f"this is no Debian; install what corresponds to: {' '.join(wanted)}")
        return
    missing = {name: why for name, why in wanted.items() if name not in _installed(wanted)}
    if not missing:
        return
    print("These Debian packages are needed and will be installed:", file=sys.stderr)
    for name, why in missing.items():
        print(f"  {name:24} {why}", file=sys.stderr)
    become = _become_root(missing)
    if subprocess.run(["dpkg", "--audit"], stdout=subprocess.PIPE, check=False).stdout:
        # An installation was interrupted: apt refuses everything before this is done.
        _run("finishing an interrupted installation", [*become, "dpkg", "--configure", "-a"])
    apt = [*become, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]
    try:
        _run("reading Debian's package lists", [*apt, "update"])
    except SetupError as error:
        # One source of several may be out of reach; whether that matters shows at once.
        print(error, file=sys.stderr)
    # Recommended packages are left out: they are what would bring services.
    _run(
        "installing Debian packages",
        [*apt, "install", "--yes", "--no-install-recommends", *missing],
    )
    if still := set(missing) - _installed(missing):
        raise SetupError(f"apt-get did not install {' '.join(sorted(still))}")


def _installed(names: Sequence[str] | dict[str, str]) -> set[str]:
    result = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    pairs = (line.split() for line in result.stdout.splitlines())
    return {name for name, status in pairs if status == "installed"}


def _become_root(missing: dict[str, str]) -> list[str]:
    """The words before a command that root must run."""
    environment = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
    if os.geteuid() == 0:
        return environment
    if shutil.which("sudo") is None:
        raise SetupError(f"as root, run: apt-get install --no-install-recommends {' '.join(missing)}")
    ask = ["sudo"] if sys.stdin.isatty() else ["sudo", "--non-interactive"]
    if subprocess.run([*ask, "--validate"], check=False).returncode != 0:
        raise SetupError(
            f"sudo refuses; as root, run: apt-get install --no-install-recommends {' '.join(missing)}"
        )
    return [*ask, *environment]


def _make_environment() -> None:
    # A lock on a file that exists anyway: two scripts that are started at once set up one after the other.
    with PYPROJECT.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _stamped():
            return
        python = VENV / "bin" / "python"
        STAMP.unlink(missing_ok=True)
        if not _works([str(python), "-m", "pip", "--version"]):
            shutil.rmtree(VENV, ignore_errors=True)
            _run("making a Python environment in .venv", [_interpreter(), "-m", "venv", str(VENV)])
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        _run("installing Python packages into .venv", [*pip, "--editable", f"{ROOT}[dev]"])
        temporary = STAMP.with_name(".complete.new")
        temporary.write_text(_requirements())
        temporary.rename(STAMP)


def _interpreter() -> str:
    """A python3 of at least 3.11, the system's first: others may lack what venv needs."""
    for python in ("/usr/bin/python3", sys.executable):
        if _works([python, "-c", "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"]):
            return python
    raise SetupError("no python3 of version 3.11 or later with venv; Debian 12 and newer have it")


def _works(argv: list[str]) -> bool:
    try:
        return (
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def _run(title: str, argv: list[str]) -> None:
    """Run a command behind a progress line; its output is shown only when it fails."""
    with Progress(title) as progress:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                progress(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status != 0:
        raise SetupError(f"{title} failed (exit status {status}): {' '.join(argv)}\n{''.join(lines[-25:])}")
