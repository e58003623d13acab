"""What util-linux's own library reads in a mount table: the reference that mount(8) and systemd go by."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

_FIELDS = st.lists(
    st.sampled_from(
        [
            b"a",
            b"/",
            b"\\040",
            b"\\134",
            b"\\011",
            b"\\303\\244",
            b"\\8",
            b"\\",
            b":",
            b"\xc3\xa4",
            b"\xff",
            b'"',
        ]
    ),
    min_size=1,
    max_size=8,
).map(b"".join)
_SPECS = _FIELDS.map(lambda path: b"/dev/" + path) | st.builds(
    lambda tag, value, quote: tag + b"=" + quote + value + quote,
    st.sampled_from([b"UUID", b"LABEL", b"PARTLABEL"]),
    _FIELDS.filter(lambda value: b'"' not in value),
    st.sampled_from([b"", b'"', b"'"]),
)
_OPTIONS = st.lists(_FIELDS, min_size=1, max_size=3).map(b",".join)
_BLANKS = st.sampled_from([b" ", b"\t", b" \t "])
_REST = st.sampled_from([b"", b" 0 1", b"\t0"])
_PLACES = _FIELDS.map(lambda path: b"/" + path)
_LINES = st.tuples(_SPECS, _BLANKS, _PLACES, _BLANKS, _FIELDS, _BLANKS, _OPTIONS, _REST).map(b"".join)

FSTABS = st.builds(
    lambda lines, between: between.join(lines) + b"\n",
    st.lists(_LINES, max_size=4),
    st.sampled_from([b"\n", b"\n\n", b"\n # comment\n\t\n"]),
)
"""Tables as people write them, with every kind of escape and quote."""


class Row(NamedTuple):
    """One line, as libmount tells it."""

    id: int
    parent: int
    device: int
    root: str
    target: str
    options: str
    """Of the mount; in fstab all of them."""
    propagation: str
    fstype: str
    source: str
    super_options: str


_TEXTS = ("root", "target", "vfs_options", "optional_fields", "fstype", "source", "fs_options", "options")


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libmount.so.1")
    except OSError as error:
        pytest.skip(f"libmount cannot be loaded: {error}")
    library.mnt_new_table_from_file.restype = library.mnt_new_iter.restype = ctypes.c_void_p
    for name in _TEXTS:
        getattr(library, f"mnt_fs_get_{name}").restype = ctypes.c_char_p
    library.mnt_fs_get_devno.restype = ctypes.c_ulong
    return library


def read(path: Path, data: bytes, *, fstab: bool = False) -> list[Row]:
    """The rows of a table, which is written to ``path`` for it."""
    library = _library()
    path.write_bytes(data)
    table = ctypes.c_void_p(library.mnt_new_table_from_file(os.fsencode(path)))
    if not table:
        return []
    iterator = ctypes.c_void_p(library.mnt_new_iter(0))
    try:
        return list(_rows(library, table, iterator, fstab))
    finally:
        library.mnt_free_iter(iterator)
        library.mnt_unref_table(table)


def _rows(
    library: ctypes.CDLL, table: ctypes.c_void_p, iterator: ctypes.c_void_p, fstab: bool
) -> Iterator[Row]:
    entry = ctypes.c_void_p()
    while library.mnt_table_next_fs(table, iterator, ctypes.byref(entry)) == 0:
        texts = {name: os.fsdecode(getattr(library, f"mnt_fs_get_{name}")(entry) or b"") for name in _TEXTS}
        tag, value = ctypes.c_char_p(), ctypes.c_char_p()
        if library.mnt_fs_get_tag(entry, ctypes.byref(tag), ctypes.byref(value)) == 0:
            texts["source"] = os.fsdecode((tag.value or b"") + b"=" + (value.value or b""))
        yield Row(
            library.mnt_fs_get_id(entry),
            library.mnt_fs_get_parent_id(entry),
            library.mnt_fs_get_devno(entry),
            texts["root"],
            texts["target"],
            texts["options"] if fstab else texts["vfs_options"],
            texts["optional_fields"],
            texts["fstype"],
            texts["source"],
            texts["fs_options"],
        )
