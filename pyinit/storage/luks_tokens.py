"""Devices that hold a key of a LUKS2 volume: systemd-cryptenroll(1) has put it there.

cryptsetup's plug-ins of systemd ask them. What is here says whether there is one to be asked: a plug-in that
finds none only fails, and a device that is plugged in late has to be noticed.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pyinit.kernel.files import names, read_if_there

#: Bytes of a report descriptor at the most (HID_MAX_DESCRIPTOR_SIZE of the kernel's include/linux/hid.h).
_MAX_DESCRIPTOR = 4096
#: The usage page of FIDO devices (Client to Authenticator Protocol 2.1, "HID device implementation").
_FIDO_PAGE = 0xF1D0
# Device Class Definition for HID 1.11, chapter 6.2.2.
_LONG_ITEM = 0xFE
_USAGE_PAGE = 0x04

#: What holds the key, for people, by the last part of the token's type: ``systemd-tpm2``.
KINDS = {"tpm2": "the machine's TPM", "fido2": "a FIDO2 device"}


class Token(NamedTuple):
    """A token of a LUKS2 header."""

    kind: str
    """One of :data:`KINDS`."""
    pin: bool
    """Whether the device wants a PIN."""

    @property
    def touch(self) -> bool:
        """Whether a person may have to do something with the device, which can take any time."""
        return self.kind == "fido2"

    @property
    def place(self) -> str:
        """What holds the key, for people."""
        return KINDS[self.kind]


def present(token: Token) -> bool:
    """Whether a device is there that the token may be meant for."""
    if token.kind == "tpm2":
        return os.path.exists("/dev/tpmrm0")
    found = (f"/sys/class/hidraw/{name}/device/report_descriptor" for name in names("/sys/class/hidraw"))
    return any(is_fido(read_if_there(path)[:_MAX_DESCRIPTOR]) for path in found)


def is_fido(descriptor: bytes) -> bool:
    """Whether a report descriptor of a HID device is one of a FIDO device."""
    at = 0
    while at < len(descriptor):
        prefix = descriptor[at]
        if prefix == _LONG_ITEM:
            at += 3 + (descriptor[at + 1] if at + 1 < len(descriptor) else 0)
            continue
        size = (0, 1, 2, 4)[prefix & 3]
        value = descriptor[at + 1 : at + 1 + size]
        if (
            prefix & 0xFC == _USAGE_PAGE
            and len(value) == size
            and int.from_bytes(value, "little") == _FIDO_PAGE
        ):
            return True
        at += 1 + size
    return False
