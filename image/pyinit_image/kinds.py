"""The kinds of kernel modules that images have without anybody naming them, by where they are below kernel/.

What a pattern selects brings its dependencies along.
"""

from __future__ import annotations

#: What a generic image takes: paths below kernel/, and why. What a pattern selects brings its dependencies.
GENERIC = (
    ("drivers/ata/*", "ATA disk controller"),
    ("drivers/nvme/host/*", "NVMe disks"),
    ("drivers/scsi/*", "SCSI disks and controllers"),
    ("drivers/message/fusion/mpt[fs]*", "SCSI controllers of the Fusion family, VMware's among them"),
    ("drivers/ufs/*", "UFS disks"),
    ("drivers/mmc/core/mmc_block*", "MMC disks"),
    ("drivers/mmc/host/*", "MMC host controller"),
    ("drivers/nvdimm/*", "persistent memory disks"),
    ("drivers/block/virtio_blk*", "virtio disks"),
    ("drivers/block/xen-blkfront*", "Xen disks"),
    ("drivers/block/loop*", "disk images"),
    ("drivers/block/nbd*", "network block devices"),
    ("drivers/virtio/virtio_pci.*", "virtio bus of virtual machines"),
    ("drivers/virtio/virtio_mmio.*", "virtio bus of virtual machines"),
    ("drivers/virtio/virtio_input.*", "virtio keyboard"),
    ("drivers/hv/hv_vmbus*", "Hyper-V bus"),
    ("drivers/pci/controller/vmd*", "NVMe disks behind Intel's volume management device"),
    ("drivers/pci/controller/pci-hyperv*", "Hyper-V PCI bus"),
    ("drivers/usb/host/*-pci*", "USB host controller"),
    ("drivers/usb/host/uhci-hcd*", "USB 1.1 host controller"),
    ("drivers/usb/storage/usb-storage*", "USB disks"),
    ("drivers/usb/storage/uas*", "USB disks"),
    ("drivers/hid/hid-generic*", "keyboard for the rescue shell"),
    ("drivers/hid/usbhid/usbhid*", "USB keyboard for the rescue shell"),
    ("drivers/hid/hid-hyperv*", "Hyper-V keyboard"),
    ("drivers/input/serio/hyperv-keyboard*", "Hyper-V keyboard"),
    ("drivers/input/serio/i8042*", "PS/2 keyboard"),
    ("drivers/input/keyboard/atkbd*", "PS/2 keyboard"),
    # These need a driver of their own: hid-generic leaves them alone.
    ("drivers/hid/hid-apple.*", "keyboard for the rescue shell"),
    ("drivers/hid/hid-cherry.*", "keyboard for the rescue shell"),
    ("drivers/hid/hid-corsair.*", "keyboard for the rescue shell"),
    ("drivers/hid/hid-lenovo.*", "keyboard for the rescue shell"),
    ("drivers/hid/hid-logitech*", "keyboard for the rescue shell"),
    ("drivers/hid/hid-microsoft.*", "keyboard for the rescue shell"),
    ("drivers/md/dm-mod.*", "device mapper"),
    ("drivers/md/md-mod.*", "software RAID"),
    ("drivers/md/raid*", "software RAID"),
    ("fs/ext4/*", "root file system"),
    ("fs/xfs/*", "root file system"),
    ("fs/btrfs/*", "root file system"),
    ("fs/f2fs/*", "root file system"),
    ("fs/squashfs/*", "root file system of live systems"),
    ("fs/erofs/*", "root file system of live systems"),
    ("fs/isofs/*", "file system of CDs"),
    ("fs/overlayfs/*", "writable layer over a read-only root"),
    ("fs/efivarfs/*", "tells which disk the boot loader is on"),
    ("fs/fat/vfat*", "EFI system partition"),
    ("fs/nls/nls_cp437*", "character set of vfat"),
    ("fs/nls/nls_iso8859-1.*", "character set of vfat"),
    ("fs/nls/nls_ascii*", "character set of vfat"),
    ("fs/nls/nls_utf8*", "character set of vfat"),
)

#: What most machines and virtual machines have their root on: in a generic image these, and what they need,
#: are ready to be loaded. All others are packed one by one, so that only what a machine has is unpacked.
COMMON = (
    "drivers/ata/ahci.*",
    "drivers/ata/ata_piix.*",
    "drivers/ata/ata_generic.*",
    "drivers/nvme/host/nvme.*",
    "drivers/scsi/sd_mod.*",
    "drivers/scsi/virtio_scsi.*",
    "drivers/block/virtio_blk.*",
    "drivers/virtio/virtio_pci.*",
    "drivers/input/serio/i8042.*",
    "drivers/input/keyboard/atkbd.*",
    "fs/ext4/*",
)

