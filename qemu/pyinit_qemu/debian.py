"""Stock Debian systems for virtual machines: a tree, its kernel, and disks made from it.

:func:`provision` asks mmdebstrap for a small but otherwise unmodified Debian (systemd, udev, a login prompt)
and keeps it in the cache folder. It works as root and as a normal user, and touches nothing else on the host.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.filesystems import FILESYSTEMS, Tree
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.disks.tools import Progress, ToolError, run, silent

Suite = Literal["bookworm", "trixie", "sid"]
SUITES: tuple[Suite, ...] = get_args(Suite)

HOSTNAME = "pyinit-debian"
LABEL = "debian-root"
DEFAULT_MIRROR = "http://deb.debian.org/debian"

_PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "python3",
    "linux-image-amd64",
    "login",
    "util-linux",
    "e2fsprogs",
    "iproute2",
    "initramfs-tools",
    "zstd",
)

# What an installer would have decided: a name, the root file system by label, a machine id (so that systemd
# does not take every start for the first one and ask questions), and a root account that the login prompt
# accepts.
_CUSTOMIZE = f"""set -e
echo {HOSTNAME} > "$1/etc/hostname"
echo 'LABEL={LABEL} / auto defaults 0 1' > "$1/etc/fstab"
echo 6e1f4ad6c2b14bd0a7a1f2b6d1c0ffee > "$1/etc/machine-id"
sed -i 's/^root:[^:]*:/root::/' "$1/etc/shadow"
rm -f "$1/etc/resolv.conf"
"""

BASE_OPTIONS = (
    "--variant=minbase",
    "--components=main",
    "--architectures=amd64",
    # The archive's snapshot that a mirror serves may be older than its own expiry date.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Retries "3"',
    '--aptopt=Acquire::http::Timeout "60"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
"""mmdebstrap's options for a small Debian of any kind."""

STORAGE = ("btrfs-progs", "cryptsetup-bin", "lvm2", "mdadm", "thin-provisioning-tools", "xfsprogs")
"""Packages with the tools of file systems, volumes and arrays that a Debian does not have by itself."""


def _options(packages: Sequence[str]) -> tuple[str, ...]:
    return (
        *BASE_OPTIONS,
        f"--include={','.join((*_PACKAGES, *packages))}",
        # That step would empty the machine id again.
        "--skip=cleanup/reproducible",
        f"--customize-hook={_CUSTOMIZE}",
    )


_ARCHIVE_TROUBLE = re.compile(
    r"Unable to locate package|unmet dependencies|held broken packages|no installation candidate"
    r"|Failed to fetch|Could(n't| not) resolve|Could not connect|Connection (failed|timed out|refused)"
    r"|does not have a Release file|Hash Sum mismatch|is not signed|Release file .* expired|NO_PUBKEY"
    r"|dpkg: error processing"
)


class ProvisionError(Exception):
    """A Debian system could not be made, for a reason on this machine."""


class ArchiveError(ProvisionError):
    """The Debian archive did not deliver: unreachable, or the suite cannot be installed today."""


