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


@pytest.mark.parametrize("with_exchange", [True, False])
def test_without_hard_links_there_is_a_whole_image_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_exchange: bool
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "vfat has none")

    def swap(directory: int, one: str, other: str) -> None:
        if not with_exchange:
            raise OSError(errno.EINVAL, "vfat of an old kernel")
        os.rename(tmp_path / one, tmp_path / "between")
        os.rename(tmp_path / other, tmp_path / one)
        os.rename(tmp_path / "between", tmp_path / other)

    (tmp_path / "image").write_bytes(b"old")
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("pyinit_image.install.exchange", swap)
    install(tmp_path / "image", [b"n", b"ew"])
    assert (tmp_path / "image").read_bytes() == b"new"
    assert (tmp_path / "image.old").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["image", "image.old"]


def test_the_last_step_that_fails_says_that_the_image_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BuildError, match="image is the new image, but its directory cannot be synced"):
        install(tmp_path / "image", b"new")
    assert (tmp_path / "image").read_bytes() == b"new"


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
    with pytest.raises(BuildError, match="cannot be opened: No such file") as caught:
        install(tmp_path / "none/image", b"")
    assert "a directory that exists" in caught.value.hint
    (tmp_path / "folder").mkdir()
    with pytest.raises(BuildError, match="is not a regular file"):
        install(tmp_path / "folder", b"")
