"""Debian's kernels, fetched from its archive into the cache without being installed.

The chain of trust is apt's: the archive's signature is on the InRelease file, that has the hash of the list
of packages, and that has the hash of each package. What was fetched can be used without a network later.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pyinit.text import printable
from pyinit_qemu import deb
from pyinit_qemu.debian import SUITES, host_mirror
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.tools import SEARCH_PATH, Progress, ToolError, run, silent

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FLAVOURS = ("amd64", "cloud-amd64")
"""The flavours every suite has; there are more, such as ``rt-amd64``."""

_KIND = "kernels"
_NETWORK_SECONDS = 60
# From Linux 7 on Debian cuts a kernel into several packages, which linux-image-RELEASE depends on.
_PARTS = re.compile(r"linux-(image|binary|modules|base)-[a-z0-9.+-]*")
_RELEASED_PART = re.compile(r"linux-(image|binary|modules|base)-[0-9][a-z0-9.+-]*")


class KernelFetchError(Exception):
    """A kernel could not be fetched. The text says what was tried, what was found and what to do."""


class NetworkError(KernelFetchError):
    """The archive did not answer."""


class _NotFound(NetworkError):
    """The archive has no such file."""


@dataclass(frozen=True)
class FetchedKernel:
    """A kernel in the cache. Nothing may write to it."""

    suite: str
    flavour: str
    version: str
    """Of Debian's package."""
    release: str
    """As ``uname -r`` prints it."""
    tree: Path
    """A root directory with nothing but the kernel: ``boot`` and ``usr/lib/modules``."""
    notes: tuple[str, ...] = ()
    """What a person should know: an expired list, an archive that did not answer."""

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        places = (self.tree / f"boot/vmlinuz-{self.release}", self.modules / "vmlinuz")
        return next((place for place in places if place.exists()), places[0])

    @property
    def modules(self) -> Path:
        """The folder with the modules and depmod(8)'s indices."""
        return self.tree / "usr/lib/modules" / self.release

    @property
    def config(self) -> Path | None:
        """The kernel's configuration; None if the packages have none."""
        return self._file("config")

    @property
    def system_map(self) -> Path | None:
        """The symbol table; None if the packages have none."""
        return self._file("System.map")

    def _file(self, name: str) -> Path | None:
        places = (self.tree / f"boot/{name}-{self.release}", self.modules / name)
        return next((place for place in places if place.exists()), None)


