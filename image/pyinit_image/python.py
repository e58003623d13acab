"""The Python of the image: the target's own interpreter, the modules that are needed, and our packages."""

from __future__ import annotations

import importlib.util
import json
import platform
import posixpath
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinit.hooks import PACKAGE as HOOKS
from pyinit.text import printable

from .elf import Walker
from .errors import BuildError
from .hooks import Hook
from .plan import Plan
from .sysroot import Sysroot
from .trace import ABSENT, Trace

PYTHON = "/usr/bin/python3"
MINIMUM = (3, 11)
#: Where our packages are in the image; ``PYTHONPATH`` of the trampoline names it.
PACKAGES = "/usr/lib/pyinit"
#: ``e_machine`` of the interpreters that this machine can execute.
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "riscv64": "EM_RISCV"}

#: Modules that no import statement names but that a boot needs.
EXTRA_ROOTS = (
    ("encodings.utf_8", "the encoding of PYTHONUTF8"),
    ("encodings.ascii", "JSON and version strings are ASCII"),
    ("encodings.latin_1", "bytes shown one by one"),
    ("traceback", "explains an exception"),
    ("linecache", "source lines of a traceback"),
)

#: What counts as ours in ``ls --by-reason``.
OWN = ("pyinit", "pyudev", "psutil")

#: Imports inside functions are followed in our packages, and in what a failure must be able to use.
THOROUGH = (
    "pyinit",
    HOOKS,
    "pyudev",
    "psutil",
    "traceback",
    "linecache",
    "code",
    "codeop",
    "subprocess",
    "selectors",
)

#: (importing module, imported module): reason not to follow.
EXCLUDED = {
    ("*", "ctypes.util"): "pyinit puts the library names that were sealed at build time in its place",
    ("*", "importlib._bootstrap"): "frozen into the interpreter under another name",
    ("*", "importlib._bootstrap_external"): "frozen into the interpreter under another name",
    ("*", "tracemalloc"): "allocation traces are never switched on",
    ("*", "_py_abc"): "stands in for a C module that every CPython has",
    ("*", "_pydatetime"): "stands in for a C module that every CPython has",
    ("*", "ntpath"): "paths of another operating system",
    ("psutil", "psutil._pswindows"): "another operating system",
    ("psutil", "psutil._psosx"): "another operating system",
    ("psutil", "psutil._psbsd"): "another operating system",
    ("psutil", "psutil._pssunos"): "another operating system",
    ("psutil", "psutil._psaix"): "another operating system",
    ("traceback", "ast"): "only for the marks below a part of a line, which a traceback then does without",
    ("code", "readline"): "the relay of the rescue shell edits the lines of all that runs there",
    ("psutil._common", "inspect"): "only with PSUTIL_DEBUG set",
    ("psutil._common", "ipaddress"): "only for the broadcast addresses of network interfaces",
}


#: The same for an image without modules that pyinit unpacks.
UNPACKING = {("pyinit.kernel.modules", "lzma"): "only unpacks modules, and there are none for it"}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The target's interpreter."""

    path: str
    """Resolved: ``/usr/bin/python3.11``."""
    version: tuple[int, int]
    library: str
    """Directory of its standard library."""


