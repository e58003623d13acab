"""Kernels of Debian: what is fetched from an archive, what is checked, and what is said when it is wrong."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu import VmSpec, deb, kernels
from pyinit_qemu.accel import boot_probe
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.kernels import KernelFetchError, NetworkError, fetch, fetched, verify

RELEASE = "6.1.0-99-cloud-amd64"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Signed by the key below, in the past of any machine's clock.
SIGNED = """-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Test
Suite: bookworm
-----BEGIN PGP SIGNATURE-----

iHUEARYIAB0WIQRIOf0C238Ql82ecLzB3HJgW3BcbAUCZZIAgAAKCRDB3HJgW3Bc
bAe/AQDfwn9bruDx52FI/mUeBEcLgPy1flY0yXumGdzNKlPrAwD+Ml2hJxOiHcY9
6M8OXjhWsSBGNbQc1ivFT7diyLAE3Qk=
=RAVg
-----END PGP SIGNATURE-----
"""
KEY = base64.b64decode(
    b"mDMEZZIAgBYJKwYBBAHaRw8BAQdAXj6fcI2TcqaXm7K35yp9RQNyEOwFqqQckp/A9tv1YwK0H1Rlc3QgYXJjaGl2ZSA8dGVzdEBl"
    b"eGFtcGxlLm9yZz6IkAQTFggAOBYhBEg5/QLbfxCXzZ5wvMHccmBbcFxsBQJlkgCAAhsDBQsJCAcCBhUKCQgLAgQWAgMBAh4BAheA"
    b"AAoJEMHccmBbcFxsc7UA/0bknnQtBLQYgqg/HkFPuOxiFnPuTQGMZhSWn6ZZWmL9AQDriqWo4/PxIvmj7WLpmheYW7uOLbZKQ0B1"
    b"uHzsAiIZAg=="
)


def ar(members: dict[str, bytes]) -> bytes:
    data = b"!<arch>\n"
    for name, content in members.items():
        data += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    return data


def tar(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./lib/modules/x/build")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    return target.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def package(files: dict[str, bytes], suffix: str = ".xz") -> bytes:
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": b"odd",
            f"data.tar{suffix}": COMPRESSORS[suffix](tar(files)),
        }
    )


KERNEL = {
    f"./boot/vmlinuz-{RELEASE}": b"the kernel" * 100_000,
    f"./boot/config-{RELEASE}": b"CONFIG_X=y\n",
    f"./lib/modules/{RELEASE}/modules.order": b"",
    f"./lib/modules/{RELEASE}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
    "./usr/share/doc/linux-image/copyright": b"not wanted",
}


class Mirror:
    """A Debian archive with one kernel, on a web server of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.url = ""
        self.fields = "Suite: oldstable\nCodename: bookworm\n"
        self.write_package(package(KERNEL))

    def write_package(self, data: bytes) -> None:
        self.deb = self.put("pool/kernel.deb", data)
        self.write_list(
            f"Package: linux-image-{RELEASE}\nVersion: 6.1.9-1\nFilename: pool/kernel.deb\n"
            f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
            "Package: linux-image-cloud-amd64\nVersion: 6.1.9-1\nFilename: pool/meta.deb\nSize: 1\n"
            f"SHA256: {'0' * 64}\nDepends: linux-image-{RELEASE} (= 6.1.9-1), something | else\n"
        )

    def write_list(self, text: str) -> None:
        data = lzma.compress(text.encode())
        self.listing = self.put("dists/bookworm/main/binary-amd64/Packages.xz", data)
        self.write_release(data)

    def write_release(self, listing: bytes) -> None:
        digest = hashlib.sha256(listing).hexdigest()
        text = f"{self.fields}SHA256:\n {digest} {len(listing)} main/binary-amd64/Packages.xz\n"
        self.put("dists/bookworm/InRelease", text.encode())

    def put(self, path: str, data: bytes) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(tmp_path / "mirror")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = self.headers.get("Range", "")
            made.asked.append((self.path, start))
            try:
                data = (made.folder / self.path.lstrip("/")).read_bytes()
            except OSError:
                self.send_error(404)
                return
            skip = int(start.removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if skip else 200)
            self.send_header("Content-Length", str(len(data) - skip))
            self.end_headers()
            self.wfile.write(data[skip:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_port}"
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def get(mirror: Mirror, tmp_path: Path) -> Callable[..., kernels.FetchedKernel]:
    def call(suite: str = "bookworm", **options: object) -> kernels.FetchedKernel:
        given = {"flavour": "cloud-amd64", "keyring": None, "now": lambda: NOW, **options}
        return fetch(suite, mirror=mirror.url, cache=Cache(tmp_path / "cache"), **given)  # type: ignore[arg-type]

    return call


def test_a_kernel_is_fetched_once_and_then_there_without_a_network(
    get: Callable[..., kernels.FetchedKernel], mirror: Mirror, tmp_path: Path
) -> None:
    kernel = get()
    assert (kernel.release, kernel.version) == (RELEASE, "6.1.9-1")
    assert kernel.kernel.read_bytes() == KERNEL[f"./boot/vmlinuz-{RELEASE}"]
    assert kernel.config is not None and kernel.config.read_bytes() == b"CONFIG_X=y\n"
    assert kernel.system_map is None
    assert (kernel.modules / "modules.dep").exists() and not (kernel.modules / "build").exists()
    assert not (kernel.tree / "usr/share").exists()
    assert kernel.tree.parent.name.startswith("bookworm-cloud-amd64-6.1.9-1")
    assert list((tmp_path / "cache/kernels/.parts").iterdir()) == []

    mirror.asked.clear()
    assert get().tree == kernel.tree
    assert [path for path, _ in mirror.asked] == ["/dists/bookworm/InRelease"]
    mirror.asked.clear()
    assert get(offline=True).tree == kernel.tree and mirror.asked == []
    assert [found.tree for found in fetched(Cache(tmp_path / "cache"))] == [kernel.tree]


def test_a_mirror_that_is_gone_is_said_and_the_last_kernel_taken(
    get: Callable[..., kernels.FetchedKernel], mirror: Mirror
) -> None:
    kernel = get()
    (mirror.folder / "dists/bookworm/InRelease").unlink()
    again = get()
    assert again.tree == kernel.tree
    assert "InRelease: the server says 404" in again.notes[0] and "fetched last" in again.notes[0]


def test_a_download_goes_on_where_it_was_interrupted(
    get: Callable[..., kernels.FetchedKernel], mirror: Mirror
) -> None:
    whole = mirror.deb.read_bytes()
    mirror.deb.write_bytes(whole[:200])
    with pytest.raises(NetworkError, match=r"kernel\.deb: the connection ended after 200 of \d+ bytes"):
        get()
    mirror.deb.write_bytes(whole)
    assert get().kernel.stat().st_size == 1_000_000
    assert ("/pool/kernel.deb", "bytes=200-") in mirror.asked


def test_a_list_that_has_expired_is_taken_and_said(
    get: Callable[..., kernels.FetchedKernel], mirror: Mirror
) -> None:
    mirror.fields += "Valid-Until: Wed, 31 Dec 2025 08:08:01 UTC\n"
    mirror.write_release(mirror.listing.read_bytes())
    note = "InRelease was to be renewed by 2025-12-31"
    assert any(note in text for text in get().notes)
    assert any(note in text for text in get(offline=True).notes)


def test_an_unsigned_archive_is_only_taken_when_asked_for(
    get: Callable[..., kernels.FetchedKernel], tmp_path: Path
) -> None:
    assert "signature was not checked" in get().notes[0]
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(KEY)
    with pytest.raises(KernelFetchError, match=r"InRelease carries no good signature(.|\n)*--unsigned"):
        get(keyring=keyring)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda m: m.deb.write_bytes(m.deb.read_bytes()[:-1] + b"!"), r"kernel\.deb is not what the archive"),
        (lambda m: m.listing.write_bytes(b"other"), r"Packages\.xz is not what the archive announces"),
        (lambda m: m.write_release(b"other"), r"Packages\.xz is not what(.|\n)*found: \d+ bytes(.|\n)*later"),
        (lambda m: m.put("dists/bookworm/InRelease", b"<html>"), r"no Release file: it has no list"),
        (lambda m: m.deb.unlink(), r"kernel\.deb: the server says 404"),
        (lambda m: m.write_list("Package: x\n"), r"no kernel of flavour cloud-amd64(.|\n)*no kernel at all"),
        (
            lambda m: m.write_list("Package: linux-image-x\nSize: -1\n"),
            r"linux-image-x has no usable Version",
        ),
        (lambda m: m.write_package(b"no package"), r"kernel\.deb cannot be unpacked: no ar archive"),
        (lambda m: m.write_package(package({"./boot/x": b""})), r"make up no kernel(.|\n)*no vmlinuz"),
        (lambda m: m.write_package(package({"./boot/../../x": b""})), r"not a file of a package"),
    ],
)
def test_what_an_archive_can_do_wrong(
    get: Callable[..., kernels.FetchedKernel],
    mirror: Mirror,
    spoil: Callable[[Mirror], object],
    said: str,
    tmp_path: Path,
) -> None:
    spoil(mirror)
    with pytest.raises(KernelFetchError, match=said):
        get()
    assert fetched(Cache(tmp_path / "cache")) == []