@dataclass(frozen=True)
class DebianRoot:
    """An installed Debian system in the cache. Nothing may write to it."""

    suite: Suite
    tree: Path
    """The root directory. For a normal user all files are their own; owners are right on the disks."""
    kernel: Path
    release: str
    """The kernel's release, as ``uname -r`` prints it."""
    initrd_debian: Path
    """The initramfs that the system's own initramfs-tools made when the kernel was installed."""

    @property
    def source(self) -> Tree:
        """The tree as disks are made from it, with its owners."""
        archive = self.tree.with_name("root.tar.zst")
        return Tree(self.tree, archive=archive if archive.exists() else None, digest=self.tree.parent.name)

    def disk(self, fstype: str = "ext4", *, progress: Progress = silent) -> Path:
        """A raw image: GPT, one root partition whose label and partition name are ``debian-root``.

        Read-only.
        """
        return Image(
            gpt=(
                Partition(
                    FILESYSTEMS[fstype](self.source, label=LABEL, uuid=self.id("fs"), free=1 << 30),
                    partuuid=self.id("partition"),
                    name=LABEL,
                    type=ROOT_X86_64,
                ),
            ),
            disk_uuid=self.id("disk"),
        ).build(progress=progress)

    def id(self, what: Literal["fs", "partition", "disk"]) -> str:
        """The UUID of the file system, the partition or the disk of :meth:`disk`."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{what}.{self.suite}.{HOSTNAME}"))


def provision(
    suite: Suite,
    *,
    packages: Sequence[str] = (),
    progress: Progress = silent,
    cache: Cache | None = None,
) -> DebianRoot:
    """The Debian system of this suite; takes one to three minutes and 200 MB of download the first time.

    ``packages`` are installed beside the usual ones: that makes another system. Raises :class:`ArchiveError`
    when Debian's archive is the reason of a failure, :class:`ProvisionError` otherwise.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown Debian suite {suite!r}; known: {', '.join(SUITES)}")
    mirror, options = host_mirror(), _options(packages)
    recipe = {"suite": suite, "mirror": mirror, "options": options, "owner": os.geteuid() == 0, "format": 1}
    folder = (cache or Cache()).entry(
        "debian", recipe, lambda work: install(work, suite, mirror, options, progress), progress
    )
    tree = folder / "tree"
    kernels = sorted(tree.glob("boot/vmlinuz-*"))
    if len(kernels) != 1:
        raise ProvisionError(
            f"{tree}/boot has {len(kernels)} kernels instead of one; remove {folder} and try again"
        )
    release = kernels[0].name.removeprefix("vmlinuz-")
    return DebianRoot(suite, tree, kernels[0], release, tree / "boot" / f"initrd.img-{release}")


def host_mirror(apt: Path = Path("/etc/apt")) -> str:
    """The Debian mirror that the host itself uses, else deb.debian.org."""
    words: list[str] = []
    for path in sorted(
        [apt / "sources.list", *apt.glob("sources.list.d/*.list"), *apt.glob("sources.list.d/*.sources")]
    ):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if re.match(r"\s*(deb|URIs:)\s", line):
                words += line.split()
    for word in words:
        if re.fullmatch(r"https?://[^\s\"'$]+/debian/?", word):
            return word.rstrip("/")
    return DEFAULT_MIRROR


def install(work: Path, suite: str, mirror: str, options: Sequence[str], progress: Progress) -> None:
    """Install a Debian into ``work/tree``; ``options`` are those of mmdebstrap. Errors as :func:`provision`.

    For a normal user ``work/root.tar.zst`` has the owners and the device nodes that the tree cannot have.
    """
    root = os.geteuid() == 0
    archive = work / "root.tar.zst"
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {
        name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ
    }
    # In a user namespace the installer is neither this user nor root: it cannot enter a private home
    # directory.
    environment["TMPDIR"] = str(scratch) if root else "/var/tmp"

    def line(text: str) -> None:
        if text.startswith("I: "):
            hook = text.startswith("I: running --customize-hook")
            progress("setting up its account, host name and fstab" if hook else text[3:].rstrip("."))

    try:
        run(
            ["mmdebstrap", f"--mode={'root' if root else 'unshare'}", *options, suite, archive, mirror],
            env=environment,
            contained=root,
            line=line,
        )
        progress("unpacking")
        (work / "tree").mkdir()
        how = ["--same-owner", "--numeric-owner"] if root else ["--no-same-owner", "--exclude=./dev/*"]
        run(
            [
                "tar",
                "--extract",
                "--preserve-permissions",
                *how,
                "--file",
                archive,
                "--directory",
                work / "tree",
            ]
        )
    except ToolError as error:
        if _ARCHIVE_TROUBLE.search(error.output):
            raise ArchiveError(f"Debian {suite} cannot be installed from {mirror} now.\n{error}") from error
        raise ProvisionError(f"Debian {suite} could not be installed.\n{error}") from error
    shutil.rmtree(scratch)
    if root:
        archive.unlink()
    else:
        run(["chmod", "--recursive", "u+rwX", work / "tree"])
