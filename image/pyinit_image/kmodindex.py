"""Writer and reader of the indexes that kmod looks modules up in (``modules.dep.bin`` and its kin).

modprobe, udevd's ``kmod`` builtin and the kernel's own requests, which start /sbin/modprobe, all read them.
The format is a radix tree. Numbers are 32 bits, most significant byte first:

    file:  magic 0xB007F457, version 2.1, offset of the root node
    node:  prefix, zero byte                           if its offset has bit 31 set
           first, last character; offset per child     if its offset has bit 29 set
           number of values; (priority, value, 0) each if its offset has bit 30 set

An offset of 0 stands for a child that is not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyinit.text import printable

from .errors import BuildError

MAGIC = 0xB007F457
VERSION = 0x00020001
PREFIX, VALUES, CHILDREN = 1 << 31, 1 << 30, 1 << 29
OFFSET = CHILDREN - 1
#: Characters are 7 bits: kmod has 128 places for children.
CHARACTERS = 128

_U32 = struct.Struct(">I")


@dataclass(slots=True)
class _Node:
    prefix: bytes
    children: dict[int, _Node] = field(default_factory=dict)
    values: list[tuple[int, bytes]] = field(default_factory=list)


def write(rows: Iterable[tuple[str, str, int]]) -> bytes:
    """Encode (key, value, priority) rows; lower priorities are found first.

    Raises :class:`BuildError` for a key or value that the format cannot hold.
    """
    root = _Node(b"")
    for key, value, priority in rows:
        try:
            encoded, content = key.encode("ascii"), value.encode("ascii")
        except UnicodeEncodeError as error:
            raise BuildError(f"{printable(key)}: module names and aliases must be ASCII") from error
        if b"\0" in encoded or b"\0" in content:
            raise BuildError(f"{printable(key)}: a zero byte in a module name or alias")
        _insert(root, encoded, priority, content)
    output = bytearray(12)
    offset = _emit(root, output)
    output[:12] = struct.pack(">III", MAGIC, VERSION, offset)
    return bytes(output)


def read(data: bytes) -> dict[str, list[tuple[int, str]]]:
    """Decode an index: key to (priority, value) pairs. Raises :class:`BuildError` for a damaged one."""
    found: dict[str, list[tuple[int, str]]] = {}
    try:
        magic, version, root = struct.unpack_from(">III", data)
        if (magic, version >> 16) != (MAGIC, VERSION >> 16):
            raise ValueError(f"magic {magic:#x}, version {version:#x}")
        todo = [(root, b"")]
        budget = len(data)
        while todo:
            offset, key = todo.pop()
            # Children are smaller than the file; a loop of offsets is not.
            budget -= 1
            if budget < 0:
                raise ValueError("nodes form a loop")
            at = offset & OFFSET
            if offset & PREFIX:
                end = data.index(0, at)
                key += data[at:end]
                at = end + 1
            if offset & CHILDREN:
                first, last = data[at], data[at + 1]
                at += 2
                for character in range(first, last + 1):
                    (child,) = _U32.unpack_from(data, at)
                    at += 4
                    if child:
                        todo.append((child, key + bytes((character,))))
            if offset & VALUES:
                (count,) = _U32.unpack_from(data, at)
                at += 4
                for _ in range(count):
                    (priority,) = _U32.unpack_from(data, at)
                    end = data.index(0, at + 4)
                    value = data[at + 4 : end].decode("ascii")
                    found.setdefault(key.decode("ascii"), []).append((priority, value))
                    at = end + 1
    except (ValueError, IndexError, struct.error) as error:
        raise BuildError(f"damaged kmod index: {printable(str(error))}") from error
    return found


def _insert(node: _Node, key: bytes, priority: int, value: bytes) -> None:
    while True:
        common = 0
        while common < len(node.prefix) and common < len(key) and node.prefix[common] == key[common]:
            common += 1
        if common < len(node.prefix):
            # Split: the rest of this node becomes a child of a new, shorter one.
            rest = _Node(node.prefix[common + 1 :], node.children, node.values)
            node.children, node.values = {node.prefix[common]: rest}, []
            node.prefix = node.prefix[:common]
        key = key[common:]
        if not key:
            node.values.append((priority, value))
            return
        child = node.children.get(key[0])
        if child is None:
            node.children[key[0]] = _Node(key[1:], {}, [(priority, value)])
            return
        node, key = child, key[1:]


def _emit(node: _Node, output: bytearray) -> int:
    """Append the node behind its children; return its offset with its flags."""
    first, last = min(node.children, default=0), max(node.children, default=0)
    offsets = [
        _emit(node.children[character], output) if character in node.children else 0
        for character in range(first, last + 1)
    ]
    offset = len(output)
    flags = 0
    if node.prefix:
        flags |= PREFIX
        output += node.prefix + b"\0"
    if node.children:
        flags |= CHILDREN
        output += bytes((first, last)) + b"".join(map(_U32.pack, offsets))
    if node.values:
        flags |= VALUES
        output += _U32.pack(len(node.values))
        for priority, value in sorted(node.values):
            output += _U32.pack(priority) + value + b"\0"
    if offset > OFFSET:
        raise BuildError("a kmod index of more than 512 MiB")
    return offset | flags
