"""The layout of the keyboards at virtual terminals, which the target's own loadkeys(1) sets.

The builder unpacks the keymap into the image. A serial line needs none: the characters come from elsewhere.
"""

from __future__ import annotations

import os

from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.process import Children, find_program

PATH = "/etc/pyinit/keymap"


class Keymap:
    """Loaded once, before the first person types."""

    def __init__(self, children: Children, console: Console) -> None:
        self._children = children
        self._console = console
        self._pid = 0
        self._done = not os.path.exists(PATH)

    def ready(self) -> bool:
        """Whether the layout is set, or cannot be; the first call begins to set it. Never blocks."""
        if self._done:
            return True
        if not self._pid:
            try:
                loadkeys = find_program("loadkeys")
                # The boot can do without it: the kernel takes it first when memory is short.
                self._pid = self._children.start([loadkeys, "-q", PATH], oom_score_adj=500)
            except (OSError, BootError) as error:
                why = error.cause if isinstance(error, BootError) else error.strerror
                self._console.warning(f"the keyboard keeps its layout: loadkeys: {why}")
                self._done = True
                return True
        status = self._children.status(self._pid)
        if status is None:
            return False
        if status and os.path.exists("/dev/tty1"):
            self._console.warning(f"the keyboard keeps its layout: loadkeys ended with status {status}")
        self._done = True
        return True

    def load(self, patience: float) -> None:
        """Set the layout before a person gets a shell, waiting at most ``patience`` seconds."""
        if not self.ready():
            self._children.wait(self._pid, patience)
            self.ready()