def test_another_suite_is_not_taken_for_the_one_wanted(
    get: Callable[..., kernels.FetchedKernel], mirror: Mirror
) -> None:
    mirror.fields = "Suite: stable\nCodename: trixie\n"
    mirror.write_release(mirror.listing.read_bytes())
    with pytest.raises(KernelFetchError, match=r"another suite\nwanted: bookworm\nfound: stable, trixie"):
        get()


def test_what_is_not_there_is_named_with_what_is(get: Callable[..., kernels.FetchedKernel]) -> None:
    with pytest.raises(KernelFetchError, match="unknown suite 'potato'; known are bookworm, trixie, sid"):
        get("potato")
    with pytest.raises(KernelFetchError, match=r"no kernel of flavour nope(.|\n)*there is: cloud-amd64"):
        get(flavour="nope")
    with pytest.raises(KernelFetchError, match="no flavour of a kernel: '../x'"):
        get(flavour="../x")
    with pytest.raises(KernelFetchError, match=r"has been fetched\ntried(.|\n)*run: pyinit-qemu kernel"):
        get(offline=True)


def test_a_package_is_fetched_as_it_is_and_once(mirror: Mirror, tmp_path: Path) -> None:
    def get_package(name: str) -> kernels.FetchedPackage:
        cache = Cache(tmp_path / "cache")
        return kernels.fetch_package(
            name, "bookworm", mirror=mirror.url, keyring=None, cache=cache, now=lambda: NOW
        )

    package = get_package(f"linux-image-{RELEASE}")
    assert package.version == "6.1.9-1"
    assert package.path.read_bytes() == mirror.deb.read_bytes()
    mirror.asked.clear()
    assert get_package(f"linux-image-{RELEASE}").path == package.path
    assert "/pool/kernel.deb" not in [path for path, _ in mirror.asked]
    with pytest.raises(KernelFetchError, match="has no package linux-source-6.1"):
        get_package("linux-source-6.1")
    mirror.deb.write_bytes(b"!" * len(mirror.deb.read_bytes()))
    shutil.rmtree(package.path.parent)
    with pytest.raises(KernelFetchError, match="is not what the archive announces"):
        get_package(f"linux-image-{RELEASE}")


