"""Features: what an image can do beyond booting, each one small class.

A feature has the name of its counterpart in ``pyinit/``, if it has one. Other packages add theirs as entry
points of the group ``pyinit_image.features`` whose objects are subclasses of :class:`Feature`; see
docs/extending.md.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import metadata
from typing import NamedTuple, TypeVar

from pyinit.config.distance import closest
from pyinit.text import printable

from ..errors import BuildError
from ..plan import Plan
from .base import Feature, Need, Target
from .bcache import Bcache
from .fsck import Fsck
from .keymap import Keymap
from .loop import Loop
from .luks import Luks
from .lvm import Lvm
from .md import Md
from .multipath import Multipath
from .overlay import Overlay
from .resume import Resume
from .tokens import Fido2, Tpm2
from .verity import Verity
from .watchdog import Watchdog

__all__ = [
    "BUILT_IN",
    "GROUP",
    "Chosen",
    "Feature",
    "Need",
    "Target",
    "choose",
    "collect",
    "known",
    "modules",
    "words",
]

GROUP = "pyinit_image.features"

Result = TypeVar("Result")


class Chosen(NamedTuple):
    """A feature of this image, and why."""

    feature: Feature
    reason: str


#: The features of this package.
BUILT_IN: tuple[type[Feature], ...] = (
    Bcache,
    Fido2,
    Fsck,
    Keymap,
    Loop,
    Luks,
    Lvm,
    Md,
    Multipath,
    Overlay,
    Resume,
    Tpm2,
    Verity,
    Watchdog,
)


def known(plan: Plan, asked: Sequence[str] = ()) -> dict[str, Feature]:
    """Every feature by name, sorted. One of another package that cannot be imported is a warning, or an error
    when it was asked for."""
    found: dict[str, Feature] = {kind.name: kind() for kind in BUILT_IN}
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        owner = (
            f"feature {printable(entry.name)} of {printable(entry.dist.name if entry.dist else entry.value)}"
        )
        try:
            kind = entry.load()
            if not (isinstance(kind, type) and issubclass(kind, Feature)):
                raise TypeError(f"{entry.value} is not a subclass of pyinit_image.features.Feature")
            if entry.name in found:
                raise ValueError("there is another one of that name")
            if kind.name != entry.name:
                raise ValueError(f"its class calls itself {kind.name!r}")
            found[entry.name] = kind()
        except Exception as error:
            message = f"{owner} cannot be used: {_tell(error)}"
            if entry.name in asked:
                raise BuildError(message) from error
            plan.warn(message)
    return dict(sorted(found.items()))


def choose(plan: Plan, target: Target, asked: Sequence[str], without: Sequence[str]) -> list[Chosen]:
    """The features of an image: those asked for, and those that are wanted unless they are in ``without``.

    :class:`BuildError` for a name that is not known, and for one asked for that lacks what it needs.
    """
    features = known(plan, asked)
    for option, names in (("--feature", asked), ("--no-feature", without)):
        for name in names:
            if name not in features:
                near = closest(name, features, 3)
                raise BuildError(
                    f"{option} {printable(name)}: there is no such feature"
                    + (f"; did you mean {printable(near)}?" if near else ""),
                    hint="Known: " + (printable(", ".join(features)) or "none is installed"),
                )
    for name in asked:
        if name in without:
            raise BuildError(
                f"--feature {printable(name)} and --no-feature {printable(name)} exclude each other"
            )
    chosen = []
    for name, feature in features.items():
        if name in without:
            plan.leave_out(name, f"a feature, left out by --no-feature {name}")
            continue
        if name in asked:
            reason = f"--feature {name}"
        else:
            reason = _guard(feature, partial(feature.wanted, target))
        if not reason:
            plan.leave_out(name, f"a feature ({feature.summary}) that this image has no use for")
            continue
        lacks = _guard(feature, partial(_missing, feature, target))
        if not lacks:
            chosen.append(Chosen(feature, reason))
            continue
        missing = ", ".join(printable(" or ".join(need.paths)) for need in lacks)
        message = (
            f"feature {printable(name)} needs {missing}, missing in {printable(str(target.sysroot.root))}"
        )
        packages = ", ".join(dict.fromkeys(need.package for need in lacks if need.package))
        if name in asked:
            raise BuildError(
                message, hint=f"Install in the target system: {printable(packages)}" if packages else ""
            )
        plan.warn(f"{message}; left out although {reason}")
    return chosen


def modules(target: Target, chosen: Iterable[Chosen]) -> list[tuple[str, str]]:
    """(name, reason) of the kernel modules of the features."""
    return [
        (name, f"feature {feature.name}: {reason}")
        for feature, reason in chosen
        for name in _guard(feature, partial(_modules, feature, target))
    ]


def words(target: Target, chosen: Iterable[Chosen], cmdline: str) -> str:
    """The words that are sealed into the image: those of the features, then ``cmdline``, which count more."""
    found = [_guard(feature, partial(feature.words, target)) for feature, _ in chosen]
    return " ".join(filter(None, (*found, cmdline)))


def encrypted_root(target: Target, chosen: Iterable[Chosen]) -> str:
    """Why the root cannot be reached without a secret, as the first feature that knows of it says."""
    reasons = (_guard(feature, partial(feature.encrypted_root, target)) for feature, _ in chosen)
    return next(filter(None, reasons), "")


def collect(plan: Plan, target: Target, chosen: Iterable[Chosen]) -> None:
    """Add the entries of the features."""
    for feature, reason in chosen:
        plan.source = f"feature {feature.name}"
        _guard(feature, partial(feature.add, plan, target, reason))


def _modules(feature: Feature, target: Target) -> list[str]:
    return list(feature.modules(target))


def _missing(feature: Feature, target: Target) -> list[Need]:
    return [need for need in feature.needs(target) if target.sysroot.find(*need.paths) is None]


def _guard(feature: Feature, work: Callable[[], Result]) -> Result:
    """Run the code of a feature; what it raises is told as its failure, not as ours."""
    try:
        return work()
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(
            f"feature {printable(feature.name)} failed: {_tell(error)}",
            hint="Build without it (--no-feature), and tell the author of the feature.",
        ) from error


def _tell(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f" ({printable(last.filename)} line {last.lineno})" if last and last.filename != __file__ else ""
    return f"{type(error).__name__}: {printable(str(error))}{where}"
