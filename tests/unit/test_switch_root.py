"""What is decided before the root is switched: init, directories, plan, arguments and environment."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit import switch_root
from pyinit.errors import BootError
from pyinit.kernel import executable, mountinfo
from pyinit.kernel.executable import NotExecutable, check_program, read_elf, read_script, walk_inside
from pyinit.rescue import missing
from pyinit.switch_root import (
    InitChoice,
    check_guards,
    check_root,
    empty_directory,
    make_plan,
    needed_inodes,
    real_argv,
    real_environ,
    resolve_init,
)


def elf(
    *, machine: int | None = None, loader: str | None = None, bits: int = 64, kind: int = 3, order: str = "<"
) -> bytes:
    """A program as small as the kernel accepts one, for this machine unless told otherwise."""
    own = executable._own_elf()
    assert own is not None
    ident = b"\x7fELF" + bytes((2 if bits == 64 else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    words = (kind, own.machine if machine is None else machine, 1)
    name = b"" if loader is None else os.fsencode(loader) + b"\0"
    segment = 1 if loader is None else 3
    if bits == 64:
        header = struct.pack(order + "HHIQQQIHHHHHH", *words, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        table = struct.pack(order + "IIQQQQQQ", segment, 4, 120, 0, 0, len(name), len(name), 1)
    else:
        header = struct.pack(order + "HHIIIIIHHHHHH", *words, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        table = struct.pack(order + "IIIIIIII", segment, 84, 0, 0, len(name), len(name), 4, 1)
    return ident + header + table + name


class Root:
    """A new root in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def add(self, name: str, content: bytes, mode: int = 0o755) -> None:
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    path = tmp_path / "root"
    path.mkdir()
    return Root(path)


def refusal(act: Callable[[], object]) -> BootError:
    with pytest.raises(BootError) as caught:
        act()
    return caught.value


# init


@pytest.mark.parametrize("name", switch_root.CANDIDATES)
def test_each_candidate_is_found(root: Root, name: str) -> None:
    root.add(name, elf())
    choice = resolve_init(str(root), None)
    assert (choice.path, choice.real) == (name, name)


def test_candidates_come_in_the_order_of_the_kernel(root: Root) -> None:
    for name in reversed(switch_root.CANDIDATES):
        root.add(name, elf())
        assert resolve_init(str(root), None).path == name


def test_absolute_links_are_followed_inside_the_new_root(root: Root) -> None:
    root.add("/nix/store/abc-systemd/lib/systemd/systemd", elf(loader="/lib64/ld.so"))
    root.link("/run/current", "/nix/store/abc-systemd")
    root.link("/sbin/init", "/../../../run/current/lib/systemd/systemd")
    root.link("/lib64", "usr/lib64")
    root.add("/usr/lib64/ld.so", elf())
    choice = resolve_init(str(root), None)
    assert choice == InitChoice("/sbin/init", "/nix/store/abc-systemd/lib/systemd/systemd", ())


def test_links_are_followed_without_openat2(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "open_inside", walk_inside)
    test_absolute_links_are_followed_inside_the_new_root(root)


