"""Stand-ins for libraries that only serve what nothing in an image does.

libkmod of Debian 12, for example, is linked against libcrypto (4.7 MB) for one thing: to show who signed a
module. Nothing can be loaded without the library, but its functions are never called when modules are loaded.
So the image gets a library of the same name whose functions, all that anything in the image is linked
against, do nothing and return 0: the same answer as for a module whose signature cannot be read.

Written byte by byte, as the gABI (https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html, chapters 4
and 5) and the LSB (symbol versioning, chapter 10.7 of its core specification) describe it.
"""

from __future__ import annotations

import io
import posixpath
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from elftools.elf.elffile import ELFFile

from .elf import DAMAGED

PAGE = 4096
#: xor eax, eax; ret
CODE = b"\x31\xc0\xc3"


@dataclass(frozen=True, slots=True)
class StandIn:
    """A library that may be replaced."""

    soname: str
    users: tuple[str, ...]
    """Names of the files that use it for nothing an image needs; any other user keeps the real one."""
    reason: str
    compression: str = ""
    """A suffix of compressed modules because of which it is needed after all when there are any."""
    unless: str = ""
    """A file of the target system because of which it is needed after all."""
    module: str = ""
    """A Python module because of which it is needed after all when it is in the image."""


KMOD = ("kmod", "libkmod.so.2")

TABLE = (
    StandIn("libcrypto.so.3", KMOD, "only shows who signed a module"),
    StandIn("libcrypto.so.1.1", KMOD, "only shows who signed a module"),
    StandIn("libzstd.so.1", KMOD, "only unpacks modules that end in .zst, and there are none", ".zst"),
    StandIn("liblzma.so.5", KMOD, "only unpacks modules that end in .xz, and there are none", ".xz"),
    StandIn("libexpat.so.1", ("python3",), "only reads XML, and nothing does", module="pyexpat"),
    # All of these ask is_selinux_enabled() first, where 0 means no. The real one would say the same: before
    # the real system's init has loaded a policy there is none.
    StandIn(
        "libselinux.so.1",
        ("udevadm", "systemd-udevd", "libmount.so.1", "mount", "cp", "ls", "mkdir", "mknod", "mv"),
        "only labels files for SELinux",
        unless="/etc/selinux/config",
    ),
    StandIn(
        "libpcre2-8.so.0",
        ("libselinux.so.1", "grep"),
        "only matches file contexts of an SELinux policy, and for grep -P",
        unless="/etc/selinux/config",
    ),
)


