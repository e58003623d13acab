"""Kernel modules without what only their signature and their debugging need.

The kernel hashes every byte of a signed module and searches its symbols again and again while it loads it:
without either, loading takes less than half of the time. The price: the kernel counts as tainted (``E``), its
traces lack the names of static functions, and where signatures are enforced the modules are refused
(Documentation/admin-guide/module-signing.rst, kernel_lockdown(7)).

Formats: ``include/linux/module_signature.h``; System V ABI, chapter 4 "Object Files".
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from pyinit.text import printable

from .errors import BuildError

#: The end of a module with a signature (scripts/sign-file.c).
SIGNED = b"~Module signature appended~\n"
#: algo, hash, id_type, signer_len, key_id_len, three bytes of nothing, sig_len.
_SIGNATURE = struct.Struct(">BBBBB3xI")

_HEADER, _SECTION, _SYMBOL, _RELOCATION = 64, struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), 24
_SYMTAB, _STRTAB, _RELA, _NOBITS, _GROUP = 2, 3, 4, 8, 17
_LOCAL = 0


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def unsigned(module: bytes, path: str) -> bytes:
    """A plain module without signature and without symbols that nothing refers to.

    ``path`` is for messages. Raises :class:`BuildError` for what is no module.
    """
    try:
        return _strip(_cut(module))
    except (struct.error, LookupError, ValueError, OverflowError) as error:
        raise BuildError(f"{printable(path)} is damaged: {printable(str(error))}") from error


#: Settings of a kernel with which it takes no module without a signature, whatever it is told.
_ENFORCED = (
    "CONFIG_MODULE_SIG_FORCE=y",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y",
)
_SECURE_BOOT = "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y"
#: Files of a running machine, and what they say when no signature is asked for.
_RUNNING = (
    ("/sys/module/module/parameters/sig_enforce", "N"),
    ("/sys/kernel/security/lockdown", "[none] "),
)


def check(config: Collection[str], cmdline: str, root: Path | None) -> list[str]:
    """Refuse an image of unsigned modules (:class:`BuildError`) for a kernel that would not load them.

    ``config``: lines of the kernel's configuration; ``cmdline``: the words that are sealed into the image;
    ``root``: ``/`` of the machine that will boot it, if it is this one. Returns warnings.
    """
    hint = "Leave --unsigned-modules out."
    if not config:
        raise BuildError(
            "whether the kernel takes unsigned modules is not known without its config", hint=hint
        )
    if found := [line for line in _ENFORCED if line in config]:
        raise BuildError(f"this kernel takes no unsigned modules: {', '.join(found)}", hint=hint)
    words = [word for word in cmdline.split() if word.startswith(("module.sig_enforce", "lockdown="))]
    if words:
        raise BuildError(f"with {printable(words[0])} a kernel takes no unsigned modules", hint=hint)
    for path, free in _RUNNING:
        try:
            said = (root / path.lstrip("/")).read_text(errors="replace") if root is not None else free
        except OSError:
            continue
        if not said.startswith(free):
            raise BuildError(
                f"this machine takes no unsigned modules: {path} says {printable(said)}", hint=hint
            )
    return (
        ["with Secure Boot this kernel is locked down and will refuse the unsigned modules of this image"]
        if _SECURE_BOOT in config
        else []
    )


def _cut(module: bytes) -> bytes:
    while module.endswith(SIGNED):
        end = len(module) - len(SIGNED) - _SIGNATURE.size
        *_, signer, key, length = _SIGNATURE.unpack_from(module, end) if end >= 0 else (0, 0, -1)
        if not 0 <= length <= end - signer - key:
            raise ValueError("its signature is longer than the file")
        module = module[: end - length - signer - key]
    return module


def _strip(module: bytes) -> bytes:
    # 64 bits, little endian, ET_REL, no program headers: every module but those of other architectures.
    if module[:6] != b"\x7fELF\x02\x01" or module[16:18] != b"\x01\0" or module[56:58] != b"\0\0":
        return module
    (table,) = struct.unpack_from("<Q", module, 40)
    size, count = struct.unpack_from("<HH", module, 58)
    if size != _SECTION.size:
        return module
    sections = [_Section(*_SECTION.unpack_from(module, table + number * size)) for number in range(count)]
    contents = [
        b"" if section.type in (0, _NOBITS) else module[section.offset : section.offset + section.size]
        for section in sections
    ]
    tables = [number for number, section in enumerate(sections) if section.type == _SYMTAB]
    if len(tables) != 1 or any(
        len(content) != section.size
        for section, content in zip(sections, contents, strict=True)
        if section.type not in (0, _NOBITS)
    ):
        raise ValueError("its sections are not all there")
    _drop_symbols(sections, contents, tables[0])
    return _write(module[:_HEADER], sections, contents)


def _drop_symbols(sections: list[_Section], contents: list[bytes], table: int) -> None:
    """Leave out the local symbols that no relocation refers to, and number the others anew."""
    names_at = sections[table].link
    symbols = [_SYMBOL.unpack(entry) for entry in _pieces(contents[table], _SYMBOL.size)]
    relocations = {
        number: [list(struct.unpack("<QQq", entry)) for entry in _pieces(contents[number], _RELOCATION)]
        for number, section in enumerate(sections)
        if section.type == _RELA and section.link == table
    }
    groups = [number for number, one in enumerate(sections) if one.type == _GROUP and one.link == table]
    used = {entry[1] >> 32 for entries in relocations.values() for entry in entries}
    used |= {sections[number].info for number in groups}
    kept = [
        number
        for number, symbol in enumerate(symbols)
        if number == 0 or symbol[1] >> 4 != _LOCAL or number in used
    ]
    new = {old: place for place, old in enumerate(kept)}
    shared = [n for n, one in enumerate(sections) if one.link == names_at and n != table and one.type]
    names = bytearray(b"\0")
    rows = []
    for number in kept:
        name, *rest = symbols[number]
        if not shared:
            end = contents[names_at].index(b"\0", name)
            place = len(names) if name else 0
            names += contents[names_at][name : end + 1] if name else b""
            name = place
        rows.append(_SYMBOL.pack(name, *rest))
    contents[table] = b"".join(rows)
    if not shared:
        contents[names_at] = bytes(names)
    first = next((place for place, old in enumerate(kept) if symbols[old][1] >> 4 != _LOCAL), len(kept))
    sections[table] = sections[table]._replace(info=first)
    for number, entries in relocations.items():
        contents[number] = b"".join(
            struct.pack("<QQq", offset, new[info >> 32] << 32 | info & 0xFFFFFFFF, addend)
            for offset, info, addend in entries
        )
    for number in groups:
        sections[number] = sections[number]._replace(info=new[sections[number].info])


def _write(header: bytes, sections: list[_Section], contents: list[bytes]) -> bytes:
    """Lay out the sections in the order in which they were."""
    image = bytearray(header)
    for number in sorted(range(len(sections)), key=lambda number: sections[number].offset):
        section = sections[number]
        if section.type == 0:
            continue
        if section.align > 1 << 16:
            raise ValueError("a section is aligned to more than a page")
        image += bytes(-len(image) % max(1, section.align))
        size = section.size if section.type == _NOBITS else len(contents[number])
        sections[number] = section._replace(offset=len(image), size=size)
        image += contents[number]
    image += bytes(-len(image) % 8)
    struct.pack_into("<Q", image, 40, len(image))
    for section in sections:
        image += _SECTION.pack(*section)
    return bytes(image)


def _pieces(data: bytes, size: int) -> Iterable[bytes]:
    if len(data) % size:
        raise ValueError("a table has half an entry")
    return (data[at : at + size] for at in range(0, len(data), size))
