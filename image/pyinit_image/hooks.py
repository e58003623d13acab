"""Boot hooks: the Python files that the image's owner adds, checked before they go in.

See :mod:`pyinit.hooks` for what runs them and ``docs/extending.md`` for how to write one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinit.config.distance import closest
from pyinit.hooks import STAGES
from pyinit.text import printable

from .errors import BuildError
from .sysroot import Sysroot, read_regular

#: Hooks that the target system brings along.
DIRECTORY = "/etc/pyinit/hooks.d"

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Hook:
    """One file of hook functions."""

    name: str
    """The file's name without ``.py``: ``10-note``."""
    source: bytes
    origin: str
    """Where it came from, as a reason: ``--hook FILE``."""
    stages: tuple[str, ...]
    """The functions it has."""


def read(sysroot: Sysroot, files: Sequence[Path]) -> list[Hook]:
    """The hooks of the target system and those of ``files``, sorted by name.

    A file hides the target's one of the same name. :class:`BuildError` names the line that is wrong.
    """
    given: dict[str, Path] = {}
    for path in files:
        if path.name in given:
            raise BuildError(
                f"--hook {printable(str(path))} and --hook {printable(str(given[path.name]))} "
                "have the same name",
                hint="Rename one: the hooks of a stage are called in the order of their names.",
            )
        given[path.name] = path
    found: dict[str, Hook] = {}
    for name in sysroot.list(DIRECTORY):
        if name.endswith(".py") and name not in given:
            place = f"{DIRECTORY}/{name}"
            hook = _hook(name, sysroot.read(place), str(sysroot.host(place)), place)
            found[hook.name] = hook
    for name, path in given.items():
        hook = _hook(name, read_regular(path)[0], str(path), f"--hook {path}")
        found[hook.name] = hook
    return [found[name] for name in sorted(found)]


def table(hooks: Iterable[Hook]) -> dict[str, list[str]]:
    """The names of the hooks of each stage, for the sealed configuration."""
    stages: dict[str, list[str]] = {}
    for hook in hooks:
        for stage in hook.stages:
            stages.setdefault(stage, []).append(hook.name)
    return stages


def _hook(name: str, source: bytes, path: str, origin: str) -> Hook:
    shown = printable(path)
    if not name.endswith(".py") or not _NAME.fullmatch(name.removesuffix(".py")):
        raise BuildError(
            f"{shown} cannot be a hook: its name must be letters, digits, - and _, and end with .py",
            hint="Example: 10-note.py",
        )
    try:
        tree = ast.parse(source, path)
    except SyntaxError as error:
        line = f"{shown}:{error.lineno}" if error.lineno else shown
        raise BuildError(
            f"{line}: {printable(error.msg)}: {printable((error.text or '').strip())}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BuildError(f"{shown} is no Python file: {printable(str(error))}") from error
    stages = [_stage(node, shown) for node in tree.body if _is_public_function(node)]
    if not stages:
        raise BuildError(f"{shown} has no hook function", hint="Known: " + ", ".join(STAGES))
    return Hook(name.removesuffix(".py"), source, origin, tuple(dict.fromkeys(stages)))


def _is_public_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")


def _stage(node: ast.stmt, shown: str) -> str:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    where = f"{shown}:{node.lineno}"
    if node.name not in STAGES:
        near = closest(node.name, STAGES, 3)
        raise BuildError(
            f"{where}: {printable(node.name)}() is not the name of a stage"
            + (f"; did you mean {near}()?" if near else ""),
            hint=f"Known: {', '.join(STAGES)}. Let the names of other functions start with _.",
        )
    if isinstance(node, ast.AsyncFunctionDef):
        raise BuildError(f"{where}: {node.name}() must not be async: nothing would run it")
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    keywords = [item for item in arguments.kw_defaults if item is None]
    if required > 1 or (not positional and arguments.vararg is None) or keywords:
        raise BuildError(
            f"{where}: {node.name}() must take one argument",
            hint=f"def {node.name}(moment: Moment) -> None:",
        )
    return node.name
