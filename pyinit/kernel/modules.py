"""Loading kernel modules by system call, in the order that was worked out when the image was built.

No modprobe runs: the builder resolved dependencies, soft dependencies and modprobe.d options; what is left is
finit_module(2) for each file. The kernel's own requests still go through /sbin/modprobe.
"""

from __future__ import annotations

import os
from _thread import get_ident
from collections.abc import Callable, Collection, Iterable, Iterator
from errno import EEXIST, EINVAL, ENOEXEC, ENOMEM, EOPNOTSUPP
from fnmatch import fnmatchcase
from stat import S_IFCHR

from pyinit.config.cmdline import Word
from pyinit.config.sealed import ModuleIndex, underscored
from pyinit.kernel import memory
from pyinit.kernel.console import Console
from pyinit.kernel.files import names
from pyinit.kernel.patience import Patience
from pyinit.kernel.syscalls import MODULE_INIT_COMPRESSED_FILE, finit_module
from pyinit.record import now
from pyinit.text import printable

# Nodes that make the kernel ask for their module when they are opened: (module, node, minor number of major
# 10). Numbers: Documentation/admin-guide/devices.txt. Without this node udev's builtin `btrfs ready` says of
# every btrfs that it is incomplete, and nothing else would have btrfs loaded before the mount.
_STATIC_NODES = (("btrfs", "/dev/btrfs-control", 234),)
_MISC_MAJOR = 10

# A parameter of every module (Documentation/admin-guide/kernel-parameters.txt): that its driver may probe by
# and by. Loading it does not wait for the devices of other drivers, either, which is what matters here: a
# file system has none of its own.
_NO_WAITING = "async_probe"

_COMPRESSED = (".xz", ".zst", ".gz")
# Bytes at a time when a module is unpacked here.
_STEP = 1 << 18


