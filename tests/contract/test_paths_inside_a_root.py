"""What is resolved without openat2(2) is what openat2 resolves."""

from __future__ import annotations

import os
import tempfile
from errno import EAGAIN, ENOSYS

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.kernel.executable import walk_inside
from pyinit.kernel.syscalls import RESOLVE_IN_ROOT, openat2

names = st.sampled_from(["a", "b", "c", "d"])
parts = st.lists(st.sampled_from(["a", "b", "c", "d", "..", ".", ""]), max_size=5).map("/".join)
paths = st.tuples(st.sampled_from(["", "/"]), parts).map("".join)
# (directory, name, target): a target of None is a directory, of "" a file, else a link.
entries = st.lists(
    st.tuples(st.lists(names, max_size=3).map("/".join), names, st.none() | st.just("") | paths), max_size=12
)


def build(root: str, tree: list[tuple[str, str, str | None]]) -> None:
    for directory, name, target in tree:
        path = os.path.join(root, directory, name)
        try:
            if target is None:
                os.makedirs(path)
            elif target:
                os.symlink(target, path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            continue  # Taken already, or nowhere to put it.


def outcome(opener: object, *arguments: object) -> tuple[str, object]:
    try:
        fd = opener(*arguments)  # type: ignore[operator]
    except OSError as error:
        return "error", error.errno
    try:
        return "inode", os.fstat(fd).st_ino
    finally:
        os.close(fd)


@pytest.mark.fault("row-18")
@given(entries, paths.filter(bool), st.sampled_from([os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY]))
def test_both_ways_lead_to_the_same_file(
    tree: list[tuple[str, str, str | None]], path: str, flags: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        # A way out would be seen: what is above has the same names.
        build(directory, [("", "a", ""), ("", "b", ""), ("", "c", ""), ("", "d", "")])
        root = f"{directory}/root"
        os.mkdir(root)
        build(root, tree)
        fd = os.open(root, os.O_PATH)
        try:
            expected = outcome(openat2, fd, path, flags, RESOLVE_IN_ROOT)
            while expected == ("error", EAGAIN):  # Another process renamed or mounted something.
                expected = outcome(openat2, fd, path, flags, RESOLVE_IN_ROOT)
            if expected == ("error", ENOSYS):
                pytest.skip("this kernel has no openat2")
            assert outcome(walk_inside, fd, path, flags) == expected
        finally:
            os.close(fd)
