"""Images that other programs make for the same kernel, to be compared with ours.

The programs run inside a Debian of their own in the cache (:func:`workshop`), entered through namespaces:
nothing of the host is read, written or mounted by them. It works as root and as a normal user.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinit_qemu.debian import BASE_OPTIONS, DebianRoot, ProvisionError, Suite, host_mirror, install
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.tools import Progress, ToolError, run, silent
from pyinit_qemu.kernels import FetchedKernel

MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""The drivers that images with a list of modules are given: an ext4 root on a virtio disk."""

# What the programs copy from is there as on an installed system: systemd and udev, busybox (which Debian
# installs along with initramfs-tools), fsck. The kernel comes from the system that is booted.
_PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "login",
    "util-linux",
    "e2fsprogs",
    "iproute2",
    "zstd",
    "busybox",
    "initramfs-tools",
    "dracut-core",
    "tiny-initramfs-core",
)

# All mounts are in a mount namespace of their own and end with it. dracut reads /proc/self/fd; of the host's
# devices there are only those that hold nothing.
_ENTER = """set -e
tree=$1 work=$2 modules=$3 boot=$4
shift 4
mount -t tmpfs -o mode=755 none "$tree/dev"
for name in null zero full random urandom; do
    : > "$tree/dev/$name"
    mount --bind "/dev/$name" "$tree/dev/$name"
done
ln -s /proc/self/fd "$tree/dev/fd"
mount -t proc none "$tree/proc"
mount -t tmpfs none "$tree/run"
mount -t tmpfs none "$tree/tmp"
mount --bind "$work" "$tree/var/tmp"
mount --bind "$modules" "$tree/usr/lib/modules"
mount --bind "$boot" "$tree/boot"
cd "$tree"
exec chroot "$tree" "$@"
"""


@dataclass(frozen=True)
class Peer:
    """A way to make an image."""

    name: str
    script: str
    """Shell commands that write /var/tmp/initrd.img for the kernel release ``$1``; the rest are modules."""
    words: str = ""
    """Of the kernel command line: what makes the image do the same work as the others."""


# The commands are their manuals' own. Compression is zstd for all: initramfs-tools' default; dracut's would
# be gzip, with which its images take longer to unpack.
PEERS = (
    Peer(
        "initramfs-tools list",
        """release=$1; shift
cp -a /etc/initramfs-tools /var/tmp/configuration
echo MODULES=list >> /var/tmp/configuration/initramfs.conf
printf '%s\\n' "$@" > /var/tmp/configuration/modules
mkinitramfs -d /var/tmp/configuration -o /var/tmp/initrd.img "$release"
""",
    ),
    Peer("initramfs-tools most", 'mkinitramfs -o /var/tmp/initrd.img "$1"\n'),
    Peer(
        "dracut minimal",
        """release=$1; shift
dracut --no-hostonly --zstd --modules "base udev-rules kernel-modules fs-lib rootfs-block" \\
    --drivers "$*" /var/tmp/initrd.img "$release"
""",
        "rd.skipfsck",
    ),
    # No udev, no shell and no search for drivers: it loads the given modules and mounts root.
    Peer(
        "tiny-initramfs list",
        """release=$1; shift
mktirfs --auto-modules=no --microcode=no --include-modules="$(echo "$@" | tr ' ' ,)" \\
    -o /var/tmp/initrd.img "$release"
""",
    ),
    Peer("dracut generic", 'dracut --no-hostonly --zstd /var/tmp/initrd.img "$1"\n', "rd.skipfsck"),
)