def fetch(
    suite: str,
    *,
    flavour: str = "amd64",
    offline: bool = False,
    mirror: str | None = None,
    keyring: Path | None = KEYRING,
    progress: Progress = silent,
    cache: Cache | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FetchedKernel:
    """The newest kernel of a suite and flavour; the first time 30 to 110 MB are downloaded.

    ``offline`` asks nobody and gives the one fetched last. ``mirror`` is by default the host's own.
    ``keyring`` has the keys of which one must have signed; None takes an unsigned archive and notes it. If
    the archive does not answer, the kernel fetched last is given, with a note.

    Raises :class:`KernelFetchError`.
    """
    if suite not in SUITES:
        raise KernelFetchError(f"unknown suite {printable(suite)!r}; known are {', '.join(SUITES)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", flavour):
        raise KernelFetchError(f"no flavour of a kernel: {printable(flavour)!r}; try {' or '.join(FLAVOURS)}")
    store = _Store(cache or Cache(), suite, flavour)
    if offline:
        return store.last()
    archive = _Archive((mirror or host_mirror()).rstrip("/"), suite, keyring, progress, now)
    try:
        return _fetch(archive, store, progress)
    except NetworkError as error:
        try:
            kernel = store.last()
        except KernelFetchError:
            raise error from None
        first = str(error).partition("\n")[0]
        note = f"{first}; this is the kernel that was fetched last"
        return FetchedKernel(
            suite, flavour, kernel.version, kernel.release, kernel.tree, (note, *kernel.notes)
        )


@dataclass(frozen=True)
class FetchedPackage:
    """A binary package in the cache. Nothing may write to it."""

    version: str
    path: Path
    """The package itself, ``.deb``."""
    notes: tuple[str, ...] = ()
    """What a person should know, as with a kernel."""


def fetch_package(
    name: str,
    suite: str,
    *,
    mirror: str | None = None,
    keyring: Path | None = KEYRING,
    progress: Progress = silent,
    cache: Cache | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FetchedPackage:
    """A package by its name, such as ``linux-source-6.1``, as it is, in the version that the suite has now.

    Parameters and :class:`KernelFetchError` as with :func:`fetch`; the archive is always asked.
    """
    cache = cache or Cache()
    archive = _Archive((mirror or host_mirror()).rstrip("/"), suite, keyring, progress, now)
    release, notes = archive.release()
    listing, index = archive.listing(release)
    package = archive.packages(listing, index, re.compile(re.escape(name))).get(name)
    if package is None:
        raise KernelFetchError(
            f"Debian {printable(suite)} has no package {printable(name)}\n"
            f"tried: {archive.url(listing)}\nChoose another suite."
        )

    def build(work: Path) -> None:
        part = archive.package(package, cache.root / "package" / ".parts" / package.sha256)
        part.rename(work / "package.deb")

    recipe = {"name": name, "sha256": package.sha256}
    version = package.version.replace(":", ".")
    folder = cache.entry("package", recipe, build, progress, prefix=f"{name}-{version}-")
    return FetchedPackage(package.version, folder / "package.deb", tuple(notes))


def fetched(cache: Cache | None = None) -> list[FetchedKernel]:
    """All kernels that can be used without a network, by suite and flavour."""
    cache = cache or Cache()
    found = []
    for path in sorted((cache.root / _KIND).glob("*.json")):
        for suite in SUITES:
            if path.stem.startswith(f"{suite}-"):
                try:
                    found.append(_Store(cache, suite, path.stem.removeprefix(f"{suite}-")).last())
                except KernelFetchError:
                    continue
    return found


def _fetch(archive: _Archive, store: _Store, progress: Progress) -> FetchedKernel:
    release, notes = archive.release()
    listing, index = archive.listing(release)
    answer = store.answer()
    if answer.get("packages") == index.sha256 and (kernel := store.stored(answer, notes)) is not None:
        return kernel
    packages = archive.packages(listing, index)
    meta = packages.get(f"linux-image-{store.flavour}")
    if meta is None:
        there = sorted(
            name.removeprefix("linux-image-")
            for name, package in packages.items()
            if name.startswith("linux-image-")
            and not name.endswith("-dbg")
            and not _RELEASED_PART.fullmatch(name)
            and any(_RELEASED_PART.fullmatch(other) for other in package.depends)
        )
        raise KernelFetchError(
            f"Debian {archive.suite} has no kernel of flavour {printable(store.flavour)}\n"
            f"tried: package linux-image-{printable(store.flavour)} in {archive.url(listing)}\n"
            f"there is: {printable(', '.join(there)) or 'no kernel at all'}\n"
            "Choose one of these flavours."
        )
    parts = _closure(meta, packages)
    if not parts:
        raise KernelFetchError(
            f"{archive.url(listing)}: {meta.name} depends on no kernel that is in the list\n"
            f"it depends on: {printable(', '.join(meta.depends)) or 'nothing'}\n"
            "The mirror may be changing just now: try again later, or choose another with --mirror."
        )
    name = f"{store.suite}-{store.flavour}-{meta.version.replace(':', '.')}"
    source = f"{store.flavour} {meta.version} from {archive.mirror}"
    recipe = {"packages": [[part.name, part.version, part.sha256] for part in parts], "format": 1}

    def build(work: Path) -> None:
        downloads = [archive.package(part, store.parts / f"{name}-{part.sha256[:16]}") for part in parts]
        for part, path in zip(parts, downloads, strict=True):
            progress(f"unpacking {part.name}")
            unpack(path, work / "tree", archive.url(part.path, pool=True))
        _index(work / "tree", source)
        for path in downloads:
            path.unlink()

    folder = store.cache.entry(_KIND, recipe, build, progress, prefix=f"{name}-")
    answer = {
        "name": folder.name,
        "version": meta.version,
        "release": _release(folder / "tree", source),
        "packages": index.sha256,
        "mirror": archive.mirror,
        "fetched": archive.now().strftime("%Y-%m-%d"),
        "notes": notes,
    }
    store.keep(answer)
    kernel = store.stored(answer, notes)
    assert kernel is not None
    return kernel


def _closure(meta: deb.Package, packages: dict[str, deb.Package]) -> list[deb.Package]:
    """The packages that make up the kernel ``meta`` stands for."""
    parts: dict[str, deb.Package] = {}
    todo = list(meta.depends)
    while todo:
        name = todo.pop(0)
        if name not in parts and name in packages and _RELEASED_PART.fullmatch(name):
            parts[name] = packages[name]
            todo += packages[name].depends
    return list(parts.values())


def unpack(package: Path, tree: Path, source: str) -> None:
    """Add what a package has below /boot and /usr/lib/modules to ``tree``. Raises :class:`KernelFetchError`.

    ``source`` is where the package is from, for the error's text.
    """
    try:
        for parts, content in deb.files(package.read_bytes()):
            below = ("usr", *parts) if parts[0] == "lib" else parts
            if below[0] != "boot" and below[:3] != ("usr", "lib", "modules"):
                continue
            target = tree.joinpath(*below)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(content)
    except (deb.DebError, OSError) as error:
        raise KernelFetchError(
            f"{source} cannot be unpacked: {printable(str(error))}\n"
            "Its hash is the one that the archive announces, so the package itself is at fault: "
            "try another suite or mirror."
        ) from error


def _release(tree: Path, source: str) -> str:
    there = sorted(path.name for path in (tree / "usr/lib/modules").glob("*") if path.is_dir())
    kernels = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(there) != 1 or len(kernels) != 1:
        raise KernelFetchError(
            f"the packages of kernel {source} make up no kernel\n"
            "expected: one folder below /usr/lib/modules, and one vmlinuz in it or in /boot\n"
            f"there is: {printable(', '.join(there)) or 'no module'}; "
            f"{printable(', '.join(str(path.relative_to(tree)) for path in kernels)) or 'no vmlinuz'}\n"
            "Debian may have changed what is in which package; choose another suite."
        )
    return there[0]


def _index(tree: Path, source: str) -> None:
    """Run depmod(8), as an installation would."""
    release = _release(tree, source)
    # depmod and everybody else look in /lib/modules.
    (tree / "lib").symlink_to("usr/lib")
    try:
        run(["depmod", "--basedir", tree, release])
    except ToolError as error:
        raise KernelFetchError(f"the index of the modules of {release} could not be made\n{error}") from error


class _Store:
    """The kernels of one suite and flavour in the cache."""

    def __init__(self, cache: Cache, suite: str, flavour: str) -> None:
        self.cache, self.suite, self.flavour = cache, suite, flavour
        self.folder = cache.root / _KIND
        self.parts = self.folder / ".parts"
        self.record = self.folder / f"{suite}-{flavour}.json"

    def answer(self) -> dict[str, Any]:
        """What the archive's answer was last time; empty if it was never asked."""
        try:
            answer = json.loads(self.record.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def keep(self, answer: dict[str, Any]) -> None:
        fresh = self.record.with_name(f".{self.record.name}.{os.getpid()}")
        fresh.write_text(json.dumps(answer, indent=1) + "\n", "utf-8")
        fresh.rename(self.record)

    def stored(self, answer: dict[str, Any], notes: list[str]) -> FetchedKernel | None:
        """The kernel of an answer, if it is still there."""
        name, version, release = (answer.get(key) for key in ("name", "version", "release"))
        if not (isinstance(name, str) and isinstance(version, str) and isinstance(release, str)):
            return None
        if not name or "/" in name or not (self.folder / name / ".complete").exists():
            return None
        os.utime(self.folder / name / ".complete")
        tree = self.folder / name / "tree"
        return FetchedKernel(self.suite, self.flavour, version, release, tree, tuple(notes))

    def last(self) -> FetchedKernel:
        answer = self.answer()
        kept = answer.get("notes", [])
        notes = [note for note in kept if isinstance(note, str)] if isinstance(kept, list) else []
        kernel = self.stored(answer, notes)
        if kernel is None:
            there = sorted(
                path.name for path in self.folder.glob("*") if path.is_dir() and (path / ".complete").exists()
            )
            raise KernelFetchError(
                f"no kernel of Debian {self.suite}, flavour {self.flavour}, has been fetched\n"
                f"tried: {self.record}\n"
                f"there is: {printable(', '.join(there)) or 'no kernel'} in {self.folder}\n"
                f"With a network, run: pyinit-qemu kernel {self.suite} --flavour {self.flavour}"
            )
        return kernel


class _Archive:
    """A suite on a mirror."""

    def __init__(
        self,
        mirror: str,
        suite: str,
        keyring: Path | None,
        progress: Progress,
        now: Callable[[], datetime],
    ) -> None:
        self.mirror, self.suite, self.keyring = mirror, suite, keyring
        self.progress, self.now = progress, now

    def url(self, path: str, *, pool: bool = False) -> str:
        return f"{self.mirror}/{path}" if pool else f"{self.mirror}/dists/{self.suite}/{path}"

    def release(self) -> tuple[deb.Release, list[str]]:
        """The Release file, its signature checked, and what a person should know about it."""
        url = self.url("InRelease")
        self.progress(f"reading {url}")
        signed = self._small(url)
        notes = []
        if self.keyring is None:
            notes.append(f"{url}: its signature was not checked, as asked for")
            text = signed.decode("utf-8", "replace")
        else:
            text = verify(signed, self.keyring, url)
        try:
            release = deb.parse_release(text)
        except deb.DebError as error:
            raise KernelFetchError(f"{url}: {error}\n{_OTHER_MIRROR}") from error
        if self.suite not in release.names:
            raise KernelFetchError(
                f"{url} is of another suite\n"
                f"wanted: {self.suite}\nfound: {printable(', '.join(sorted(release.names))) or 'no name'}\n"
                f"{_OTHER_MIRROR}"
            )
        expiry = release.valid_until
        if expiry is not None and expiry < self.now():
            notes.append(
                f"{url} was to be renewed by {expiry:%Y-%m-%d}: this mirror is behind, "
                "so there may be a newer kernel"
            )
        return release, notes

    def listing(self, release: deb.Release) -> tuple[str, deb.Index]:
        """Path and hash of the list of packages."""
        path = "main/binary-amd64/Packages"
        for suffix in (".xz", ".gz", ""):
            if path + suffix in release.files:
                return path + suffix, release.files[path + suffix]
        raise KernelFetchError(
            f"{self.url('InRelease')} has no hash of {path}\n"
            f"tried: with .xz, with .gz, and uncompressed\n{_OTHER_MIRROR}"
        )

    def packages(
        self, path: str, index: deb.Index, wanted: re.Pattern[str] = _PARTS
    ) -> dict[str, deb.Package]:
        """The packages in the list whose names match; by default those of kernels."""
        self.progress(f"reading the packages of Debian {self.suite}")
        # By its hash a file can be had while the mirror is being changed.
        by_hash = f"{path.rpartition('/')[0]}/by-hash/SHA256/{index.sha256}"
        url = self.url(by_hash)
        try:
            data = self._small(url)
        except _NotFound:
            url = self.url(path)
            data = self._small(url)
        self._check(url, hashlib.sha256(data).hexdigest(), len(data), index.sha256, index.size)
        try:
            text = deb.decompress(data, Path(path).suffix).decode("utf-8", "replace")
            return deb.parse_packages(text, wanted)
        except deb.DebError as error:
            raise KernelFetchError(f"{url}: {error}\n{_OTHER_MIRROR}") from error

    def package(self, package: deb.Package, part: Path) -> Path:
        """Download a package as ``part``, going on where an earlier try was interrupted."""
        url = self.url(package.path, pool=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            there = file.tell()
            if there < package.size:
                self._download(url, package, file, there)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = part.stat().st_size
        if digest != package.sha256:
            part.unlink()
        self._check(url, digest, size, package.sha256, package.size)
        return part

    def _download(self, url: str, package: deb.Package, file: IO[bytes], there: int) -> None:
        try:
            with _open(url, there) as response:
                if response.status != 206:
                    file.truncate(there := 0)
                while block := response.read(1 << 18):
                    file.write(block)
                    there += len(block)
                    self.progress(f"{package.name}: {there >> 20} of {package.size >> 20} MiB")
                    if there > package.size:
                        break
        except (OSError, http.client.HTTPException) as error:
            raise self._trouble(url, error) from error
        if there < package.size:
            raise NetworkError(
                f"{url}: the connection ended after {there} of {package.size} bytes\n"
                "What has come is kept: run it again to go on."
            )

    def _small(self, url: str) -> bytes:
        try:
            with _open(url) as response:
                data: bytes = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._trouble(url, error) from error
        return data

    def _trouble(self, url: str, error: Exception) -> NetworkError:
        if isinstance(error, urllib.error.HTTPError):
            kind = _NotFound if error.code in (404, 410) else NetworkError
            return kind(f"{url}: the server says {error.code} {printable(error.reason)}\n{_OTHER_MIRROR}")
        reason = getattr(error, "reason", None) or error
        return NetworkError(
            f"{url} cannot be read: {printable(str(reason)) or type(error).__name__}\n"
            "Is there a network? Another mirror can be given with --mirror; "
            "--offline takes what was fetched before."
        )

    def _check(self, url: str, digest: str, size: int, wanted: str, wanted_size: int) -> None:
        if digest != wanted:
            raise KernelFetchError(
                f"{url} is not what the archive announces, and was thrown away\n"
                f"wanted: {wanted_size} bytes, SHA256 {wanted}\nfound: {size} bytes, SHA256 {digest}\n"
                "The mirror may be changing just now, or somebody has changed the file on its way: "
                "try again later, or choose another with --mirror."
            )


_OTHER_MIRROR = "Choose another mirror with --mirror."


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": "pyinit-qemu", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        request = urllib.request.Request(url, headers=headers)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_NETWORK_SECONDS)
    except ValueError as error:
        raise OSError(f"no address: {error}") from error
    return response


def verify(signed: bytes, keyring: Path, source: str) -> str:
    """The text that one of the keys has signed. Raises :class:`KernelFetchError` if none has.

    ``source`` is where it is from, for the error's text.
    """
    advice = "Choose another mirror with --mirror; --unsigned does without the check, and takes anything."
    if not keyring.exists():
        raise KernelFetchError(
            f"the signature of {source} cannot be checked: there is no {keyring}\n"
            "Install debian-archive-keyring, or name its keyring with --keyring."
        )
    gpgv = shutil.which("gpgv", path=SEARCH_PATH)
    if gpgv is None:
        raise KernelFetchError(
            f"the signature of {source} cannot be checked: gpgv is not installed\ntry: apt-get install gpgv"
        )
    with tempfile.TemporaryDirectory(prefix="pyinit-kernel-") as folder:
        message, content = Path(folder, "InRelease"), Path(folder, "content")
        message.write_bytes(signed)
        result = subprocess.run(
            [gpgv, "--status-fd", "1", "--keyring", keyring.absolute(), "--output", content, message],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": folder},
            check=False,
        )
        words = re.findall(r"^\[GNUPG:\] (\w+)", result.stdout, re.MULTILINE)
        # An archive signs with several keys, of which not every keyring knows all: one good signature is
        # enough, a bad one is not made up for by it.
        if "GOODSIG" in words and "VALIDSIG" in words and "BADSIG" not in words and content.exists():
            return content.read_text("utf-8", "replace")
    said = "".join(f"\n    {printable(line)}" for line in result.stderr.splitlines()[-6:])
    raise KernelFetchError(
        f"{source} carries no good signature\ntried: the keys in {keyring}\ngpgv said:{said}\n{advice}"
    )