def test_a_link_that_works_only_in_the_initramfs_is_refused(root: Root) -> None:
    root.link("/sbin/init", "/proc/self/exe")
    error = refusal(lambda: resolve_init(str(root), "/sbin/init"))
    assert error.tried == ("/sbin/init is a symbolic link to /proc/self/exe, which is missing",)


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        ("/missing", "/missing is missing"),
        ("/etc", "/etc is a directory"),
        ("/etc/fstab/init", "/etc/fstab/init is missing"),
        ("relative", "relative is not an absolute path"),
        ("/etc/fstab", "/etc/fstab has no execute permission (mode 0644)"),
        ("/loop", "/loop is a symbolic link that leads in a circle"),
        ("/empty", "/empty is empty"),
        ("/text", "/text is neither an ELF program nor a script that starts with #!"),
        ("/fifo", "/fifo is not a regular file"),
        ("/object", "/object is an ELF file, but not a program"),
        ("/cut", "/cut is a damaged ELF file: it has no complete table of segments"),
        (
            "/script",
            "/script needs the interpreter /usr/bin/perl, which is missing",
        ),
        (
            "/dynamic",
            "/dynamic needs the interpreter /lib64/ld-linux-x86-64.so.2, which is missing",
        ),
        (
            "/indirect",
            "/indirect needs the interpreter /script, which needs the interpreter /usr/bin/perl, "
            "which is missing",
        ),
        ("/self", "/self is a script of a script of a script, deeper than the kernel goes"),
        ("/run/init", "/run/init lies in /run/init, where another file system will be mounted"),
        ("/\x1b[2J", "/\\x1b[2J is missing"),
        ("/\0", "/\\x00 is not a possible path"),
        ("/\udcff", "/\\xff is missing"),
    ],
)
def test_an_init_that_cannot_be_executed_is_explained(root: Root, requested: str, reason: str) -> None:
    root.add("/etc/fstab", b"", 0o644)
    root.link("/loop", "loop")
    root.add("/empty", b"")
    root.add("/text", b"exec something\n")
    root.add("/object", elf(kind=1))
    root.add("/cut", elf()[:100])
    root.add("/script", b"#! /usr/bin/perl -w\n")
    root.add("/indirect", b"#!/script\n")
    root.add("/self", b"#!/self\n")
    root.add("/dynamic", elf(loader="/lib64/ld-linux-x86-64.so.2"))
    root.add("/run/init", elf())
    os.mkfifo(root.path / "fifo", 0o755)
    error = refusal(lambda: resolve_init(str(root), requested))
    assert error.code == "E-INIT"
    told = error.tried[0]
    if requested == "/self":
        assert told.endswith("which is a script of a script of a script, deeper than the kernel goes")
    else:
        assert told == reason


def test_a_wrong_init_names_the_ones_that_would_work(root: Root) -> None:
    root.add("/sbin/init", elf())
    root.add("/bin/sh", elf())
    error = refusal(lambda: resolve_init(str(root), "/sbin/inti"))
    assert error.found == ("could be executed instead: /sbin/init, /bin/sh",)
    assert "init=/sbin/init" in error.advice[0]


def test_without_any_init_every_candidate_has_its_reason(root: Root) -> None:
    root.add("/sbin/init", b"#!/bin/sh\n")
    root.add("/bin/init", b"", 0o600)
    error = refusal(lambda: resolve_init(str(root), None))
    assert error.tried == (
        "/sbin/init needs the interpreter /bin/sh, which is missing",
        "/etc/init is missing",
        "/bin/init has no execute permission (mode 0600)",
        "/bin/sh is missing",
    )
    assert "bin, sbin" in error.found[0]


def test_a_candidate_that_was_passed_over_is_a_warning(root: Root) -> None:
    root.link("/sbin/init", "/lib/systemd/systemd")
    root.add("/bin/sh", elf())
    assert resolve_init(str(root), None).warnings[0] == (
        "/sbin/init is a symbolic link to /lib/systemd/systemd, which is missing; /bin/sh is used instead"
    )


def test_a_program_for_another_machine_is_refused(root: Root) -> None:
    root.add("/sbin/init", elf(machine=8))
    error = refusal(lambda: resolve_init(str(root), "/sbin/init"))
    assert error.tried[0].startswith("/sbin/init is built for MIPS (64-bit), this machine is ")
    root.add("/sbin/init", elf(order=">"))
    assert refusal(lambda: resolve_init(str(root), "/sbin/init")).code == "E-INIT"


def test_a_32_bit_program_is_a_warning_where_the_kernel_may_run_it(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable, "_own_elf", lambda: executable.Elf(64, "little", 62, None))
    root.add("/sbin/init", elf(machine=3, bits=32, loader="/lib/ld-linux.so.2"))
    root.add("/lib/ld-linux.so.2", elf(machine=3, bits=32))
    choice = resolve_init(str(root), None)
    assert choice.path == "/sbin/init"
    assert "is a 32-bit program (i386)" in choice.warnings[0]


