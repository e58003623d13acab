"""Whether the Python of an image finds everything that is imported on the way of a boot.

The image's own interpreter imports all modules of pyinit, and pyudev and psutil, from an unpacked copy: only
it knows its byte code and its extension modules. Imports inside functions, which a boot may reach late, are
read from the sources of pyinit and of hooks; hooks are not executed.
"""

from __future__ import annotations

import ast
import platform
import posixpath
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyinit.hooks import PACKAGE as HOOKS
from pyinit.text import printable
from pyinit_image import archive, cpio, elf, pyscan
from pyinit_image.errors import BuildError
from pyinit_image.python import EXCLUDED, EXTRA_ROOTS, MACHINES, PACKAGES, UNPACKING
from pyinit_image.sysroot import Sysroot

from .finding import Finding, some
from .unpacked import Unpacked

#: Seconds after which an import that does not end is given up.
TIMEOUT = 120

_SUFFIX = re.compile(r"(?:\.py|\.pyc|(?:\.[\w-]+)?\.so)$")
#: What the interpreter needs nothing of, and what takes long to write.
_LEFT_OUT = ("/usr/lib/modules/", "/lib/modules/", "/usr/lib/firmware/", "/lib/firmware/")

_REBUILD = "Build the image again; a module of the target's Python may have been missing at that time."


def library(interpreter: str) -> tuple[str, ...]:
    """Where the modules of ``/usr/bin/python3.11`` may be."""
    name = posixpath.basename(interpreter)
    places = (f"/usr/lib/{name}", f"/usr/lib64/{name}")
    return tuple(f"{place}{below}" for place in places for below in ("", "/lib-dynload"))


def table(image: Unpacked, interpreter: str) -> dict[str, str]:
    """The modules that the interpreter finds: name to path."""
    found: dict[str, str] = {}
    for directory in (PACKAGES, *library(interpreter)):
        prefix = f"{image.resolve(directory) or directory}/"
        for path, _ in image.files():
            relative = path.removeprefix(prefix)
            if relative is path or "__pycache__/" in relative or not _SUFFIX.search(relative):
                continue
            name = _SUFFIX.sub("", relative).replace("/", ".").removesuffix(".__init__")
            found.setdefault(name, path)
    return found


def check(
    image: Unpacked, interpreter: str, libraries: Mapping[str, str], missing: frozenset[str]
) -> list[Finding]:
    """Import everything; ``missing`` are libraries that are reported already.

    ``interpreter`` is a resolved path, ``libraries`` are the names that were sealed for ctypes.
    """
    modules = table(image, interpreter)
    binary = elf.parse(image.nodes[interpreter].data, interpreter)
    if binary is None or binary.machine != MACHINES.get(platform.machine()):
        message = f"{printable(interpreter)} cannot be executed on this machine: imports were not tried"
        hint = "Verify the image on a machine of its own architecture."
        return [Finding("python", printable(interpreter), message, hint, False)]
    own = [name for name, path in modules.items() if name.split(".")[0] == "pyinit" and path.endswith(".py")]
    names = [*(name for name, _ in EXTRA_ROOTS), *sorted(own), "pyudev", "psutil"]
    try:
        rows = _run(image, interpreter, binary, libraries, names)
    except BuildError as error:
        return [Finding("python", printable(interpreter), str(error), error.hint, True)]
    present = set(modules).union(rows.builtin, rows.loaded)
    absent: dict[str, set[str]] = defaultdict(set)
    broken: dict[str, set[str]] = defaultdict(set)
    for name, problem, module in rows.failed:
        if module:
            absent[module].add(name)
        elif not any(library in problem for library in missing):
            broken[problem].add(name)
    findings: list[Finding] = []
    for user, line, module in _sources(image, modules, present, findings):
        absent[_shortest(module, present)].add(f"{user} line {line}")
    for module, users in sorted(absent.items()):
        message = (
            f"the Python module {printable(module)} is missing; it is imported by {some(users)}: the boot "
            "ends with E-INTERNAL when it gets there, or PID 1 does not even start"
        )
        findings.append(Finding("python", PACKAGES, message, _REBUILD, True))
    for problem, users in sorted(broken.items()):
        message = (
            f"{some(users)} cannot be imported: {printable(problem)}; the boot ends with E-INTERNAL when it "
            "gets there, or PID 1 does not even start"
        )
        path = modules.get(min(users), PACKAGES)
        findings.append(Finding("python", printable(path), message, _REBUILD, True))
    return findings


