"""Storage stacks: which of them a boot needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinit.context import Context
    from pyinit.devices.waiting import Assembler


def assemblers(context: Context) -> list[Assembler]:
    """The stacks that may have something to do, those that others may lie on first.

    Looks are cheap here and nothing is imported for a boot without them: most have none.
    """
    found: list[Assembler] = []
    config, spec = context.config, context.spec
    if (
        os.path.exists("/etc/crypttab")
        or config.luks
        or (spec and spec.value.startswith("/dev/mapper/luks-"))
    ):
        from pyinit.storage.luks import make

        if (luks := make(context)) is not None:
            found.append(luks)
    return found