class Modules:
    """The modules of the image and which of them are loaded."""

    def __init__(
        self,
        index: ModuleIndex,
        console: Console,
        words: Iterable[Word] = (),
        blacklist: Collection[str] = (),
        load: Callable[[int, str, int], None] = finit_module,
        is_live: Callable[[str], bool] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.index = index
        self._console = console
        self._load = load
        self._patience = patience or Patience(console)
        self._is_live = is_live or _is_live
        self._options = _command_line_options(words)
        self._blacklist = {name.replace("-", "_") for name in blacklist}
        self._done: dict[str, bool] = {}
        self._unpacks = False
        self.inserting: dict[int, str] = {}
        """By thread: the module that the kernel has been given, printable."""

    def load(self, name: str, options: str = "", *, quietly: bool = False) -> bool:
        """Load a module and what it needs; False when it is not in the image or the kernel refused it.

        ``options`` are given to all of them. ``quietly``: that the kernel refuses it is no news, for it is
        one of several, each for another CPU. A module that was refused is not tried again until
        :meth:`forget_failures`.
        """
        name = name.replace("-", "_")
        if name in self._done:
            return self._done[name]
        if name in self.index.builtin:
            return True
        entry = self.index.modules.get(name)
        if entry is None or name in self._blacklist:
            return False
        # A need that fails is no reason to give up: a soft one may fail, and for a hard one the kernel
        # itself refuses the module with "Unknown symbol".
        for need in entry.needs:
            if need not in self._done and need in self.index.modules and need not in self._blacklist:
                self._insert(need, self._console.debug, options)
        return self._insert(name, self._console.debug if quietly else self._console.warning, options)

    def load_all(self, names: Iterable[str]) -> None:
        """Load several modules."""
        for name in names:
            self.load(name)

    def load_first(self) -> None:
        """Load what makes loading the others faster; a CPU that cannot do it refuses (ENODEV) in silence."""
        for name in self.index.first:
            if name not in self._done and name in self.index.modules and name not in self._blacklist:
                self._insert(name, self._console.debug)

    def load_for_filesystem(self, fstype: str) -> None:
        """Load what the kernel would ask modprobe for (``fs-<type>``) before it has to."""
        for name in self.matching(f"fs-{fstype}"):
            self.load(name, _NO_WAITING)

    def forget_failures(self) -> None:
        """Let modules that were refused be tried again."""
        # Not the table itself: the thread that loads drivers may add to it meanwhile.
        self._done = {name: True for name, loaded in list(self._done.items()) if loaded}

    def matching(self, alias: str) -> list[str]:
        """The modules of the image that claim a device (its ``modalias``) or another alias."""
        alias = underscored(alias)
        return [name for pattern, name in self.index.aliases.candidates(alias) if matches(alias, pattern)]

    def why_not(self, name: str) -> str:
        """In words, why a module that claims a device does not drive it."""
        if name in self._blacklist:
            return "forbidden by rd.driver.blacklist="
        results = [entry["result"] for entry in self._console.record.data["modules"] if entry["name"] == name]
        if results and results[-1] not in ("loaded", "present"):
            return f"refused by the kernel: {printable(results[-1])}"
        return "loaded, and does not take it" if self._is_live(name) else "not loaded"

    def create_static_nodes(self) -> None:
        """Make the nodes by which modules of this image are loaded on demand, as kmod-static-nodes does."""
        for name, node, minor in _STATIC_NODES:
            if name in self.index.modules:
                try:
                    os.mknod(node, S_IFCHR | 0o600, os.makedev(_MISC_MAJOR, minor))
                except FileExistsError:
                    pass

    def load_for_devices(self) -> None:
        """Load the drivers of all devices present that have none, until no new device comes of it."""
        tried: set[str] = set()
        while True:
            present = set(driverless_modaliases(self.index.buses)) - tried
            found = [
                name for alias in sorted(present) for name in self.matching(alias) if name not in self._done
            ]
            if not found:
                return
            tried |= present
            self.load_all(found)

    def _give(self, fd: int, path: str, options: str) -> None:
        """Give the kernel a module, which it may not be able to unpack: it may be too old, or built without
        CONFIG_MODULE_DECOMPRESS."""
        if not path.endswith(_COMPRESSED):
            return self._load(fd, options, 0)
        if not self._unpacks:
            try:
                return self._load(fd, options, MODULE_INIT_COMPRESSED_FILE)
            except OSError as error:
                if error.errno not in (EOPNOTSUPP, EINVAL) or not path.endswith(".xz"):
                    raise
                self._unpacks = error.errno == EOPNOTSUPP
        plain = _unpack(fd)
        try:
            return self._load(plain, options, 0)
        finally:
            os.close(plain)

    def _insert(self, name: str, say: Callable[[str], None], more: str = "") -> bool:
        entry = self.index.modules[name]
        begin = now()
        if self._is_live(name):
            # udevd was first. The kernel would say so, too, but only after it had read the whole file.
            self._console.record.add("modules", name=name, start=begin, end=now(), result="present")
            self._done[name] = True
            return True
        try:
            fd = os.open(f"{self.index.directory}/{entry.path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                options = " ".join(filter(None, (entry.options, self._options.get(name, ""), more)))
                # A driver looks at its devices before the kernel returns.
                self.inserting[get_ident()] = printable(name)
                self._patience.call(f"loading {printable(name)}", self._give, fd, entry.path, options)
            finally:
                self.inserting.pop(get_ident(), None)
                os.close(fd)
            result = "loaded"
        except OSError as error:
            if error.errno == ENOMEM:
                raise memory.too_small(f"there is no memory for the module {printable(name)}") from error
            result = "present" if error.errno == EEXIST else str(error.strerror)
            if error.errno != EEXIST:
                say(f"module {printable(name)} cannot be loaded: {error.strerror}")
        self._console.record.add("modules", name=name, start=begin, end=now(), result=result)
        self._done[name] = result in ("loaded", "present")
        if self._done[name] and self._console.verbose:
            self._console.debug(f"module {printable(name)}: {result}")
        return self._done[name]


def _unpack(packed: int) -> int:
    """A descriptor of the plain module in the xz file ``packed``; OSError as the kernel would say it."""
    import lzma  # The kernels that need this have a part of their modules packed only.

    memory_file = os.memfd_create("module", os.MFD_CLOEXEC)
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        portion = b""
        os.lseek(packed, 0, os.SEEK_SET)
        while not stream.eof:
            if stream.needs_input and not (portion := os.read(packed, _STEP)):
                raise OSError(ENOEXEC, os.strerror(ENOEXEC))
            piece = stream.decompress(portion, _STEP)
            portion = b""
            while piece:
                piece = piece[os.write(memory_file, piece) :]
        # The kernel takes no file that somebody could write to (ETXTBSY).
        return os.open(f"/proc/self/fd/{memory_file}", os.O_RDONLY | os.O_CLOEXEC)
    except lzma.LZMAError as error:
        raise OSError(ENOEXEC, os.strerror(ENOEXEC)) from error
    except MemoryError as error:
        raise OSError(ENOMEM, os.strerror(ENOMEM)) from error
    finally:
        os.close(memory_file)


def matches(alias: str, pattern: str) -> bool:
    """Whether a pattern of modules.alias matches, as fnmatch(3) has it.

    Nearly all patterns have no other wildcard than ``*``; compiling a regular expression for each of them, as
    :mod:`fnmatch` does, takes longer than loading some modules.
    """
    first, *others = pattern.split("*")
    if "?" in pattern or "[" in pattern:
        return fnmatchcase(alias, pattern)
    if not alias.startswith(first):
        return False
    if not others:
        return alias == pattern
    place = len(first)
    for part in others[:-1]:
        place = alias.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return len(alias) - len(others[-1]) >= place and alias.endswith(others[-1])


def _is_live(name: str) -> bool:
    """Whether a module is loaded and initialised (show_initstate in kernel/module/main.c)."""
    try:
        with open(f"/sys/module/{name}/initstate", "rb") as file:
            return file.read() == b"live\n"
    except OSError:
        return False


def claims(pattern: str, alias: str) -> bool:
    """Whether a device's ``modalias`` is one that a module's pattern means."""
    return matches(underscored(alias), underscored(pattern))


def driverless_modaliases(buses: Collection[str]) -> Iterator[str]:
    """The ``modalias`` of every device on these buses that no driver has claimed."""
    for _, alias in driverless_devices(buses):
        yield alias


def driverless_devices(buses: Collection[str]) -> Iterator[tuple[str, str]]:
    """The name (``0000:00:1f.2``) and ``modalias`` of every device on these buses that has no driver."""
    for bus in buses:
        devices = f"/sys/bus/{bus}/devices"
        for device in names(devices):
            path = f"{devices}/{device}"
            if os.path.lexists(f"{path}/driver"):
                continue
            try:
                with open(f"{path}/modalias", "rb") as file:
                    alias = file.read().strip()
            except OSError:
                continue
            if alias:
                yield device, alias.decode("ascii", "backslashreplace")


def _command_line_options(words: Iterable[Word]) -> dict[str, str]:
    """``module.parameter=value`` words: for loadable modules it is modprobe's duty to pass them on."""
    options: dict[str, list[str]] = {}
    for word in words:
        module, dot, parameter = word.key.partition(".")
        if dot and module and parameter and module != "rd":
            value = parameter if word.value is None else f"{parameter}={_quoted(word.value)}"
            options.setdefault(module.replace("-", "_"), []).append(value)
    return {module: " ".join(values) for module, values in options.items()}


def _quoted(value: str) -> str:
    return f'"{value}"' if any(character.isspace() for character in value) else value
