"""The machine for figures of a stack: an ext4 on a logical volume in an encrypted device.

The key is in the image, so nobody types and the derivation of a key, which takes what it was told to take,
hardly counts. The images load the same drivers and use the same cryptsetup and lvm, those of Debian.
"""

from __future__ import annotations

from pathlib import Path

from pyinit_qemu.debian import STORAGE, DebianRoot, Suite, provision
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import luks, lvm
from pyinit_qemu.disks.tools import Progress, silent
from pyinit_qemu.images import initramfs
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.peers import MODULES, Peer, Workshop, workshop
from pyinit_qemu.reference import MEMORY
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.spec import Disk, VmSpec

UUID = "1c0de5ea-0000-4000-8000-0000000000be"
KEY = "/etc/keys/root.key"
SECRET = "not a secret"
OURS = "pyinit list"
WORDS = "quiet ro fsck.mode=skip root=/dev/vg/root"
_PACKAGES = ("cryptsetup-initramfs", "lvm2", "thin-provisioning-tools")
# What XTS of AES needs, and the sum with which the header is checked.
_CIPHERS = ("dm_mod", "dm_crypt", "xts", "ecb", "aes_generic", "sha256_generic", "algif_skcipher")

# The device is not there while the image is made, so what a program would find out by itself it is told:
# Debian's README.initramfs of cryptsetup, dracut.cmdline(7).
PEERS = (
    Peer(
        "initramfs-tools list",
        f"""release=$1; shift
umask 077
cp -a /etc/initramfs-tools /var/tmp/configuration
echo MODULES=list >> /var/tmp/configuration/initramfs.conf
echo UMASK=0077 >> /var/tmp/configuration/initramfs.conf
printf '%s\\n' "$@" > /var/tmp/configuration/modules
cp -a /etc /var/tmp/etc
mkdir -p /var/tmp/etc/keys
printf '{SECRET}' > /var/tmp/etc{KEY.removeprefix("/etc")}
echo 'vault UUID={UUID} {KEY} luks,initramfs' > /var/tmp/etc/crypttab
echo 'KEYFILE_PATTERN="/etc/keys/*.key"' > /var/tmp/etc/cryptsetup-initramfs/conf-hook
mount --bind /var/tmp/etc /etc
mkinitramfs -d /var/tmp/configuration -o /var/tmp/initrd.img "$release"
""",
    ),
    Peer(
        "dracut minimal",
        f"""release=$1; shift
umask 077
printf '{SECRET}' > /var/tmp/root.key
echo 'luks-{UUID} UUID={UUID} {KEY}' > /var/tmp/crypttab
dracut --no-hostonly --zstd --modules "base udev-rules kernel-modules fs-lib rootfs-block dm crypt lvm" \\
    --include /var/tmp/root.key {KEY} --include /var/tmp/crypttab /etc/crypttab \\
    --drivers "$*" /var/tmp/initrd.img "$release"
""",
        f"rd.skipfsck rd.luks.uuid={UUID} rd.lvm.lv=vg/root",
    ),
)
#: What our image is told on the command line.
OUR_WORDS = f"rd.luks.name={UUID}=vault rd.luks.key={KEY}"


def storage(suite: Suite, progress: Progress = silent) -> DebianRoot:
    """The Debian whose kernel and tools are used."""
    return provision(suite, packages=STORAGE, progress=progress)


def machine(debian: DebianRoot, progress: Progress = silent) -> VmSpec:
    """The machine, without an image."""
    volume = lvm(vg="vg", root=Ext4(small_root(debian), label=LABEL))
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    disk = gpt(luks(volume, uuid=UUID, passphrase=SECRET, options=cheap)).build(progress=progress)
    return VmSpec(
        kernel=unpacked(debian.kernel),
        initrd=None,
        append=WORDS,
        disks=(Disk(disk),),
        memory=MEMORY,
        icount=True,
        report=False,
    )


def shop(suite: Suite, progress: Progress = silent) -> Workshop:
    """The Debian with the other programs and what they need for such a stack."""
    return workshop(suite, packages=_PACKAGES, progress=progress)


def images(debian: DebianRoot, others: Workshop, progress: Progress = silent) -> dict[str, tuple[Path, str]]:
    """The images, and what each is told on the command line."""
    ours = initramfs(
        debian,
        mode="list",
        modules=MODULES,
        features=("luks", "lvm"),
        includes=((SECRET.encode(), KEY),),
        rescue="open",
        progress=progress,
    )
    made = {OURS: (ours, OUR_WORDS)}
    for peer in PEERS:
        image = others.image(peer, debian, progress=progress, modules=(*MODULES, *_CIPHERS))
        made[peer.name] = image, peer.words
    return made
