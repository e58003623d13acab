"""Finds and compiles the Python modules that an image needs. Run by the *target's* interpreter.

Only that interpreter can parse its own standard library and write its own byte code, so this file is executed
by it (3.11 or later), alone: it imports nothing of ours. Standard input is a JSON table:

``path``      where modules are looked up: [directory on this machine, directory in the image, whether the
              source is kept, the top-level names it is used for or null for all]
``roots``     [module, reason] to start from
``exclude``   [importing module or "*", imported module] never to follow
``thorough``  packages and modules whose imports inside functions are followed, too; elsewhere they belong to
              features that a boot does not use
``strict``    packages whose imports must exist unless an ImportError is caught
``checked``   packages whose byte code is only used while the source beside it is the one it was made of

Standard output is one line of JSON, then the blobs it refers to by (offset, length).
"""

from __future__ import annotations

import sys

#: What the interpreter imports by itself before any script runs.
STARTUP = sorted(sys.modules)

import ast  # noqa: E402
import importlib.machinery  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import marshal  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

UNKNOWN = object()
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.GtE: lambda left, right: left >= right,
    ast.Gt: lambda left, right: left > right,
    ast.LtE: lambda left, right: left <= right,
    ast.Lt: lambda left, right: left < right,
}


def constant(node: ast.expr) -> Any:
    """The value of an expression that is the same on every Linux system at run time, or UNKNOWN."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        values = [constant(item) for item in node.elts]
        return UNKNOWN if UNKNOWN in values else values
    dotted = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    if dotted in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "t.TYPE_CHECKING"):
        return False
    known = {"sys.platform": "linux", "os.name": "posix", "sys.version_info": list(sys.version_info)}
    if dotted in known:
        return known[dotted]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = constant(node.operand)
        return UNKNOWN if value is UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        values = [constant(item) for item in node.values]
        decisive = isinstance(node.op, ast.Or)
        if any(value is not UNKNOWN and bool(value) is decisive for value in values):
            return decisive
        return UNKNOWN if UNKNOWN in values else not decisive
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        # Only ever true in the program that is executed, which is none of the modules.
        if ast.unparse(node.left) == "__name__" and isinstance(node.ops[0], ast.Eq):
            right = constant(node.comparators[0])
            return False if right == "__main__" else UNKNOWN
        left, right = constant(node.left), constant(node.comparators[0])
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        try:
            return COMPARE[type(node.ops[0])](left, right)
        except (KeyError, TypeError):
            return UNKNOWN
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "startswith"
        and ast.unparse(node.func.value) == "sys.platform"
        and len(node.args) == 1
    ):
        prefix = constant(node.args[0])
        return "linux".startswith(prefix) if isinstance(prefix, str) else UNKNOWN
    return UNKNOWN


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, tuple[str, ...], int, bool, bool]]:
    """Yield (module, names, line, guarded, inside a function) for every import that can be executed.

    ``names`` are those of ``from module import names``; ``guarded`` means that an ImportError is caught.
    """
    todo: list[tuple[ast.AST, bool, bool]] = [(node, False, False) for node in reversed(tree.body)]
    while todo:
        node, guarded, inside = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), node.lineno, guarded, inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            if base:
                yield base, tuple(alias.name for alias in node.names), node.lineno, guarded, inside
        elif isinstance(node, ast.If):
            value = constant(node.test)
            branches = [*node.body, *node.orelse]
            if value is not UNKNOWN:
                branches = node.body if value else node.orelse
            todo += [(child, guarded, inside) for child in reversed(branches)]
        elif isinstance(node, ast.Try | ast.TryStar):
            caught = any(catches_import_error(handler.type) for handler in node.handlers)
            rest: list[ast.AST] = [*node.handlers, *node.orelse, *node.finalbody]
            todo += [(child, guarded, inside) for child in reversed(rest)]
            todo += [(child, guarded or caught, inside) for child in reversed(node.body)]
        else:
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
            todo += [(child, guarded, deeper) for child in reversed(children)]


def catches_import_error(node: ast.expr | None) -> bool:
    if node is None:
        return True
    if isinstance(node, ast.Tuple):
        return any(catches_import_error(item) for item in node.elts)
    names = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")
    return isinstance(node, ast.Name) and node.id in names


def strip_docstrings(tree: ast.Module) -> None:
    """Remove what only help() reads: a good part of all byte code. Assertions stay, as without -OO."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str())) as first, *rest]:
                node.body[:] = rest or [ast.copy_location(ast.Pass(), first)]