def test_a_loader_for_another_machine_is_refused(root: Root) -> None:
    root.add("/sbin/init", elf(loader="/lib/ld.so"))
    root.add("/lib/ld.so", elf(machine=8))
    with pytest.raises(NotExecutable, match=r"needs the interpreter /lib/ld\.so, which is built for MIPS"):
        check_program(str(root), "/sbin/init")


def test_every_program_of_this_machine_passes() -> None:
    for name in ("/bin/sh", "/bin/ls", "/usr/bin/ldd"):
        assert check_program("/", name).warnings == ()


@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_elf_reader(data: bytes) -> None:
    for content in (data, b"\x7fELF" + data, elf()[:64] + data, elf(bits=32)[:52] + data):
        try:
            read_elf(lambda offset, size, content=content: content[offset : offset + size])  # type: ignore[misc]
        except ValueError as error:
            assert str(error).startswith("is ")


@given(st.integers(0, 180), st.integers(0, 255), st.sampled_from([32, 64]), st.sampled_from("<>"))
def test_no_single_damaged_byte_surprises_the_elf_reader(at: int, value: int, bits: int, order: str) -> None:
    data = bytearray(elf(bits=bits, order=order, loader="/lib/ld.so"))
    data[at % len(data)] = value
    try:
        read_elf(lambda offset, size: bytes(data[offset : offset + size]))
    except ValueError as error:
        assert str(error).startswith("is ")


@given(st.binary(max_size=80))
def test_a_damaged_file_as_init_is_refused_or_taken_but_never_surprises(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executable, "_own_elf", lambda: None)
        try:
            executable._check_contents(
                -1, lambda offset, size: data[offset : offset + size], "/init", 0, True
            )
        except NotExecutable as error:
            assert str(error).startswith("is ")


