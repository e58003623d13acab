"""The drivers of watchdogs, for ``rd.pyinit.watchdog=``."""

from __future__ import annotations

from collections.abc import Iterable

from .base import Feature, Target

# Those of PC chipsets and servers, of QEMU (i6300esb), what makes Intel's appear at all (lpc_ich, i2c_i801),
# and the one that needs no hardware, which is loaded when rd.driver.pre=softdog asks for it.
DRIVERS = (
    "iTCO_wdt",
    "lpc_ich",
    "i2c_i801",
    "sp5100_tco",
    "wdat_wdt",
    "hpwdt",
    "ipmi_watchdog",
    "i6300esb",
    "softdog",
)


class Watchdog(Feature):
    """Wanted when the sealed command line starts a watchdog."""

    name = "watchdog"
    summary = "drivers of watchdogs, for rd.pyinit.watchdog="

    def wanted(self, target: Target) -> str:
        if any(word.startswith("rd.pyinit.watchdog=") for word in target.cmdline.split()):
            return "rd.pyinit.watchdog= is sealed into the image"
        return ""

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in DRIVERS if target.kernel.find(name)]
