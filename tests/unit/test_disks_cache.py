"""The cache: one build per recipe, nothing half-made, the oldest go first."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pyinit_qemu.disks.cache import Cache, cache_folder, digest_tree, remove


def test_is_built_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "data").write_text("made")

    first = cache.entry("kind", {"a": 1}, build)
    again = cache.entry("kind", {"a": 1}, build)
    other = cache.entry("kind", {"a": 2}, build)
    assert first == again != other
    assert (first / "data").read_text() == "made"
    assert len(built) == 2


def test_failure_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("kind", {}, interrupted)
    assert [path for path in (tmp_path / "kind").iterdir() if path.is_dir()] == []
    assert (cache.entry("kind", {}, lambda folder: None)).is_dir()


def test_remains_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    final = cache.entry("kind", {}, lambda folder: None)
    # As a kill leaves it: the temporary folder, or a folder whose stamp was never written.
    (final / ".complete").unlink()
    work = final.with_name(f"{final.name}.new")
    (work / "closed").mkdir(parents=True)
    (work / "closed" / "half").write_text("")
    (work / "closed").chmod(0o500)
    assert cache.entry("kind", {}, lambda folder: (folder / "whole").touch()) == final
    assert (final / "whole").exists()
    assert not work.exists() and not (final / "half").exists()


def test_parallel_callers_build_once(tmp_path: Path) -> None:
    meeting = threading.Barrier(4)
    built: list[Path] = []

    def call() -> None:
        meeting.wait()
        Cache(tmp_path).entry("kind", {}, built.append)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_who_waits_says_so(tmp_path: Path) -> None:
    heard: list[str] = []
    inside = threading.Event()
    told = threading.Event()

    def slow(folder: Path) -> None:
        inside.set()
        assert told.wait(30)

    def hear(message: str) -> None:
        heard.append(message)
        told.set()

    builder = threading.Thread(target=Cache(tmp_path).entry, args=("kind", {}, slow))
    builder.start()
    assert inside.wait(30)
    Cache(tmp_path).entry("kind", {}, lambda folder: None, hear)
    builder.join()
    assert len(heard) == 1 and "waiting for another process" in heard[0]


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, cap=300_000)

    def build(folder: Path) -> None:
        (folder / "data").write_bytes(os.urandom(100_000))

    old, older = (cache.entry("kind", {"n": n}, build) for n in range(2))
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(old / ".complete", (long_ago, long_ago))
    os.utime(older / ".complete", (long_ago - 60, long_ago - 60))
    new, newer = (cache.entry("kind", {"n": n}, build) for n in (2, 3))
    assert [path.is_dir() for path in (older, old, new, newer)] == [False, False, True, True]


def test_digest_sees_every_kind_of_change(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_text("one")
    link = tmp_path / "link"
    link.symlink_to("folder/file")
    seen = [digest_tree(tmp_path)]
    assert digest_tree(tmp_path) == seen[0]
    file.write_text("two")
    seen.append(digest_tree(tmp_path))
    file.chmod(0o600)
    seen.append(digest_tree(tmp_path))
    link.unlink()
    link.symlink_to("folder")
    seen.append(digest_tree(tmp_path))
    file.rename(tmp_path / "folder" / "other")
    seen.append(digest_tree(tmp_path))
    assert len(set(seen)) == len(seen)


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYINIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PYINIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pyinit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pyinit"


def test_remove_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(kept)
    remove(link)
    remove(tmp_path / "nothing")
    assert (kept / "file").exists() and not link.is_symlink()
