"""Stands in for ``typing`` in PID 1: what modules need of it when they are imported, and no more.

The real one makes some hundred objects when it is imported, and each named tuple it makes compiles a function
of its own; together a tenth of the time that PID 1 needs before its first action. Whoever asks for anything
that is not here gets the real module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from operator import itemgetter

TYPE_CHECKING = False


def install() -> None:
    """Stand in for ``typing``, unless that has been imported."""
    sys.modules.setdefault("typing", sys.modules[__name__])


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    if sys.modules.get("typing") is sys.modules[__name__]:
        del sys.modules["typing"]
    import typing

    return getattr(typing, name)


class _Subscriptable:
    """``Literal["a", "b"]`` and the like, which only a type checker reads."""

    def __getitem__(self, _: object) -> object:
        return object


Any = NoReturn = object
Literal = Final = _Subscriptable()


class Protocol:
    """A base class that only a type checker looks at."""


class _NamedTupleMaker(type):
    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> type:
        annotations = namespace.get("__annotations__", {})
        assert isinstance(annotations, dict)
        fields = tuple(annotations)
        defaults = {field: namespace[field] for field in fields if field in namespace}
        body = {
            "__slots__": (),
            "__match_args__": fields,
            "_fields": fields,
            "_field_defaults": defaults,
            **_METHODS,
            **namespace,
            **{field: property(itemgetter(place)) for place, field in enumerate(fields)},
        }
        return type(name, (tuple,), body)


def _new(cls: type, *values: object, **named: object) -> tuple[object, ...]:
    fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    if named or len(values) != len(fields):
        defaults: dict[str, object] = cls._field_defaults  # type: ignore[attr-defined]
        for field in fields[len(values) :]:
            if field not in named and field not in defaults:
                raise TypeError(f"{cls.__name__}: {field} is missing")
            values += (named.pop(field) if field in named else defaults[field],)
        if named or len(values) != len(fields):
            raise TypeError(f"{cls.__name__} takes {', '.join(fields)}, each once")
    return tuple.__new__(cls, values)


def _make(cls: type, values: Iterable[object]) -> object:
    return cls(*values)


def _replace(self: tuple[object, ...], **changes: object) -> object:
    kind: Callable[..., object] = type(self)
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    values = [changes.pop(field, value) for field, value in zip(fields, self, strict=True)]
    if changes:
        raise ValueError(f"{type(self).__name__} has no {', '.join(changes)}")
    return kind(*values)


def _asdict(self: tuple[object, ...]) -> dict[str, object]:
    return dict(zip(type(self)._fields, self, strict=True))  # type: ignore[attr-defined]


def _repr(self: tuple[object, ...]) -> str:
    values = (f"{name}={value!r}" for name, value in _asdict(self).items())
    return f"{type(self).__name__}({', '.join(values)})"


_METHODS: dict[str, object] = {
    "__new__": _new,
    "__repr__": _repr,
    "_make": classmethod(_make),
    "_replace": _replace,
    "_asdict": _asdict,
}

# A class of its own metaclass, which makes plain tuples out of the classes that name it as their base.
NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})