def test_without_a_network(tmp_path: Path) -> None:
    # A port that was just closed: nobody listens there.
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(NetworkError, match=r"cannot be read: .*refused(.|\n)*Is there a network"):
        fetch("bookworm", mirror=url, cache=Cache(tmp_path))
    with pytest.raises(NetworkError, match="no address"):
        fetch("bookworm", mirror="nonsense", cache=Cache(tmp_path))


def test_a_signature_is_checked(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(KEY)
    assert verify(SIGNED.encode(), keyring, "there").splitlines() == ["Origin: Test", "Suite: bookworm"]
    for wrong in (SIGNED.replace("Test", "Tent"), "Suite: bookworm\n", ""):
        with pytest.raises(KernelFetchError, match="there carries no good signature"):
            verify(wrong.encode(), keyring, "there")
    with pytest.raises(KernelFetchError, match=r"no good signature(.|\n)*No public key"):
        verify(SIGNED.encode(), kernels.KEYRING, "there")
    with pytest.raises(KernelFetchError, match="debian-archive-keyring"):
        verify(SIGNED.encode(), tmp_path / "none", "there")


def command(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    main = "import sys; from pyinit_qemu.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", main, "kernel", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYINIT_CACHE": str(cache)},
    )


def test_the_command_prints_where_the_files_are(mirror: Mirror, tmp_path: Path) -> None:
    words = ("bookworm", "--flavour", "cloud-amd64", "--mirror", mirror.url)
    failed = command(*words, cache=tmp_path / "cache")
    assert failed.returncode == 1 and "no good signature" in failed.stderr and failed.stdout == ""
    ended = command(*words, "--unsigned", cache=tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    table = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    assert table["release"] == RELEASE and Path(table["kernel"]).name == f"vmlinuz-{RELEASE}"
    assert "note: " in ended.stderr and "signature was not checked" in ended.stderr
    listed = command("--list", cache=tmp_path / "cache")
    assert table["kernel"] in listed.stdout
    assert command(cache=tmp_path / "cache").returncode == 2


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_files_of_a_package(suffix: str) -> None:
    found = {"/".join(parts): content for parts, content in deb.files(package(KERNEL, suffix))}
    assert found == {name.removeprefix("./"): content for name, content in KERNEL.items()}


@given(st.dictionaries(st.text("abc.-", min_size=1, max_size=15), st.binary(max_size=50), max_size=5))
def test_an_archive_is_read_as_written(members: dict[str, bytes]) -> None:
    assert {name: bytes(content) for name, content in deb.ar_members(ar(members)).items()} == members


@given(st.binary(max_size=300), st.integers(0, 600), st.sampled_from(sorted(COMPRESSORS)))
def test_hostile_packages(noise: bytes, place: int, suffix: str) -> None:
    damaged = bytearray(package({"./boot/x": b"x" * 40}, suffix))
    damaged[place : place + len(noise)] = noise
    for data in (bytes(damaged), bytes(damaged[:place]), b"!<arch>\n" + noise):
        try:
            for parts, _ in deb.files(data):
                assert parts and ".." not in parts and all("/" not in part for part in parts)
        except deb.DebError:
            pass


@given(st.text() | st.text("SHA256: \n0af" + "Package"), st.binary(max_size=100))
def test_hostile_indices(text: str, data: bytes) -> None:
    readers: list[Callable[[], object]] = [
        lambda: deb.parse_release(text),
        lambda: deb.parse_packages(text, kernels._PARTS),
        lambda: deb.decompress(data, ".xz"),
        lambda: deb.decompress(data, ".gz"),
    ]
    for read in readers:
        try:
            read()
        except deb.DebError:
            pass


@given(st.text())
def test_any_date_is_read(text: str) -> None:
    index = {"x": deb.Index("0" * 64, 1)}
    until = deb.Release({"valid-until": text}, index).valid_until
    assert until is None or until.tzinfo is not None


def test_a_kernel_from_debian_boots() -> None:
    try:
        kernel = fetch("bookworm", flavour="cloud-amd64")
    except NetworkError as error:
        pytest.skip(f"infrastructure: {error}")
    proof = boot_probe(VmSpec(kernel.kernel, None, append="earlyprintk=ttyS0", memory=256 << 20))
    assert proof.works, proof.reason
    assert f"Linux version {kernel.release}" in proof.reason
