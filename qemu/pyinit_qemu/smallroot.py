"""A small root file system whose init is the witness: boots in seconds and tells what it was handed.

It is made from a system's tree, mostly a Debian's, with that system's own python3, and laid out as Debian
lays out a root (merged /usr, ``/sbin/init`` an absolute link), so that whoever boots it meets what they meet
there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pyinit_image import trampoline
from pyinit_image.elf import Walker, closure
from pyinit_image.python import PYTHON, find
from pyinit_image.sysroot import Sysroot
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.cache import Cache, digest_file
from pyinit_qemu.disks.filesystems import Filesystem, Tree
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.disks.tools import Progress, silent

LABEL = "small-root"
WITNESS = Path(__file__).with_name("guest") / "witness.py"

_FOLDERS = "dev proc sys run tmp mnt root etc var usr/bin usr/sbin usr/lib usr/lib64 usr/lib/witness"
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run"}
_STDLIB_FOLDERS = ("collections", "encodings", "importlib", "json", "re")
_STDLIB_BINARIES = ("_json", "termios")

# The kernel's log has the time of a line to the microsecond; /proc/uptime is a clock of 10 ms. The line's
# text is /proc/stat's first, which says how long the CPU was idle for disks until now (pyinit_qemu.moments).
# At level 6 a quiet kernel does not show it.
#
# The signal state must be taken before the interpreter starts: it ignores SIGPIPE and SIGXFSZ and handles
# SIGINT. Only shell built-ins: a child would be a left-over process in its own report.
_START = """#!/bin/sh
read -r uptime rest < /proc/uptime
read -r times < /proc/stat
if [ -c /dev/kmsg ]; then echo "<6>witness: executed; $times" > /dev/kmsg; fi
signals=
while read -r line; do
    case $line in Sig*|Shd*) signals="$signals$line
";; esac
done < /proc/$$/status
exec {python} -S -s -P -B /usr/lib/witness/witness.py "$uptime" "$signals" "$@"
"""

# An init that is a script, as some systems have.
_SCRIPT = """#!/bin/sh
exec /usr/lib/witness/init "$@"
"""

_OS_RELEASE = 'ID=pyinit-small\nNAME="pyinit small root"\nPRETTY_NAME="pyinit small root"\n'


def small_root(debian: DebianRoot, *, progress: Progress = silent, cache: Cache | None = None) -> Tree:
    """The tree: python3 and a shell from ``debian``, the witness as init, about 30 MB.

    ``/sbin/init`` and ``/usr/lib/witness/init`` are the witness, ``/sbin/init-script`` is a script that ends
    in it.
    """
    recipe = {
        "source": debian.source.digest,
        "code": [digest_file(path) for path in (Path(__file__), WITNESS, Path(trampoline.__file__))],
    }

    def build(work: Path) -> None:
        progress(f"making the small root from Debian {debian.suite}")
        make_tree(work / "tree", Sysroot(debian.tree))

    folder = (cache or Cache()).entry("small-root", recipe, build, progress)
    return Tree(folder / "tree", digest=folder.name)


def small_image(
    debian: DebianRoot, filesystem: Callable[[Tree], Filesystem], *, name: str = LABEL, partuuid: str = ""
) -> Image:
    """A GPT disk with the small root as its only partition, in whatever ``filesystem(tree)`` makes of it."""
    part = Partition(filesystem(small_root(debian)), partuuid=partuuid, name=name, type=ROOT_X86_64)
    return Image(gpt=(part,))


def make_tree(root: Path, sysroot: Sysroot, *, programs: Sequence[str] = ()) -> None:
    """Fill the folder ``root``, which is made, from any system with python3 (3.11 or later) and ``/bin/sh``.

    ``programs`` of that system come along. Raises :class:`pyinit_image.errors.BuildError` when it lacks
    something.
    """
    interpreter = find(sysroot, Walker(sysroot))
    for folder in _FOLDERS.split():
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    for name, points_to in _LINKS.items():
        (root / name).symlink_to(points_to)

    library = interpreter.library
    binaries = [
        f"{library}/lib-dynload/{name}"
        for name in sysroot.list(f"{library}/lib-dynload")
        if name.partition(".")[0] in _STDLIB_BINARIES
    ]
    for item in closure(sysroot, [PYTHON, "/bin/sh", *binaries, *programs]):
        target = root / item.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.target is None:
            # Times are kept: byte code is only used when the time of its source is the one it remembers.
            shutil.copy2(sysroot.host(item.path), target)
        elif not os.path.lexists(target):
            target.symlink_to(item.target)
    _copy_stdlib(sysroot.host(library), root / library.lstrip("/"))

    environment = {**trampoline.ENVIRONMENT, "PYTHONPATH": ""}
    witness = root / "usr/lib/witness"
    _write(witness / "witness.py", WITNESS.read_bytes(), 0o644)
    _write(witness / "start", _START.format(python=interpreter.path).encode(), 0o755)
    words = ("/bin/sh", "/usr/lib/witness/start")
    _write(witness / "init", trampoline.assemble(words, environment, "witness: no /bin/sh\n"), 0o755)
    (root / "usr/sbin/init").symlink_to("/usr/lib/witness/init")
    _write(root / "usr/sbin/init-script", _SCRIPT.encode(), 0o755)
    _write(root / "usr/lib/os-release", _OS_RELEASE.encode(), 0o644)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    _write(root / "etc/fstab", b"", 0o644)


def _copy_stdlib(source: Path, target: Path) -> None:
    """The top-level modules and a few packages, with the byte code that Debian compiled."""
    (target / "__pycache__").mkdir(parents=True, exist_ok=True)
    for pattern in ("*.py", "__pycache__/*.pyc"):
        for path in source.glob(pattern):
            # Debian links sitecustomize.py to /etc, which is another system's here.
            if not path.is_symlink():
                shutil.copy2(path, target / path.relative_to(source))
    for name in _STDLIB_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)
