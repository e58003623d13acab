"""Boot hooks: Python functions of the machine's owner, called in the image at the stage they are named after.

A hook file defines functions named ``cmdline``, ``pre_udev``, ``pre_trigger``, ``initqueue``, ``pre_mount``,
``mount``, ``pre_pivot`` or ``cleanup``, each with one parameter, a :class:`Moment`. They run right before the
stage's own work; ``cmdline`` right after it, because only then is it known what was asked for. This module is
imported by boots of images with hooks only.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from pyinit.config.cmdline import CommandLine
from pyinit.config.options import BootConfig
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.process import Children
from pyinit.text import printable

PACKAGE = "pyinit_hooks"
DIRECTORY = f"/usr/lib/pyinit/{PACKAGE}"

STAGES = ("cmdline", "pre_udev", "pre_trigger", "initqueue", "pre_mount", "mount", "pre_pivot", "cleanup")
"""The names of hook functions, in the order of a boot."""

PROGRAM_TIMEOUT = 30.0
_TRACE_LINES = 12


class Facts(NamedTuple):
    """What a hook may know of the boot at this moment."""

    config: BootConfig
    """The options of the kernel command line, as docs/options.md lists them."""
    command_line: CommandLine
    """Every word, those of others included: ``moment.command_line.last("site.name")``."""
    devices: tuple[DeviceView, ...]
    """The block devices that udev has announced; none before stage ``initqueue``."""
    root: DeviceView | None
    """The root device, once it is known: from stage ``pre_mount`` on."""
    sysroot: str
    """Where the root file system is mounted, from stage ``pre_pivot`` on; empty before."""


class Log(Protocol):
    """What a hook's lines are written to: :class:`pyinit.kernel.console.Console`."""

    def info(self, text: str) -> None:
        """A step that went well."""

    def warning(self, text: str) -> None:
        """Something that is probably wrong."""


class Moment:
    """The one argument of a hook function."""

    def __init__(self, stage: str, hook: str, facts: Facts, children: Children, log: Log) -> None:
        self.stage = stage
        """The name of the function: ``pre_pivot``."""
        self.hook = hook
        """The name of the file without ``.py``."""
        self.config = facts.config
        self.command_line = facts.command_line
        self.devices = facts.devices
        self.root = facts.root
        self.sysroot = facts.sysroot
        self._children = children
        self._log = log

    def log(self, text: str) -> None:
        """Write a line to the log, and to the console unless the boot is quiet."""
        self._log.info(f"hook {self.hook}: {printable(text)}")

    def warn(self, text: str) -> None:
        """Write a line to the log and to every console."""
        self._log.warning(f"hook {self.hook}: {printable(text)}")

    def run(self, *argv: str, timeout: float | None = PROGRAM_TIMEOUT) -> None:
        """Run a program of the image, by its whole path, and wait for its end for ``timeout`` seconds.

        Raises :class:`RuntimeError` when it fails or takes longer; OSError when it cannot be started. Its
        output goes to the console. One that the kernel killed for want of memory is started once more.
        """
        status = self._children.run(argv, timeout)
        command = printable(" ".join(argv))
        if status is None:
            raise RuntimeError(f"{command} has not ended after {timeout:.0f} s")
        if status:
            why = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise RuntimeError(f"{command} failed: {why}")


def call(
    stage: str, hooks: Iterable[str], done: set[tuple[str, str]], facts: Facts, children: Children, log: Log
) -> None:
    """Call the functions of one stage, in the order of ``hooks``, except those that are ``done`` already.

    A hook that fails raises :class:`BootError` ``E-HOOK``; the next call goes on with it, from its file as it
    is then.
    """
    for hook in hooks:
        if (hook, stage) in done:
            continue
        try:
            function = getattr(importlib.import_module(f"{PACKAGE}.{hook}"), stage, None)
            if function is None:
                # Somebody emptied the file in the rescue shell.
                log.warning(f"hook {hook} has no function {stage} any more")
            else:
                function(Moment(stage, hook, facts, children, log))
        except BootError:
            _forget(hook)
            raise
        except BaseException as exception:
            _forget(hook)
            raise _explain(stage, hook, exception) from exception
        done.add((hook, stage))


def _forget(hook: str) -> None:
    """Let the next import read the file again: a person may correct it in the rescue shell."""
    sys.modules.pop(f"{PACKAGE}.{hook}", None)
    # Not importlib.invalidate_caches(): from Python 3.14 on it needs importlib.metadata, which no image has.
    sys.path_importer_cache.pop(DIRECTORY, None)


def _explain(stage: str, hook: str, exception: BaseException) -> BootError:
    import traceback

    path = f"{DIRECTORY}/{hook}.py"
    frames = traceback.extract_tb(exception.__traceback__)
    own = [frame for frame in frames if os.path.dirname(frame.filename) == DIRECTORY]
    if isinstance(exception, SyntaxError) and exception.filename and not own:
        where = f"{printable(exception.filename)} line {exception.lineno}"
    elif own:
        where = f"{printable(own[-1].filename)} line {own[-1].lineno}, in {printable(own[-1].name)}()"
    else:
        where = path
    said = printable(f"{type(exception).__name__}: {exception}".removesuffix(": "))[:300]
    lines = [
        f"{printable(frame.filename)} line {frame.lineno}, in {printable(frame.name)}: "
        f"{printable(frame.line or '')}"
        for frame in frames
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    return BootError(
        "E-HOOK",
        f"hook {hook} failed: {said}",
        tried=(f"called {stage}() of {path}",),
        found=(where, *lines[-_TRACE_LINES:]),
        advice=(
            "Correct what it needs, or the file itself, then leave the shell: it is called again.",
            f"To do without it this time, empty the file: : > {path}",
            "To do without it for good, build the image without it.",
        ),
    )
