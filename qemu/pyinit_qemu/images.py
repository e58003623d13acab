"""Our own images for Debian systems, built once for each set of inputs."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pyinit
import pyinit_image
from pyinit_image.build import BuildSpec, build
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.cache import Cache, digest_file, digest_tree
from pyinit_qemu.disks.tools import Progress, silent

# Options that name files, whose content counts.
_FILES = ("includes", "hooks", "rescue_password_file")
_FOREIGN = ("pyudev", "psutil", "pyelftools", "zstandard")


def initramfs(
    debian: DebianRoot, *, cache: Cache | None = None, progress: Progress = silent, **options: Any
) -> Path:
    """An image for this system; ``options`` are those of :class:`pyinit_image.build.BuildSpec`.

    It is built again when an option, the system, or any code of the builder or of PID 1 has changed.
    """
    cache = cache or Cache()
    spec = BuildSpec(
        sysroot=debian.tree, kernel_version=debian.release, cache=cache.root / "layers", **options
    )
    recipe = {
        "debian": debian.source.digest,
        "options": {name: value for name, value in options.items() if name not in _FILES},
        "includes": [(_digest(source), target) for source, target in spec.includes],
        "hooks": [(path.name, digest_file(path)) for path in spec.hooks],
        "password": spec.rescue_password_file and digest_file(spec.rescue_password_file),
        "code": [_digest_code(Path(package.__path__[0])) for package in (pyinit, pyinit_image)],
        "foreign": [(name, importlib.metadata.version(name)) for name in _FOREIGN],
    }

    def make(folder: Path) -> None:
        result = build(spec, progress)
        (folder / "initrd.img").write_bytes(result.image)

    return cache.entry("image", recipe, make, progress) / "initrd.img"


def _digest_code(package: Path) -> list[tuple[str, str]]:
    return [(str(path.relative_to(package)), digest_file(path)) for path in sorted(package.rglob("*.py"))]


def _digest(source: Path | str | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    path = Path(source)
    return digest_tree(path) if path.is_dir() else f"{digest_file(path)} {path.stat().st_mode:o}"
