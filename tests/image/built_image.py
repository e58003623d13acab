"""An image under test, unpacked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyinit_image import archive, cpio
from pyinit_qemu.debian import DebianRoot

#: Enough for an ext4 root on a virtio disk.
MODULES = ("ext4", "virtio_blk", "virtio_pci")


class Image:
    """An image and the system it was built from."""

    def __init__(self, debian: DebianRoot, path: Path, tree: Path) -> None:
        self.debian = debian
        self.path = path
        self.tree = tree
        """The image, unpacked."""
        self.members: dict[str, cpio.Member] = archive.tree(archive.read(path.read_bytes()))
        archive.extract(self.members, tree)

    def run(self, *command: str) -> str:
        """The output of a command that runs with the unpacked image as its root."""
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", f"--root={self.tree}", "--wd=/", *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONHOME": "/usr",
                "PYTHONPATH": "/usr/lib/pyinit",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
