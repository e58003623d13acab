"""Early microcode: an uncompressed archive in front of all others.

The kernel looks for it before anything is unpacked (``Documentation/arch/x86/microcode.rst``):
``kernel/x86/microcode/GenuineIntel.bin`` and ``AuthenticAMD.bin``, each the files of all processors one
behind the other. They are firmware of the target system: Debian's packages intel-microcode and
amd64-microcode.
"""

from __future__ import annotations

import re

from .plan import Plan

CHOICES = ("auto", "none")
DIRECTORY = "/kernel/x86/microcode"

#: Vendor as the CPU calls itself: directory below /lib/firmware, pattern of the names there.
VENDORS = {
    "AuthenticAMD": ("amd-ucode", re.compile(r"microcode_amd.*\.bin")),
    "GenuineIntel": ("intel-ucode", re.compile(r"[0-9a-f]{2}-[0-9a-f]{2}-[0-9a-f]{2}(\.initramfs)?")),
}


def collect(plan: Plan, vendors: frozenset[str] | None = None) -> None:
    """Add the microcode of the target system; ``vendors`` None is for any machine."""
    plan.source = "microcode"
    for vendor, (folder, pattern) in VENDORS.items():
        place = f"/lib/firmware/{folder}"
        names = [name for name in plan.sysroot.list(place) if pattern.fullmatch(name)]
        if vendors is not None and vendor not in vendors:
            plan.leave_out(f"{vendor}.bin", "no processor of the machine is of this vendor")
        elif not names:
            plan.leave_out(f"{vendor}.bin", f"the target system has no microcode in {place}")
        else:
            content = b"".join(plan.sysroot.read(f"{place}/{name}") for name in names)
            reason = f"microcode of {len(names)} files in {place}, loaded before anything else"
            plan.data(f"{DIRECTORY}/{vendor}.bin", content, reason)
