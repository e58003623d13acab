"""Devices that may hold the key of an encrypted volume: systemd's plug-ins for cryptsetup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pyinit.text import printable

from ..errors import BuildError
from ..facts import CRYPTTAB
from ..plan import Plan
from . import luks
from .base import Feature, Need, Target


class Token(Feature):
    """Wanted when a line of crypttab that the image gets names such a device."""

    libraries: ClassVar[tuple[tuple[str, str], ...]] = ()
    """What the plug-in opens with dlopen(3) while it works, and the packages that have it."""
    drivers: ClassVar[tuple[str, ...]] = ()
    """Kernel modules."""

    def wanted(self, target: Target) -> str:
        for entry in luks.entries(target):
            if any(option.startswith(f"{self.name}-device=") for option in entry.options):
                return f"{CRYPTTAB} line {entry.line}: {printable(entry.name)}"
        return ""

    def needs(self, target: Target) -> Iterable[Need]:
        yield Need(self._places(target), package="systemd-cryptsetup")
        for name, package in self.libraries:
            folders = luks.library_folders(target.sysroot)
            yield Need(tuple(f"{folder}/{name}" for folder in folders), package=package)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in self.drivers if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        place = target.sysroot.find(*self._places(target))
        assert place is not None  # It is among the needs.
        path = plan.file(place, reason)
        for name, package in self.libraries:
            library = plan.walker.library(name, path)
            if library is None:
                raise BuildError(f"{name} is not where the loader looks for it", hint=f"Install {package}.")
            plan.file(library, "speaks with the device", path)

    def _places(self, target: Target) -> tuple[str, ...]:
        plugin = f"cryptsetup/libcryptsetup-token-systemd-{self.name}.so"
        return tuple(f"{folder}/{plugin}" for folder in luks.library_folders(target.sysroot))


class Tpm2(Token):
    """Libraries: systemd's src/shared/tpm2-util.c."""

    name = "tpm2"
    summary = "opens encrypted volumes with a key in the machine's TPM"
    libraries = (
        ("libtss2-esys.so.0", "libtss2-esys-3.0.2-0"),
        ("libtss2-rc.so.0", "libtss2-rc0"),
        ("libtss2-mu.so.0", "libtss2-mu0"),
        ("libtss2-tcti-device.so.0", "libtss2-tcti-device0"),
    )
    # The two interfaces between a PC and its TPM (PC Client Platform TPM Profile, chapters 5 and 6).
    drivers = ("tpm_tis", "tpm_crb")


class Fido2(Token):
    """Libraries: systemd's src/shared/libfido2-util.c."""

    name = "fido2"
    summary = "opens encrypted volumes with a FIDO2 device"
    libraries = (("libfido2.so.1", "libfido2-1"),)
    # They are HID devices, most of them on USB.
    drivers = ("hid-generic", "usbhid", "xhci-pci", "ehci-pci", "ohci-pci", "uhci-hcd")
