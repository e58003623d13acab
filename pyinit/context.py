"""What the stages of a boot, the storage stacks and the rescue share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyinit import VERSION
from pyinit.config import devspec, sealed
from pyinit.config.cmdline import OVERRIDES
from pyinit.config.options import BootConfig, boot_config
from pyinit.devices.udev import UdevDaemon
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import Assembler, Waiter
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.drivers import Drivers
from pyinit.kernel.files import is_mounted, read_if_there
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience
from pyinit.kernel.process import Children
from pyinit.record import Record
from pyinit.report import Reporter
from pyinit.switch_root import InitChoice
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.kernel.keymap import Keymap
    from pyinit.kernel.prompt import Prompt
    from pyinit.kernel.watchdog import Watchdog


class Context:
    """The state of one boot."""

    def __init__(
        self, kernel_environ: list[bytes], kernel_argv: list[bytes], started: int | None = None
    ) -> None:
        self.kernel_environ = kernel_environ
        self.kernel_argv = kernel_argv
        self.record = Record(VERSION, os.uname().release, started)
        self.console = Console(self.record)
        self.keyboard = Keyboard()
        self.children = Children(self.record, self.console.warning)
        self.patience = Patience(self.console)
        self.watchdog: Watchdog | None = None
        """When one was asked for."""
        self.report: Reporter | None = None
        self.sealed: sealed.SealedConfig | None = None
        self.sources: tuple[bytes, ...] = ()
        """The command lines that :attr:`config` was read from."""
        self.config: BootConfig = boot_config()
        self.modules = Modules(sealed.EMPTY_INDEX, self.console)
        self.drivers = Drivers(self.console)
        self.daemon: UdevDaemon | None = None
        self.waiter: Waiter | None = None
        self.assemblers: list[Assembler] = []
        self.spec: devspec.DeviceSpec | None = None
        self.root: DeviceView | None = None
        self.resume_tried: tuple[str, int] | None = None
        """``resume=`` and ``resume_offset=`` that were tried; None: nothing was."""
        self.resume_device: DeviceView | None = None
        """The device that was looked at for a hibernated system."""
        self.mounted_here = False
        """Whether what is mounted as the root was mounted by PID 1, and not by a person."""
        self.init: InitChoice | None = None
        self.touched = False
        """Whether file systems may have been checked or mounted: then no system may be resumed any more."""
        self.degraded = False
        """Whether a root on several devices may be used though some are missing."""
        self.closed = False
        """Whether the root was unmounted for a shell, because it is on a volume that was closed."""
        self._prompt: Prompt | None = None
        self._keymap: Keymap | None = None

    def may_resume(self) -> bool:
        """Whether a hibernated system may still be resumed, so that its disks must stay as it left them."""
        return bool(self.config.resume) and self.resume_tried != (
            self.config.resume,
            self.config.resume_offset,
        )

    @property
    def prompt(self) -> Prompt:
        """Asks questions on the consoles; imported by boots that have one to ask."""
        if self._prompt is None:
            from pyinit.kernel.prompt import Prompt

            self._prompt = Prompt(self.keyboard, self.console)
        return self._prompt

    @property
    def keymap(self) -> Keymap:
        """The layout of the keyboards; imported by boots in which somebody types."""
        if self._keymap is None:
            from pyinit.kernel.keymap import Keymap

            self._keymap = Keymap(self.children, self.console)
        return self._keymap

    def read_sealed(self) -> sealed.SealedConfig:
        """The sealed configuration; ``E-IMAGE`` when it cannot be read."""
        if self.sealed is None:
            self.sealed = sealed.parse_config(read(sealed.CONFIG_PATH))
        return self.sealed

    def look_at_command_line(self) -> tuple[sealed.SealedConfig, BootConfig]:
        """Read again what is asked for, which a person may have changed."""
        image = self.read_sealed()
        sources = self.command_lines(image)
        if sources != self.sources:
            self.sources = sources
            lines = (printable(line.strip()) for line in sources)
            self.record.data["cmdline"] = " ".join(filter(None, lines))
            self.config = boot_config(*sources)
        return image, self.config

    def command_lines(self, image: sealed.SealedConfig) -> tuple[bytes, ...]:
        """Those that count, later ones more: sealed, the kernel's, what was set in the rescue shell."""
        return (
            image.cmdline.encode("utf-8", "surrogateescape"),
            read_if_there("/proc/cmdline"),
            *read_if_there(OVERRIDES).splitlines(),
        )

    def changed_command_line(self) -> bool:
        """Whether a person changed what is asked for since it was read."""
        return self.sealed is not None and self.command_lines(self.sealed) != self.sources

    def known(self) -> Iterable[DeviceView]:
        """The block devices that udev has told of."""
        return self.waiter.known.values() if self.waiter else ()

    def close_volumes(self) -> None:
        """Close what was opened with a secret, and forget the secrets: a person is about to get a shell.

        What has secrets comes last: other stacks lie on it, or it on them, and then they stay.
        """
        from pyinit.root.mount import SYSROOT, unmount_root

        if any(assembler.opened() for assembler in self.assemblers):
            # Somebody may look at it. Without its device there will be nothing to see.
            self.closed = self.closed or is_mounted(SYSROOT)
            unmount_root()
            self.root, self.mounted_here = None, False
        secret = [assembler for assembler in self.assemblers if assembler.opened()]
        others = [assembler for assembler in reversed(self.assemblers) if assembler not in secret]
        # Twice: logical volumes lie on arrays, or arrays on them.
        for assembler in (*others, *others, *secret):
            assembler.close()


def read(path: str) -> bytes:
    """The content of a file that every image has; ``E-IMAGE`` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BootError(
            "E-IMAGE",
            f"{path} cannot be read: {error.strerror}",
            advice=("Build the image again: pyinit-image build -o IMAGE",),
        ) from error