class _Rows:
    """What the probe said."""

    def __init__(self, output: str) -> None:
        self.builtin: tuple[str, ...] = ()
        self.failed: list[tuple[str, str, str]] = []
        """(module that was asked for, type and text of the exception, the module that is missing)"""
        self.loaded: tuple[str, ...] = ()
        """All that was imported in the end."""
        self.ended = False
        for line in output.splitlines():
            row = ast.literal_eval(line)
            if row[0] == "start":
                self.builtin = tuple(row[1])
            elif row[0] == "failed":
                self.failed.append((row[1], f"{row[2]}: {row[3]}", row[4] or ""))
            elif row[0] == "end":
                self.loaded = tuple(row[1])
                self.ended = True


def _run(
    image: Unpacked, interpreter: str, binary: elf.Object, libraries: Mapping[str, str], names: list[str]
) -> _Rows:
    wanted: dict[str, cpio.Member] = {
        path: node for path, node in image.nodes.items() if not path.startswith(_LEFT_OUT)
    }
    with tempfile.TemporaryDirectory(prefix="pyinit-image-") as folder:
        copy = Path(folder, "image")
        archive.extract(wanted, copy)
        inside = Sysroot(copy)
        words = [str(inside.host(interpreter)), "-S", "-s", "-P", "-B"]
        loader = inside.resolve(binary.interpreter) if binary.interpreter else None
        if loader is not None:
            # By its own loader, on its own libraries: that takes no root.
            places = [inside.resolve(directory) for directory in elf.default_directories(binary)]
            search = dict.fromkeys(str(inside.host(place.path)) for place in places if place is not None)
            words = [str(inside.host(loader.path)), "--library-path", ":".join(search), *words]
        words += [str(Path(__file__).with_name("probe.py"))]
        words += [f"{short}={file}" for short, file in libraries.items()]
        try:
            done = subprocess.run(
                [*words, *names],
                env={
                    "PYTHONHOME": str(inside.host("/usr")),
                    "PYTHONPATH": str(inside.host(PACKAGES)),
                    "PYTHONHASHSEED": "0",
                    "PYTHONUTF8": "1",
                    "PYTHONCOERCECLOCALE": "0",
                },
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
            rows = _Rows(done.stdout.decode("ascii", "replace"))
        except (OSError, ValueError, SyntaxError, subprocess.TimeoutExpired) as error:
            raise BuildError(
                f"{printable(interpreter)} could not be tried: {printable(str(error))}",
                hint="Set TMPDIR to a directory with space from which programs may be executed.",
            ) from error
    if not rows.ended:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BuildError(
            f"{printable(interpreter)} ends with status {done.returncode} before it has imported everything, "
            f"so PID 1 ends and the kernel panics: {printable(lines[-1] if lines else 'no message')}",
            hint=_REBUILD,
        )
    return rows


def _sources(
    image: Unpacked, modules: Mapping[str, str], present: set[str], findings: list[Finding]
) -> Iterator[tuple[str, int, str]]:
    """(module, line, module that it imports and that is missing), from the sources of pyinit and hooks."""
    trees: dict[str, ast.Module] = {}
    for name, path in modules.items():
        if name.split(".")[0] in ("pyinit", HOOKS) and path.endswith(".py"):
            try:
                trees[name] = ast.parse(image.nodes[path].data)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                message = (
                    f"{printable(path)} is no Python: {printable(str(error))}; the boot ends with E-INTERNAL"
                )
                findings.append(Finding("python", printable(path), message, _REBUILD, True))
    for name, parsed in trees.items():
        package = name if modules[name].endswith("/__init__.py") else name.rpartition(".")[0]
        for target, items, line, guarded, _ in pyscan.imports(parsed, package):
            # That pyinit catches what goes wrong in it does not mean that it could do without.
            optional = guarded and target.split(".")[0] != "pyinit"
            # An image without modules that pyinit unpacks has not what it would take.
            optional = optional or (name, target) in UNPACKING
            if optional or ("*", target) in EXCLUDED or (name, target) in EXCLUDED:
                continue
            if target not in present:
                yield name, line, target
            elif target in trees and modules[target].endswith("/__init__.py"):
                # "from package import name": a module, or something that the package defines.
                defined = _defined(trees[target])
                for item in items:
                    if item != "*" and item not in defined and f"{target}.{item}" not in present:
                        yield name, line, f"{target}.{item}"


def _defined(tree: ast.Module) -> set[str]:
    """The names that a module defines anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def _shortest(module: str, present: set[str]) -> str:
    """The topmost missing package of ``module``: what the import of it complains of."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((name for name in names if name not in present), module)
