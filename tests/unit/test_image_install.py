"""An image is put into place whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image.errors import BuildError
from pyinit_image.install import install


def test_mode_and_previous_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    install(image, b"one")
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["image"]
    install(image, b"two")
    install(image, b"three")
    assert image.read_bytes() == b"three"
    assert (tmp_path / "image.old").read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]


def test_what_a_killed_builder_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".image.new").write_bytes(b"half")
    (tmp_path / ".image.spare").write_bytes(b"half")
    (tmp_path / "image").write_bytes(b"old")
    install(tmp_path / "image", b"new")
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]


@pytest.mark.parametrize(
    "call", ["open", "fchmod", "write", "fsync", "posix_fadvise", "read", "link", "rename"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_call_leaves_the_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    real: Callable[..., object] = getattr(os, call)

    def fail(*arguments: object, **options: object) -> object:
        # The directory may be opened: everything after that may fail.
        if call == "open" and str(arguments[0]) == str(tmp_path):
            return real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BuildError, match="image cannot be written: .*; a previous image is untouched"):
        install(image, b"new")
    monkeypatch.undo()
    assert image.read_bytes() == b"old"
    assert set(os.listdir(tmp_path)) <= {"image", ".image.spare"}
    install(image, b"new")
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]


def test_what_reads_back_differently_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    chunks = iter((b"nex", b""))
    monkeypatch.setattr(os, "read", lambda fd, size: next(chunks))
    with pytest.raises(BuildError, match="what was written reads back differently"):
        install(image, b"new")
    assert image.read_bytes() == b"old"


def test_without_hard_links_the_previous_image_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "vfat has none")

    (tmp_path / "image").write_bytes(b"old")
    monkeypatch.setattr(os, "link", refuse)
    install(tmp_path / "image", b"new")
    assert (tmp_path / "image").read_bytes() == b"new"
    assert (tmp_path / "image.old").read_bytes() == b"old"


def test_builders_take_turns(tmp_path: Path) -> None:
    contents = [bytes([65 + number]) * 300_000 for number in range(8)]
    threads = [threading.Thread(target=install, args=(tmp_path / "image", data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "image").read_bytes() in contents
    assert (tmp_path / "image.old").read_bytes() in contents
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]


def test_places_that_cannot_hold_an_image(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be opened: No such file"):
        install(tmp_path / "none/image", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BuildError, match="is not a regular file"):
        install(tmp_path / "folder", b"")