@pytest.mark.parametrize(
    ("line", "interpreter"),
    [
        (b"#!/bin/sh\n", "/bin/sh"),
        (b"#! \t/bin/sh -e x\n", "/bin/sh"),
        (b"#!/bin/sh\t-e", "/bin/sh"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/\xff\n", "/bin/\udcff"),
        (b"\x7fELF", None),
        (b"", None),
    ],
)
def test_the_first_line_of_a_script(line: bytes, interpreter: str | None) -> None:
    assert read_script(line) == interpreter


@pytest.mark.parametrize("line", [b"#!\n", b"#!   \n/bin/sh", b"#!/" + b"x" * 300])
def test_a_first_line_the_kernel_refuses(line: bytes) -> None:
    with pytest.raises(ValueError, match="first line"):
        read_script(line[:256])


@given(st.binary(max_size=300))
def test_no_first_line_surprises(data: bytes) -> None:
    try:
        read_script(b"#!" + data)
    except ValueError as error:
        assert str(error).startswith("is ")


# The root


def test_a_file_system_that_is_no_root_is_shown(root: Root) -> None:
    assert "it is empty" in refusal(lambda: check_root(str(root))).found
    (root.path / "lost+found").mkdir()
    root.add("/photos/\x1b[31m.jpg", b"")
    root.add("/\x1b[2J", b"")
    error = refusal(lambda: check_root(str(root)))
    assert error.code == "E-ROOTFS"
    assert error.found == ("it holds \\x1b[2J, lost+found, photos",)


def test_an_unusual_root_is_believed_when_it_has_the_init_that_was_asked_for(root: Root) -> None:
    root.add("/hello", elf())
    assert check_root(str(root), "/hello") == ()


def test_a_usr_that_was_not_mounted_is_noticed(root: Root) -> None:
    (root.path / "usr").mkdir()
    root.link("/bin", "usr/bin")
    root.link("/sbin", "/usr/sbin")
    error = refusal(lambda: check_root(str(root)))
    assert (error.code, error.found[0]) == ("E-ROOTFS", "/bin, /sbin lead into /usr")
    assert "mount.usr=" in error.advice[0]
    root.add("/usr/bin/sh", elf())
    assert check_root(str(root)) == ()


def test_a_root_that_needs_no_usr_may_have_an_empty_one(root: Root) -> None:
    (root.path / "usr").mkdir()
    root.add("/bin/sh", elf())
    assert check_root(str(root)) == ()


@pytest.mark.parametrize("name", switch_root.API)
def test_a_link_in_place_of_a_mount_point_is_refused(root: Root, name: str) -> None:
    root.add("/bin/sh", elf())
    root.link(name, "/\x1b[1m")
    error = refusal(lambda: check_root(str(root)))
    assert error.code == "E-ROOTFS"
    assert error.found == (f"{root}/{name} is a symbolic link to /\\x1b[1m",)


def test_outside_an_initramfs_nothing_is_switched(root: Root) -> None:
    error = refusal(lambda: check_guards(str(root), mountinfo.read()))
    assert error.code == "E-SWITCH"
    assert error.found[0] == f"this process is {os.getpid()} and not 1, so it cannot become init"
    assert f"nothing is mounted on {root}" in error.found
    assert "/.pyinit-complete is not on the file system of /" in error.found


# The plan

TABLE = mountinfo.parse(
    b"""1 1 0:2 / / rw - rootfs rootfs rw
20 1 0:20 / /proc rw - proc proc rw
21 1 0:21 / /sys rw - sysfs sysfs rw
22 21 0:22 / /sys/fs/bpf rw - bpf bpf rw
23 1 0:23 / /dev rw - devtmpfs devtmpfs rw
24 23 0:24 / /dev/pts rw - devpts devpts rw
25 1 0:25 / /run rw - tmpfs tmpfs rw
30 1 8:1 / /sysroot rw - ext4 /dev/sda1 rw
31 30 8:2 / /sysroot/usr rw - ext4 /dev/sda2 rw
40 1 0:40 / /live rw - tmpfs live rw
41 40 7:0 / /live/medium ro - iso9660 /dev/loop0 ro
"""
)
READY = dict.fromkeys(switch_root.API, "ready")


def test_the_plan_moves_what_the_kernel_offers_and_leaves_the_rest() -> None:
    plan = make_plan(TABLE, "/sysroot", READY)
    assert [step.describe() for step in plan.steps] == [
        "make all mounts private",
        "move /dev to /sysroot/dev with /dev/pts",
        "move /proc to /sysroot/proc",
        "move /sys to /sysroot/sys with /sys/fs/bpf",
        "move /run to /sysroot/run",
        "make /sysroot the root, leaving behind /live/medium, /live",
    ]
    assert {mount.target for mount in TABLE} - {mount.target for mount in plan.survivors} == {
        "/",
        "/live",
        "/live/medium",
    }


def test_missing_mount_points_are_made_before_anything_moves() -> None:
    plan = make_plan(TABLE, "/sysroot", {**READY, "run": "create"})
    told = [step.describe() for step in plan.steps]
    assert told[1] == "create /sysroot/run"
    assert "move /run to /sysroot/run" in told


@pytest.mark.parametrize("state", ["absent", "mounted"])
def test_a_mount_without_a_place_is_left_behind(state: str) -> None:
    plan = make_plan(TABLE, "/sysroot", {**READY, "sys": state})
    assert plan.steps[-1] == switch_root.Enter("/sysroot", ("/sys/fs/bpf", "/live/medium", "/sys", "/live"))
    assert plan.warnings[0].startswith("/sys is left behind")


def test_a_new_root_on_a_mount_of_its_own_leaves_that_mount_behind() -> None:
    table = mountinfo.parse(
        b"1 1 0:2 / / rw - rootfs rootfs rw\n"
        b"2 1 0:3 / /mnt rw - tmpfs t rw\n"
        b"3 2 8:1 / /mnt/root rw - ext4 d rw\n"
    )
    assert make_plan(table, "/mnt/root", READY).steps[-1] == switch_root.Enter("/mnt/root", ("/mnt",))


@given(
    st.lists(st.sampled_from(TABLE), unique=True), st.sampled_from(["ready", "create", "absent", "mounted"])
)
def test_every_mount_is_either_kept_or_left(table: list[mountinfo.Mount], state: str) -> None:
    plan = make_plan(table, "/sysroot", dict.fromkeys(switch_root.API, state))
    enter = plan.steps[-1]
    assert isinstance(enter, switch_root.Enter)
    survivors = [mount.target for mount in plan.survivors]
    assert sorted([*survivors, *enter.left]) == sorted(mount.target for mount in table if mount.target != "/")


def test_an_overlay_layer_that_cannot_be_found_forbids_deleting(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev

    def overlay(options: str) -> mountinfo.Mount:
        return mountinfo.Mount(1, 0, (0, 1), "/", "/x", (), (), "overlay", "o", tuple(options.split(",")))

    inode = os.stat(tmp_path).st_ino
    assert needed_inodes([overlay(f"rw,lowerdir+={tmp_path}")], device) == {inode}
    assert needed_inodes([overlay(f"lowerdir={tmp_path}::{tmp_path}/missing")], device) is None
    assert needed_inodes([overlay("upperdir=relative")], device) is None
    assert needed_inodes([], device) == frozenset()


# Emptying


def test_emptying_follows_no_link_and_spares_what_is_needed(tmp_path: Path) -> None:
    outside = Root(tmp_path / "outside")
    outside.add("/precious", b"")
    inside = Root(tmp_path / "inside")
    inside.add("/a/b/c/file", b"")
    inside.add("/needed/inner/file", b"")
    inside.add("/needed-file", b"")
    inside.add("/\udcff\n", b"")
    inside.link("/a/out", str(outside))
    inside.link("/dangling", "nowhere")
    fd = os.open(inside.path, os.O_RDONLY)
    needed = {(inside.path / name).stat().st_ino for name in ("needed", "needed-file")}
    try:
        assert empty_directory(fd, os.fstat(fd).st_dev, needed) == []
    finally:
        os.close(fd)
    assert (outside.path / "precious").exists()
    assert sorted(str(path.relative_to(inside.path)) for path in inside.path.rglob("*")) == [
        "needed",
        "needed-file",
        "needed/inner",
        "needed/inner/file",
    ]


def test_emptying_stays_on_the_file_system_it_was_told(root: Root) -> None:
    root.add("/directory/file", b"")
    fd = os.open(root.path, os.O_RDONLY)
    try:
        failures = empty_directory(fd, os.fstat(fd).st_dev + 1)
    finally:
        os.close(fd)
    assert failures == ["/directory: something else is mounted there"]
    assert (root.path / "directory/file").exists()


# Arguments and environment


def test_init_gets_its_own_name_and_the_words_meant_for_it() -> None:
    choice = InitChoice("/sbin/init", "/usr/lib/systemd/systemd", ())
    assert real_argv(choice, [b"/init", b"single", b"\xff"]) == [b"/sbin/init", b"single", b"\xff"]
    assert real_argv(choice, []) == [b"/sbin/init"]


def test_the_environment_is_what_the_kernel_gives() -> None:
    words = [
        b"HOME=/",
        b"TERM=linux",
        b"splash=a=b",
        b"TERM=vt100",
        b"PYTHONINSPECT=1",
        b"LD_DEBUG=help",
        b"LC_CTYPE=C.UTF-8",
        b"empty=",
        b"novalue",
        b"=noname",
        b"\xff=\xfe",
    ]
    assert real_environ(words) == {
        b"HOME": b"/",
        b"TERM": b"vt100",
        b"splash": b"a=b",
        b"empty": b"",
        b"\xff": b"\xfe",
    }
    assert real_environ([]) == {b"HOME": b"/", b"TERM": b"linux"}


@given(st.lists(st.binary(max_size=30)))
def test_no_word_steers_an_interpreter(words: list[bytes]) -> None:
    environ = real_environ(
        [*words, *(b"LD_" + word for word in words), *(b"PYTHON" + word for word in words)]
    )
    assert not [name for name in environ if name.startswith((b"LD_", b"PYTHON")) or b"=" in name or not name]


def test_a_root_whose_disk_is_gone_is_no_matter_of_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(switch_root.os, "stat", gone)
    with pytest.raises(BootError, match="E-SWITCH") as caught:
        check_guards("/sysroot", ())
    explained = missing.silent_root(caught.value, None)
    assert explained is not None and explained.code == "E-IO"