@dataclass(frozen=True)
class Workshop:
    """A Debian with the peers' programs. Nothing may write to it."""

    tree: Path

    def make(
        self,
        peer: Peer,
        debian: DebianRoot | FetchedKernel,
        work: Path,
        progress: Progress = silent,
        modules: Sequence[str] = MODULES,
    ) -> Path:
        """Make an image for the kernel of ``debian`` in the empty folder ``work``; return its path.

        ``modules`` are those of an image with a list. Raises :class:`ToolError` when the program, or the way
        into the namespaces, fails.
        """
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        words: list[str | Path] = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child=KILL", "--"]
        words += ["sh", "-c", _ENTER, "enter", self.tree, work]
        words += [debian.tree / "usr/lib/modules", debian.tree / "boot"]
        words += ["/bin/sh", "-ec", peer.script, "make", debian.release, *modules]
        try:
            output = run(words, contained=os.geteuid() == 0, line=progress)
        except ToolError as error:
            tail = "".join(f"\n    {line}" for line in error.output.splitlines()[-12:])
            raise ToolError(f"{peer.name}: no image could be made; last said:{tail}", error.output) from error
        image = work / "initrd.img"
        try:
            size = image.stat().st_size
        except FileNotFoundError:
            size = 0
        if size == 0:
            raise ToolError(f"{peer.name}: ended without an image; it said:\n{output}", output)
        return image

    def image(
        self,
        peer: Peer,
        debian: DebianRoot | FetchedKernel,
        *,
        progress: Progress = silent,
        cache: Cache | None = None,
        modules: Sequence[str] = MODULES,
    ) -> Path:
        """The peer's image for the kernel of ``debian``, made once and kept. Errors as :meth:`make`."""
        recipe = {
            "workshop": self.tree.parent.name,
            "debian": debian.tree.parent.name,
            "script": [_ENTER, peer.script, *modules],
        }

        def build(folder: Path) -> None:
            progress(f"{peer.name}: making the image")
            with tempfile.TemporaryDirectory(prefix="pyinit-peer-", dir=folder.parent) as work:
                self.make(peer, debian, Path(work), modules=modules).rename(folder / "initrd.img")

        return (cache or Cache()).entry("peer", recipe, build, progress) / "initrd.img"

    def versions(self, names: Collection[str]) -> dict[str, str]:
        """Versions of installed packages."""
        return installed_versions(self.tree, names)


def workshop(
    suite: Suite,
    *,
    packages: Sequence[str] = (),
    progress: Progress = silent,
    cache: Cache | None = None,
) -> Workshop:
    """The Debian of this suite with the peers' programs; some minutes the first time.

    ``packages`` are further ones, in a Debian of their own: programs that are there get into images. Raises
    what :func:`pyinit_qemu.debian.provision` raises.
    """
    mirror = host_mirror()
    options = (*BASE_OPTIONS, f"--include={','.join((*_PACKAGES, *packages))}")
    recipe = {"suite": suite, "mirror": mirror, "options": options, "owner": os.geteuid() == 0, "format": 1}

    def build(work: Path) -> None:
        install(work, suite, mirror, options, progress)
        for mount_point in ("dev", "proc", "run", "tmp", "var/tmp", "boot", "usr/lib/modules"):
            (work / "tree" / mount_point).mkdir(parents=True, exist_ok=True)
        (work / "root.tar.zst").unlink(missing_ok=True)

    tree = (cache or Cache()).entry("workshop", recipe, build, progress) / "tree"
    if not (tree / "usr/bin/dracut").exists() or not (tree / "usr/sbin/mkinitramfs").exists():
        raise ProvisionError(f"{tree} lacks dracut or mkinitramfs; remove {tree.parent} and try again")
    return Workshop(tree)


def installed_versions(tree: Path, names: Collection[str]) -> dict[str, str]:
    """Package to version, of those packages that are installed in a Debian tree."""
    versions = parse_versions((tree / "var/lib/dpkg/status").read_text("utf-8", "replace"))
    return {name: versions[name] for name in names if name in versions}


def parse_versions(status: str) -> Mapping[str, str]:
    """Package to version from dpkg's status file (deb-control(5) paragraphs); only what is installed."""
    found = {}
    for paragraph in re.split(r"\n[ \t]*\n", status):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*?)[ \t]*$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields and "Version" in fields:
            found[fields["Package"]] = fields["Version"]
    return found