def imported(data: bytes, soname: str, library: bytes) -> dict[str, str] | None:
    """Symbol to version of what an ELF file takes from the ``library`` called ``soname``.

    A version may be empty: symbols without one are the library's when it defines them. None when data is
    taken from it, too, or when it cannot be told: then only the real library will do.
    """
    try:
        elf = ELFFile(io.BytesIO(data))
        dynsym: Any = elf.get_section_by_name(".dynsym")
        versym: Any = elf.get_section_by_name(".gnu.version")
        verneed: Any = elf.get_section_by_name(".gnu.version_r")
        exports: Any = ELFFile(io.BytesIO(library)).get_section_by_name(".dynsym")
        if dynsym is None or versym is None or verneed is None or exports is None:
            return None
        defined = {symbol.name for symbol in exports.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
        versions: dict[int, str] = {}
        for need, auxiliaries in verneed.iter_versions():
            for auxiliary in auxiliaries:
                if need.name == soname:
                    versions[auxiliary["vna_other"]] = auxiliary.name
        found: dict[str, str] = {}
        for number, symbol in enumerate(dynsym.iter_symbols()):
            index = versym.get_symbol(number).entry["ndx"]
            # Linkers differ in which of the two numbers an undefined symbol without a version gets.
            unversioned = index in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL") and symbol.name in defined
            if symbol["st_shndx"] != "SHN_UNDEF" or not (index in versions or unversioned):
                continue
            if symbol["st_info"]["type"] not in ("STT_FUNC", "STT_NOTYPE"):
                return None
            found[symbol.name] = versions.get(index, "")
        return found
    except DAMAGED:
        return None


def choose(
    files: Mapping[str, bytes],
    needed: Mapping[str, Iterable[str]],
    exists: Callable[[str], bool],
    compressed: Collection[str],
    modules: Collection[str] = (),
) -> dict[str, bytes]:
    """Path of a library to its stand-in, for those in ``files`` (path to content) that can be replaced.

    ``needed`` has, by path, the library names each of the files is linked against; ``exists`` tells whether
    the target system has a file, ``compressed`` the suffixes of kernel modules that are compressed;
    ``modules`` are the Python modules of the image.
    """
    result = {}
    for entry in TABLE:
        users = [path for path, names in needed.items() if entry.soname in names]
        places = [path for path in files if _is(path, entry.soname)]
        if not users or len(places) != 1 or entry.compression in compressed:
            continue
        if (entry.unless and exists(entry.unless)) or entry.module in modules:
            continue
        if not all(any(_is(path, user) for user in entry.users) for path in users):
            continue
        symbols: dict[str, str] = {}
        for path in users:
            found = imported(files[path], entry.soname, files[places[0]])
            if found is None:
                break
            symbols |= found
        else:
            result[places[0]] = build(entry.soname, symbols)
    return result


def reason(path: str) -> str:
    """Why the library at ``path`` has a stand-in."""
    return next((entry.reason for entry in TABLE if _is(path, entry.soname)), "")


def build(soname: str, symbols: Mapping[str, str]) -> bytes:
    """A shared library for x86-64 with functions of the given names and versions, which all return 0."""
    names = sorted(symbols)
    versions = sorted({version for version in symbols.values() if version})
    strings = bytearray(b"\0")
    at: dict[str, int] = {}

    def string(text: str) -> int:
        if text not in at:
            at[text] = len(strings)
            strings.extend(text.encode() + b"\0")
        return at[text]

    for text in (soname, *names, *versions):
        string(text)
    hashed = struct.pack("<IIII", 1, len(names) + 1, 1 if names else 0, 0)
    # One bucket: a chain of all symbols.
    hashed += struct.pack(f"<{len(names)}I", *[*range(2, len(names) + 1), 0][: len(names)])
    # The index of the base version is 1; those of ours follow.
    numbers = {version: number for number, version in enumerate(versions, 2)}
    versym = struct.pack(f"<{len(names) + 1}H", 0, *(numbers.get(symbols[name], 1) for name in names))
    verdef = b""
    for number, version in enumerate((soname, *versions), 1):
        last = number == len(versions) + 1
        flags = 1 if number == 1 else 0
        verdef += struct.pack("<HHHHIII", 1, flags, number, 1, elf_hash(version), 20, 0 if last else 28)
        verdef += struct.pack("<II", string(version), 0)

    position = 64 + 4 * 56
    places = {}
    body = bytearray()

    def section(name: str, data: bytes) -> None:
        body.extend(bytes(-(position + len(body)) % 8))
        places[name] = position + len(body)
        body.extend(data)

    section("code", CODE)
    section("hash", hashed)
    symtab = bytes(24) + b"".join(
        # A global function, of a section that is not listed: nothing that loads a library looks at sections.
        # SHN_ABS would say that its address is the same wherever the library is loaded.
        struct.pack("<IBBHQQ", string(name), 0x12, 0, 1, places["code"], len(CODE))
        for name in names
    )
    section("symtab", symtab)
    section("strtab", bytes(strings))
    section("versym", versym)
    section("verdef", verdef)
    body.extend(bytes(-(position + len(body)) % 8))
    end = position + len(body)
    tags = [
        (14, string(soname)),  # DT_SONAME
        (4, places["hash"]),  # DT_HASH
        (5, places["strtab"]),  # DT_STRTAB
        (6, places["symtab"]),  # DT_SYMTAB
        (10, len(strings)),  # DT_STRSZ
        (11, 24),  # DT_SYMENT
        (0x6FFFFFF0, places["versym"]),  # DT_VERSYM
        (0x6FFFFFFC, places["verdef"]),  # DT_VERDEF
        (0x6FFFFFFD, len(versions) + 1),  # DT_VERDEFNUM
        (0, 0),
    ]
    dynamic = b"".join(struct.pack("<QQ", tag, value) for tag, value in tags)
    # The loader writes to the dynamic section: it is mapped a page further, from the same page of the file.
    address = end + PAGE
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0)
    programs = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, PAGE)
    programs += struct.pack("<IIQQQQQQ", 1, 6, end, address, address, len(dynamic), len(dynamic), PAGE)
    programs += struct.pack("<IIQQQQQQ", 2, 6, end, address, address, len(dynamic), len(dynamic), 8)
    # PT_GNU_STACK (LSB, chapter 11): without it the loader takes it that the stack must be executable; from
    # glibc 2.41 on it then refuses to load the library into a program that runs.
    programs += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + programs + bytes(body) + dynamic


def elf_hash(name: str) -> int:
    """The hash function of the gABI, chapter 5."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _is(path: str, name: str) -> bool:
    """Whether the file at ``path`` is called ``name``, or has more numbers of a version behind it."""
    base = posixpath.basename(path)
    return base == name or base.startswith(f"{name}.")
