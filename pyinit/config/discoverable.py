"""Partitions whose type says what they are for: the Discoverable Partitions Specification (UAPI.2)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from pyinit.devices.view import DeviceView

#: GPT types of a root, by what uname(2) calls the machine.
ROOT = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "i686": "44479540-f297-41b2-9af7-d131d5f0458a",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "armv7l": "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
    "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
    "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
    "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    "loongarch64": "77055800-792c-4f94-b39a-98c91b762bb6",
}
#: Those of a /usr.
USR = {
    "x86_64": "8484680c-9521-48c6-9c11-b0720656f69e",
    "aarch64": "b0e01050-ee5f-4390-949a-9101b17104e9",
    "armv7l": "7d0359a3-02b3-4f0a-865c-654403e70625",
    "riscv64": "beaec34b-8442-439b-a40b-984381ed097d",
    "ppc64le": "15bb03af-77e7-4d4a-b12b-c0d084f7491c",
    "s390x": "8a4f5770-50aa-4ed3-874a-99b710db6fea",
    "loongarch64": "e611c702-575c-4cbe-9a46-434fa0bf7e3f",
}
#: Bits of a partition's attributes.
READ_ONLY, NO_AUTO = 1 << 60, 1 << 63

#: By which the boot loader tells from which partition it was started (systemd's Boot Loader Interface).
LOADER_VARIABLE = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def parse_loader_variable(data: bytes) -> str:
    """The UUID of the partition, from the variable as efivarfs has it; empty when there is none in it.

    Four bytes of attributes, then UTF-16 (Documentation/filesystems/efivarfs.rst).
    """
    # A UUID has ASCII letters only, and the image no codec for others.
    letters, others = data[4:160:2].partition(b"\0")[0], data[5:160:2]
    if any(others[: len(letters)]):
        return ""
    text = letters.decode("latin-1").lower()
    return text if re.fullmatch(_UUID, text, re.ASCII) else ""


def of_type(known: Iterable[DeviceView], kind: str) -> list[DeviceView]:
    """The partitions of a type, by disk and number, whether or not they are to be found so."""
    found = [
        view
        for view in known
        if view.initialized
        and view.properties.get("ID_PART_ENTRY_SCHEME") == "gpt"
        and view.properties.get("ID_PART_ENTRY_TYPE", "").lower() == kind
        and view.properties.get("DM_MULTIPATH_DEVICE_PATH") != "1"
    ]
    return sorted(found, key=lambda view: (disk_of(view), _number(view), view.number))


def find(known: Iterable[DeviceView], kind: str, disks: Collection[str]) -> list[DeviceView]:
    """The partitions that may be meant: on a disk that was booted from the first one, else every one.

    ``disks`` are the device numbers, as :func:`disk_of` has them, of that disk and of copies of it; none: it
    is not known.
    """
    found = [view for view in of_type(known, kind) if not attributes(view) & NO_AUTO]
    if not disks:
        return found
    first = {disk_of(view): view for view in reversed(found)}
    return [first[disk] for disk in sorted(disks) if disk in first]


def disks_with(known: Iterable[DeviceView], partition: str) -> list[str]:
    """The disks that have a partition with this UUID; more than one when one is a copy."""
    return sorted(
        {
            disk_of(view)
            for view in known
            if view.initialized and view.properties.get("ID_PART_ENTRY_UUID", "").lower() == partition
        }
        - {""}
    )


def disk_of(view: DeviceView) -> str:
    """The device number of the disk that a partition is on, ``8:0``."""
    return view.properties.get("ID_PART_ENTRY_DISK", "")


def attributes(view: DeviceView) -> int:
    """The attribute bits of a partition."""
    text = view.properties.get("ID_PART_ENTRY_FLAGS", "")
    return int(text, 16) if re.fullmatch("(0x)?[0-9a-f]{1,16}", text) else 0


def _number(view: DeviceView) -> int:
    text = view.properties.get("ID_PART_ENTRY_NUMBER", "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) else 0