def find(sysroot: Sysroot, walker: Walker) -> Interpreter:
    """The interpreter of ``sysroot``; :class:`BuildError` when there is none that pyinit can use."""
    root = printable(str(sysroot.root))
    need = f"pyinit needs Python {MINIMUM[0]}.{MINIMUM[1]} or later there"
    found = sysroot.resolve(PYTHON)
    if found is None or not sysroot.host(found.path).is_file():
        raise BuildError(
            f"{PYTHON} is missing in {root}; {need}", hint="Install the package python3 in the target system."
        )
    match = re.search(r"python(\d+)\.(\d+)$", found.path)
    if match is None:
        raise BuildError(
            f"{PYTHON} in {root} leads to {printable(found.path)}, which does not tell its version; {need}"
        )
    version = (int(match[1]), int(match[2]))
    if version < MINIMUM:
        raise BuildError(f"{PYTHON} in {root} is Python {version[0]}.{version[1]}; {need}")
    binary = walker.object(found.path)
    if binary is None:
        raise BuildError(f"{printable(found.path)} in {root} is no ELF program; {need}")
    if binary.machine != MACHINES.get(platform.machine()):
        raise BuildError(
            f"{root} is a system for {binary.machine.removeprefix('EM_').lower()}, "
            f"this machine is {platform.machine()}: its Python cannot be executed here",
            hint="Build on a machine of the target's architecture.",
        )
    name = f"python{version[0]}.{version[1]}"
    for library in (f"/usr/lib/{name}", f"/usr/lib64/{name}"):
        if sysroot.is_file(f"{library}/os.py"):
            return Interpreter(found.path, version, library)
    raise BuildError(
        f"the standard library of {printable(found.path)} is missing in {root}: no /usr/lib/{name}/os.py",
        hint=f"Install the package lib{name}-stdlib in the target system.",
    )