#: What these patterns would select but no root disk needs.
GENERIC_EXCLUDED = (
    ("drivers/scsi/scsi_debug.*", "makes up disks for tests"),
    ("drivers/scsi/sg.*", "raw access to SCSI devices"),
    ("drivers/scsi/st.*", "tapes"),
    ("drivers/scsi/ch.*", "tape changers"),
    ("drivers/scsi/ses.*", "lights of disk enclosures"),
    ("drivers/scsi/pcmcia/*", "PC cards"),
    # These sit on network drivers.
    ("drivers/scsi/bnx2fc/*", "disks behind network cards"),
    ("drivers/scsi/bnx2i/*", "disks behind network cards"),
    ("drivers/scsi/csiostor/*", "disks behind network cards"),
    ("drivers/scsi/cxgbi/*", "disks behind network cards"),
    ("drivers/scsi/fcoe/*", "disks behind network cards"),
    ("drivers/scsi/qedf/*", "disks behind network cards"),
    ("drivers/scsi/qedi/*", "disks behind network cards"),
)

_KEYBOARD = "another keyboard"
_USB_PORT = "a keyboard or disk at another USB port"
_PORT = "the disk at another port, or the controller in another mode"
_ENCLOSURE = "the disk in a USB enclosure"
_VIRTUAL = "the disk moved into a virtual machine"
_RESCUE = "rescue media"

#: What an image for one machine has beyond that machine: paths below kernel/, and the change it is for. What
#: a pattern selects brings its dependencies. docs/host-mode.md argues each.
MARGIN = (
    ("drivers/usb/host/xhci-pci.*", _USB_PORT),
    ("drivers/usb/host/xhci-pci-renesas*", _USB_PORT),
    ("drivers/usb/host/ehci-pci*", _USB_PORT),
    ("drivers/usb/host/ohci-pci*", _USB_PORT),
    ("drivers/usb/host/uhci-hcd*", _USB_PORT),
    ("drivers/hid/usbhid/usbhid*", _KEYBOARD),
    ("drivers/hid/hid-generic*", _KEYBOARD),
    ("drivers/hid/hid-apple.*", _KEYBOARD),
    ("drivers/hid/hid-cherry.*", _KEYBOARD),
    ("drivers/hid/hid-corsair.*", _KEYBOARD),
    ("drivers/hid/hid-lenovo.*", _KEYBOARD),
    ("drivers/hid/hid-logitech*", _KEYBOARD),
    ("drivers/hid/hid-microsoft.*", _KEYBOARD),
    ("drivers/input/serio/i8042*", _KEYBOARD),
    ("drivers/input/keyboard/atkbd*", _KEYBOARD),
    ("drivers/ata/ahci.*", _PORT),
    ("drivers/nvme/host/nvme.*", _PORT),
    ("drivers/pci/controller/vmd*", _PORT),
    ("drivers/scsi/sd_mod*", _PORT),
    ("drivers/usb/storage/usb-storage*", _ENCLOSURE),
    ("drivers/usb/storage/uas*", _ENCLOSURE),
    ("drivers/virtio/virtio_pci.*", _VIRTUAL),
    ("drivers/block/virtio_blk*", _VIRTUAL),
    ("drivers/scsi/virtio_scsi*", _VIRTUAL),
    ("drivers/hv/hv_vmbus*", _VIRTUAL),
    ("drivers/scsi/hv_storvsc*", _VIRTUAL),
    ("drivers/input/serio/hyperv-keyboard*", _VIRTUAL),
    ("drivers/block/xen-blkfront*", _VIRTUAL),
    ("drivers/scsi/vmw_pvscsi*", _VIRTUAL),
    ("drivers/message/fusion/mptspi*", _VIRTUAL),
    ("drivers/ata/ata_piix*", _VIRTUAL),
    ("drivers/cdrom/cdrom*", _RESCUE),
    ("drivers/scsi/sr_mod*", _RESCUE),
    ("fs/isofs/*", _RESCUE),
    ("fs/fat/vfat*", _RESCUE),
    ("fs/nls/nls_cp437*", _RESCUE),
    ("fs/nls/nls_iso8859-1.*", _RESCUE),
    ("fs/nls/nls_ascii*", _RESCUE),
)