class Finder:
    """Looks modules up in directories of a sysroot as the interpreter of the image will."""

    def __init__(self, path: list[Any]) -> None:
        self.path = path
        self.listings: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> tuple[str, str, str, bool] | None:
        """(kind, file on this machine, file in the image, source kept?) of a module, or None."""
        if name in sys.builtin_module_names:
            return "builtin", "", "", False
        relative = name.replace(".", "/")
        for directory, image, keep, only in self.path:
            if only is not None and name.partition(".")[0] not in only:
                continue
            base, _, last = f"{directory}/{relative}".rpartition("/")
            names = self.listing(base)
            place = f"{image}/{relative}"
            if last in names and "__init__.py" in self.listing(f"{base}/{last}"):
                return "package", f"{base}/{last}/__init__.py", f"{place}/__init__.py", keep
            for suffix in importlib.machinery.EXTENSION_SUFFIXES:
                if last + suffix in names:
                    return "extension", f"{base}/{last}{suffix}", place + suffix, keep
            if f"{last}.py" in names:
                return "source", f"{base}/{last}.py", f"{place}.py", keep
        return None

    def listing(self, directory: str) -> frozenset[str]:
        if directory not in self.listings:
            try:
                self.listings[directory] = frozenset(os.listdir(directory))
            except OSError:
                self.listings[directory] = frozenset()
        return self.listings[directory]


def scan(request: dict[str, Any]) -> tuple[bytes, list[bytes]]:
    finder = Finder(request["path"])
    exclude = {tuple(pair) for pair in request["exclude"]}
    thorough, strict = set(request["thorough"]), set(request["strict"])
    todo: list[tuple[str, str, str | None, int, bool]]
    todo = [(name, reason, None, 0, True) for name, reason in request["roots"]]
    todo += [
        (name, "the interpreter starts with it", None, 0, True) for name in STARTUP if name != "__main__"
    ]
    modules: dict[str, dict[str, Any]] = {}
    missing: list[tuple[str, str | None, int]] = []
    blobs: list[bytes] = []
    offset = 0
    while todo:
        name, reason, parent, line, guarded = todo.pop(0)
        if name in modules or ("*", name) in exclude or (parent, name) in exclude:
            continue
        if "." in name:
            above = name.rpartition(".")[0]
            if above not in modules:
                todo[:0] = [(above, f"package of {name}", parent, line, guarded)]
                todo.insert(1, (name, reason, parent, line, guarded))
                if finder.find(above) is None:
                    modules[above] = {"kind": "missing"}
                continue
        frozen = importlib.machinery.FrozenImporter.find_spec(name) is not None
        found = finder.find(name)
        if found is None:
            modules[name] = {"kind": "frozen" if frozen else "missing"}
            if not frozen and not guarded:
                missing.append((name, parent, line))
            continue
        kind, file, place, keep = found
        row = modules[name] = {"kind": kind, "reason": reason, "parent": parent, "line": line}
        if kind == "builtin":
            continue
        row["path"] = place
        row["file"] = file
        if kind == "extension":
            continue
        with open(file, "rb") as stream:
            source = stream.read()
        tree = ast.parse(source, place)
        package = name if kind == "package" else name.rpartition(".")[0]
        top = name.partition(".")[0]
        for target, names, at, caught, inside in imports(tree, package):
            if inside and top not in thorough and name not in thorough:
                continue
            lenient = caught or top not in strict
            todo.append((target, "imported", name, at, lenient))
            for item in names:
                # "from package import name": the name may be a module of the package.
                if item != "*" and finder.find(f"{target}.{item}") is not None:
                    todo.append((f"{target}.{item}", "imported", name, at, lenient))
        # The frozen copy in the interpreter is the one that is used.
        if frozen and name != "os":
            row["kind"] = "frozen"
            continue
        if top not in request.get("checked", ()):
            strip_docstrings(tree)
        code = marshal.dumps(compile(tree, place, "exec", dont_inherit=True, optimize=0))
        # Byte code that goes by the hash of its source (PEP 552): bit 1 asks for the comparison.
        flags = 3 if top in request.get("checked", ()) else 1
        head = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + importlib.util.source_hash(source)
        row["code"] = [offset, len(head) + len(code)]
        blobs += (head, code)
        offset += len(head) + len(code)
        if keep:
            row["source"] = [offset, len(source)]
            blobs.append(source)
            offset += len(source)
    result = {
        "modules": modules,
        "missing": missing,
        "version": list(sys.version_info[:3]),
        "tag": sys.implementation.cache_tag,
        "listed": {
            directory: sorted(names) if os.path.isdir(directory) else None
            for directory, names in finder.listings.items()
        },
    }
    return json.dumps(result).encode() + b"\n", blobs


def main() -> None:
    header, blobs = scan(json.load(sys.stdin))
    output = sys.stdout.buffer
    output.write(header)
    output.writelines(blobs)
    output.flush()


if __name__ == "__main__":
    main()