class Scan:
    """The search for modules, as a process of the target's interpreter. Started early, collected late."""

    def __init__(
        self, sysroot: Sysroot, walker: Walker, hooks: Sequence[Hook] = (), *, unpacks: bool = True
    ) -> None:
        self.sysroot = sysroot
        self.interpreter = find(sysroot, walker)
        self.excluded = EXCLUDED if unpacks else EXCLUDED | UNPACKING
        self.modules: frozenset[str] = frozenset()
        """The names of all modules that were found, once there is a result."""
        self._folder = tempfile.TemporaryDirectory(prefix="pyinit-image-")
        own = package_directory("pyinit")
        roots = [[name, reason] for name, reason in EXTRA_ROOTS]
        roots += [[name, "part of pyinit"] for name in _modules(own)]
        roots += [[name, "devices and processes"] for name in ("pyudev", "psutil")]
        library = str(sysroot.host(self.interpreter.library))
        path: list[list[object]] = [[str(own.parent), PACKAGES, True, ["pyinit"]]]
        for name in ("pyudev", "psutil"):
            path.append([str(package_directory(name).parent), PACKAGES, False, [name]])
        if hooks:
            roots += [[f"{HOOKS}.{hook.name}", hook.origin] for hook in hooks]
            path.append([self._folder.name, PACKAGES, True, [HOOKS]])
            package = Path(self._folder.name, HOOKS)
            package.mkdir()
            (package / "__init__.py").touch()
            for hook in hooks:
                (package / f"{hook.name}.py").write_bytes(hook.source)
        path.append([library, self.interpreter.library, False, None])
        path.append([f"{library}/lib-dynload", f"{self.interpreter.library}/lib-dynload", False, None])
        request = {
            "path": path,
            "roots": roots,
            "exclude": list(self.excluded),
            "thorough": THOROUGH,
            "strict": ["pyinit", HOOKS],
            "checked": [HOOKS],
        }
        self._process = subprocess.Popen(
            [*_command(sysroot, walker, self.interpreter), str(Path(__file__).with_name("pyscan.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Nothing of the builder's environment: equal inputs shall give equal byte code.
            env={"PYTHONHOME": str(sysroot.host("/usr")), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            cwd="/",
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended early; result() says why.

    def result(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the end; return the table of modules and the blobs that it refers to."""
        output, errors = self._process.communicate()
        self._folder.cleanup()
        if self._process.returncode != 0:
            lines = errors.decode("utf-8", "replace").strip().splitlines()
            raise BuildError(
                f"{printable(self.interpreter.path)} could not list the modules it needs "
                f"(status {self._process.returncode}): {printable(lines[-1] if lines else 'no message')}"
            )
        header, _, blobs = output.partition(b"\n")
        table = json.loads(header)
        self.modules = frozenset(table["modules"])
        for name, importer, line in table["missing"]:
            raise BuildError(
                f"{printable(importer)} line {line} imports {printable(name)}, which this Python "
                f"{'.'.join(map(str, table['version']))} does not have"
            )
        return table, blobs

    def is_temporary(self, path: str) -> bool:
        """Whether ``path`` is a copy that was made for the search."""
        return path.startswith(self._folder.name)

    def cancel(self) -> None:
        """End the process when its result is not wanted any more."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def collect(plan: Plan, scan: Scan) -> Trace:
    """Add the interpreter and the modules; return what was looked at outside the target's eyes."""
    plan.source = "python"
    interpreter = scan.interpreter
    plan.file(PYTHON, "runs pyinit, the first process")
    table, blobs = scan.result()
    modules: dict[str, Any] = table["modules"]
    trace = Trace()
    for directory, names in table["listed"].items():
        if scan.is_temporary(directory):
            continue
        if names is None:
            trace.listed[directory] = ABSENT
        else:
            trace.list(directory, names)
    for row in modules.values():
        if "file" in row and not scan.is_temporary(row["file"]):
            trace.look(row["file"])
    if modules.get("psutil._psutil_linux", {}).get("kind") != "extension":
        raise BuildError(
            f"psutil in {printable(str(package_directory('psutil')))} was compiled for another Python than "
            f"{'.'.join(map(str, table['version']))} of the target",
            hint="Install the wheel of psutil, which fits all versions: pip install psutil",
        )

    for (_, name), why in scan.excluded.items():
        if name not in modules:
            plan.leave_out(name, f"a Python module: {why}")

    def place(name: str | None) -> str | None:
        row = modules.get(name or "", {})
        if row.get("kind") == "extension" or "source" in row:
            return str(row["path"])
        return f"{row['path']}c" if "code" in row else None

    for name, row in sorted(modules.items()):
        top = name.partition(".")[0]
        plan.source = "hooks" if top == HOOKS else "pyinit" if top in OWN else "python"
        parent = place(row.get("parent")) or interpreter.path
        reason = row.get("reason", "")
        if row.get("parent"):
            reason += f" by {row['parent']} line {row['line']}"
        if row["kind"] == "extension":
            if row["path"].startswith(PACKAGES):
                plan.foreign(row["path"], Path(row["file"]).read_bytes(), reason, parent)
            else:
                plan.file(row["path"], reason, parent)
        if "code" not in row:
            continue
        path, (start, size) = row["path"], row["code"]
        code = blobs[start : start + size]
        if "source" in row:
            start, size = row["source"]
            plan.data(path, blobs[start : start + size], reason, parent)
            directory, base = posixpath.split(path)
            cached = f"{directory}/__pycache__/{base.removesuffix('.py')}.{table['tag']}.pyc"
            plan.data(cached, code, "its byte code", path)
        else:
            plan.data(f"{path}c", code, reason, parent)
    return trace


def package_directory(name: str) -> Path:
    """Where a package of the builder's own environment is."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"the Python package {name} is missing beside the builder",
            hint=f"Install it where pyinit-image is installed: pip install {name}",
        )
    return Path(spec.submodule_search_locations[0])


def _modules(package: Path) -> list[str]:
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def _command(sysroot: Sysroot, walker: Walker, interpreter: Interpreter) -> list[str]:
    """How to run the interpreter of a sysroot without being root: by its own loader, on its own libraries."""
    binary = walker.object(interpreter.path)
    assert binary is not None
    arguments = [str(sysroot.host(interpreter.path)), "-S", "-s", "-P", "-B"]
    loader = sysroot.resolve(binary.interpreter) if binary.interpreter else None
    if loader is None:
        return arguments
    directories: dict[str, None] = {}
    for soname in binary.needed:
        library = walker.library(soname, interpreter.path)
        found = sysroot.resolve(posixpath.dirname(library)) if library else None
        if found is not None:
            directories[str(sysroot.host(found.path))] = None
    return [str(sysroot.host(loader.path)), "--library-path", ":".join(directories), *arguments]
