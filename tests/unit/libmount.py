"""What util-linux's own library reads in a mount table: the reference that mount(8) and systemd go by."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


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
