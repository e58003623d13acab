"""The machine's TPM, which may hold the key of an encrypted volume: systemd's plug-in for cryptsetup."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.text import printable

from ..errors import BuildError
from ..facts import CRYPTTAB
from ..plan import Plan
from . import luks
from .base import Feature, Need, Target

PLUGIN = "libcryptsetup-token-systemd-tpm2.so"

#: What the plug-in opens with dlopen(3) while it works (systemd's src/shared/tpm2-util.c).
LIBRARIES = (
    ("libtss2-esys.so.0", "libtss2-esys-3.0.2-0"),
    ("libtss2-rc.so.0", "libtss2-rc0"),
    ("libtss2-mu.so.0", "libtss2-mu0"),
    ("libtss2-tcti-device.so.0", "libtss2-tcti-device0"),
)

#: The two interfaces between a PC and its TPM (PC Client Platform TPM Profile, chapters 5 and 6).
MODULES = ("tpm_tis", "tpm_crb")


class Tpm2(Feature):
    """Wanted when a line of crypttab that the image gets has ``tpm2-device=``."""

    name = "tpm2"
    summary = "opens encrypted volumes with a key in the machine's TPM"

    def wanted(self, target: Target) -> str:
        for entry in luks.entries(target):
            if any(option.startswith("tpm2-device=") for option in entry.options):
                return f"{CRYPTTAB} line {entry.line}: {printable(entry.name)}"
        return ""

    def needs(self, target: Target) -> Iterable[Need]:
        folders = luks.library_folders(target.sysroot)
        yield Need(tuple(f"{folder}/cryptsetup/{PLUGIN}" for folder in folders), package="systemd-cryptsetup")
        for name, package in LIBRARIES:
            yield Need(tuple(f"{folder}/{name}" for folder in folders), package=package)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        places = (f"{folder}/cryptsetup/{PLUGIN}" for folder in luks.library_folders(target.sysroot))
        place = target.sysroot.find(*places)
        assert place is not None  # It is among the needs.
        path = plan.file(place, reason)
        for name, package in LIBRARIES:
            library = plan.walker.library(name, path)
            if library is None:
                raise BuildError(f"{name} is not where the loader looks for it", hint=f"Install {package}.")
            plan.file(library, "speaks with the TPM", path)
