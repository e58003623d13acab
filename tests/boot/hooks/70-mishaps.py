"""A boot hook that makes every function of PID 1 raise an exception, once, the first time it is called.

``site.sound=NAME,...`` on the command line leaves functions alone: full names, or what they begin with, with
a ``*`` behind it. ``site.only=NAME`` takes that one only. The rescue shell is one that is left at once.
Before the last stage but one what was raised is logged: name and exception, a line each.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

KINDS: tuple[type[BaseException], ...] = (
    ValueError,
    MemoryError,
    RecursionError,
    OSError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    UnicodeError,
)

_raised: list[str] = []
_codes: dict[str, tuple[FunctionType, Any]] = {}


def cmdline(moment: Any) -> None:
    sound = tuple(filter(None, _word(moment, "site.sound").split(",")))
    only = _word(moment, "site.only")
    builtins.__mishap__ = _mishap
    from pyinit.rescue import shell

    if not only:
        shell.Policy.run_shell = lambda self, *others, **options: "left"  # type: ignore[method-assign]
    for name, module in sorted(sys.modules.items()):
        if name.startswith("pyinit.") and module is not sys.modules["pyinit.hooks"]:
            for key, function in _functions(name, module):
                if (key == only) if only else not _matches(key, sound):
                    _arm(key, function)


def cleanup(moment: Any) -> None:
    for note in _raised:
        moment.log(note)


def _word(moment: Any, name: str) -> str:
    word = moment.command_line.last(name)
    return (word.value if word else "") or ""


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(
        key == pattern or (pattern[-1] == "*" and key.startswith(pattern[:-1])) for pattern in patterns
    )


def _functions(name: str, module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """The functions that a module defines, those of its classes included."""
    for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        if getattr(owner, "__module__", name) != name:
            continue
        for attribute, value in tuple(vars(owner).items()):
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and function.__module__ == name:
                path = attribute if owner is module else f"{owner.__name__}.{attribute}"
                yield f"{name.removeprefix('pyinit.')}.{path}", function


def _arm(key: str, function: FunctionType) -> None:
    if function.__code__.co_freevars:
        return
    space: dict[str, Any] = {}
    exec(f"def stub(*words, **named): return __mishap__({key!r}, words, named)", space)
    _codes[key] = (function, function.__code__)
    function.__code__ = space["stub"].__code__


def _mishap(key: str, words: tuple[object, ...], named: dict[str, object]) -> object:
    function, code = _codes[key]
    if function.__code__ is code:  # Called by two threads at once.
        return function(*words, **named)
    function.__code__ = code
    kind = KINDS[sum(map(ord, key)) % len(KINDS)]
    _raised.append(f"{key} {kind.__name__}")
    raise kind(f"mishap in {key}")
