"""Imports modules and tells which it could not. Run by the interpreter of an image, alone.

Arguments: ``name=file`` for each shared library that ctypes is asked for by a short name, then the modules.
Every line of the output is the ``ascii()`` of a tuple: it needs no module that could be missing itself.
"""

from __future__ import annotations

import sys


def main() -> None:
    import posix

    # What a module prints when it is imported must not mix with this.
    output = posix.dup(1)
    posix.dup2(2, 1)

    def tell(*row: object) -> None:
        data = ascii(row).encode() + b"\n"
        while data:
            data = data[posix.write(output, data) :]

    try:
        import _imp

        frozen = list(_imp._frozen_module_names())  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        frozen = []
    tell("start", [*sys.builtin_module_names, *frozen])
    libraries = {}
    modules = []
    for word in sys.argv[1:]:
        name, equals, file = word.partition("=")
        if equals:
            libraries[name] = file
        else:
            modules.append(name)
    try:
        import ctypes

        # As PID 1 does it (pyinit.devices.udev): the image has no ctypes.util.
        shim = type(sys)("ctypes.util")
        vars(shim)["find_library"] = libraries.get
        sys.modules["ctypes.util"] = vars(ctypes)["util"] = shim
    except BaseException:
        pass  # Whoever imports ctypes fails the same way.
    for module in modules:
        try:
            __import__(module)
        except BaseException as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            tell("failed", module, type(error).__name__, str(error), missing)
    # Some are there without a file: collections.abc, os.path.
    tell("end", list(sys.modules))


if __name__ == "__main__":
    main()
