"""Inputs that must fail well, through the real command: one clear error each, and the old image untouched.

Names carry the identifiers of the fault matrix: B1 module tables, B2 missing files, B3 changing files, B4
hostile names and sizes, H6 hostile archives; S and a number is a row of the security table. Each test lays a
few files over a real Debian tree with overlayfs, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from built_image import Image

from pyinit.config.sealed import CONFIG_PATH, parse_config
from pyinit_image import archive, cpio
from pyinit_qemu.debian import DebianRoot

MULTIARCH = "usr/lib/x86_64-linux-gnu"


@dataclass
class Laboratory:
    """A Debian system with changes, and the builder beside it."""

    debian: DebianRoot
    folder: Path
    output: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("patch", "system", "boot"):
            (self.folder / name).mkdir()
        self.output = self.folder / "boot" / "image"
        self.output.write_bytes(b"old")

    def place(self, path: str) -> Path:
        """Where to put something over ``path`` of the system."""
        place = self.folder / "patch" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, path: str, content: bytes) -> None:
        self.place(path).write_bytes(content)
        self.place(path).chmod(0o755)

    def remove(self, path: str) -> None:
        """A whiteout of overlayfs: a character device 0/0."""
        os.mknod(self.place(path), stat.S_IFCHR, os.makedev(0, 0))

    @property
    def modules(self) -> str:
        return f"usr/lib/modules/{self.debian.release}"

    def original(self, path: str) -> bytes:
        return (self.debian.tree / path).read_bytes()

    def build(
        self,
        *arguments: str | Path,
        before: str = "",
        prefix: tuple[str, ...] = (),
        output: Path | None = None,
        path: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``pyinit-image build`` on the changed system; ``before`` is shell code for its namespace."""
        lower = f"{self.folder}/patch:{self.debian.tree}"
        system = self.folder / "system"
        script = f'mount -t overlay none -o "lowerdir={lower}" "{system}"; {before}\nexec "$@"'
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *prefix),
                *(
                    sys.executable,
                    "-m",
                    "pyinit_image.cli",
                    "build",
                    "--no-cache",
                    "-o",
                    output or self.output,
                ),
                *(
                    "--sysroot",
                    system,
                    "--mode",
                    "list",
                    "--module",
                    "ext4",
                    "--compress",
                    "none",
                    *arguments,
                ),
            ],
            env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def refused(self, *expected: str, **options: object) -> str:
        """Build, which must fail with one error that has all of ``expected``, and touch nothing."""
        arguments = options.pop("arguments", ())
        assert isinstance(arguments, tuple)
        done = self.build(*arguments, **options)  # type: ignore[arg-type]
        assert done.returncode == 1, done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("pyinit-image: warning: ")]
        # The error and, perhaps, what to do.
        assert 1 <= len(lines) <= 2 and all(line.startswith("pyinit-image: ") for line in lines), done.stderr
        assert done.stderr.replace("\n", "").isprintable() and done.stderr.isascii()
        for text in expected:
            assert text in done.stderr
        assert done.stdout == ""
        assert self.output.read_bytes() == b"old"
        assert os.listdir(self.output.parent) == ["image"]
        return done.stderr

    def members(self, *arguments: str | Path, **options: object) -> dict[str, cpio.Member]:
        """Build, which must succeed; what is in the image."""
        done = self.build(*arguments, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        self.warnings = done.stderr
        return archive.tree(archive.read(self.output.read_bytes()))

    warnings: str = ""


@pytest.fixture
def lab(bookworm: DebianRoot, tmp_path: Path) -> Laboratory:
    return Laboratory(bookworm, tmp_path)


def patch_dep(lab: Laboratory, change: Callable[[bytes], bytes]) -> None:
    lab.write(f"{lab.modules}/modules.dep", change(lab.original(f"{lab.modules}/modules.dep")))


class TestModuleTables:
    def test_B1_modules_dep_cut_short(self, lab: Laboratory) -> None:
        patch_dep(lab, lambda text: text[: len(text) // 2])
        lab.refused("modules.dep", "depmod")

    def test_B1_modules_dep_with_a_circle(self, lab: Laboratory) -> None:
        lab.write(
            f"{lab.modules}/modules.dep",
            b"kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko: kernel/a.ko\n",
        )
        lab.refused("modules.dep: modules that need each other: a needs b needs c needs a", "depmod")

    def test_B1_modules_dep_missing(self, lab: Laboratory) -> None:
        lab.remove(f"{lab.modules}/modules.dep")
        lab.refused("modules.dep")

    def test_B1_modules_dep_is_something_else(self, lab: Laboratory) -> None:
        lab.write(f"{lab.modules}/modules.dep", bytes(range(128, 256)) + b"\x1b[31m\n" * 1000)
        lab.refused("modules.dep line 1: no module and colon", "depmod")

    def test_B1_a_module_that_is_listed_and_not_there(self, lab: Laboratory) -> None:
        lab.remove(f"{lab.modules}/kernel/fs/ext4/ext4.ko")
        lab.refused("kernel/fs/ext4/ext4.ko", "missing")

    @pytest.mark.parametrize("suffix", [".xz", ".zst", ".gz"])
    def test_B1_a_compressed_module_that_is_damaged(self, lab: Laboratory, suffix: str) -> None:
        old = b"kernel/fs/ext4/ext4.ko"
        patch_dep(lab, lambda text: text.replace(old, old + suffix.encode()))
        lab.write(f"{lab.modules}/kernel/fs/ext4/ext4.ko{suffix}", b"damaged")
        lab.refused(f"ext4.ko{suffix} cannot be decompressed")


class TestMissingFiles:
    def test_B2_a_library(self, lab: Laboratory) -> None:
        lab.remove(f"{MULTIARCH}/libkmod.so.2")
        lab.refused("libkmod.so.2 is missing", "is linked against it", "Install the package")

    def test_B2_the_interpreter_of_a_script(self, lab: Laboratory) -> None:
        lab.write("usr/bin/kmod", b"#!/opt/nowhere/perl -w\n")
        lab.refused("/opt/nowhere/perl is missing", "interpreter of the script")

    def test_B2_the_loader(self, lab: Laboratory) -> None:
        lab.remove(f"{MULTIARCH}/ld-linux-x86-64.so.2")
        lab.refused("ld-linux-x86-64.so.2", "missing")

    def test_B2_firmware_is_a_warning(self, lab: Laboratory) -> None:
        lab.members("--module", "advansys")
        assert "their firmware is not installed: advansys (advansys/" in lab.warnings
        assert "It matters if the root is behind one of them: then install" in lab.warnings

    @pytest.mark.parametrize("path", [f"{MULTIARCH}/libkmod.so.2", "usr/bin/python3", "usr/bin/kmod"])
    def test_B2_a_loop_of_links(self, lab: Laboratory, path: str) -> None:
        name = path.rpartition("/")[2]
        lab.place(path).symlink_to("loop")
        lab.place(path).with_name("loop").symlink_to(name)
        lab.refused("a loop of symbolic links at ", name)

    def test_B2_a_system_without_python(self, lab: Laboratory) -> None:
        lab.remove("usr/bin/python3")
        lab.refused("/usr/bin/python3 is missing", "Python 3.11", "Install the package python3")

    def test_B2_a_python_that_is_too_old(self, lab: Laboratory) -> None:
        lab.place("usr/bin/python3").symlink_to("python3.10")
        lab.write("usr/bin/python3.10", lab.original("usr/bin/python3.11"))
        lab.refused("is Python 3.10; pyinit needs Python 3.11 or later")

    def test_B2_a_system_of_another_architecture(self, lab: Laboratory) -> None:
        binary = bytearray(lab.original("usr/bin/python3.11"))
        binary[18:20] = (183).to_bytes(2, "little")  # e_machine EM_AARCH64 (elf.h)
        lab.write("usr/bin/python3.11", bytes(binary))
        lab.refused("is a system for aarch64, this machine is x86_64")

    def test_B2_a_python_that_does_not_run(self, lab: Laboratory) -> None:
        lab.write("usr/lib/python3.11/ast.py", b"raise SystemError('broken')\n")
        lab.refused("python3.11 could not list the modules it needs", "SystemError: broken")

    def test_B2_a_damaged_program(self, lab: Laboratory) -> None:
        lab.write("usr/bin/kmod", lab.original("usr/bin/kmod")[:1000])
        lab.refused("/usr/bin/kmod is a damaged ELF file")

    @pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "directory"])
    def test_B2_something_else_in_the_place_of_a_file(
        self, lab: Laboratory, kind: str, tmp_path: Path
    ) -> None:
        place = tmp_path / "x"
        if kind == "FIFO":
            os.mkfifo(place)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(place))
        elif kind == "device":
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        else:
            place.mkdir()
        where = lab.place("usr/bin/kmod")
        place.rename(where)
        lab.refused("/usr/bin/kmod is not a regular file but", kind)


# Runs in the builder itself, from its first line on: what happens to a file while it is being read.
SHIM = """
import os, sys
target = {target!r}
if {vanish!r}:
    def look(event, arguments):
        if event == "open" and str(arguments[0]) == target and os.path.exists(target):
            os.unlink(target)
    sys.addaudithook(look)
else:
    fstat = os.fstat
    def grow(fd):
        found = fstat(fd)
        if os.path.exists(target) and os.path.samestat(found, os.stat(target)):
            with open(target, "r+b") as file:
                file.write({content!r})
            os.utime(target, ns=(0, found.st_mtime_ns + 1))
        return found
    os.fstat = grow
"""


class TestChangingFiles:
    def shim(self, tmp_path: Path, *, vanish: bool = False, content: bytes = b"") -> Path:
        (tmp_path / "shim").mkdir()
        (tmp_path / "include").write_bytes(b"before")
        text = SHIM.format(target=str(tmp_path / "include"), vanish=vanish, content=content)
        (tmp_path / "shim" / "sitecustomize.py").write_text(text)
        return tmp_path / "shim"

    def test_B3_a_file_vanishes(self, lab: Laboratory, tmp_path: Path) -> None:
        path = self.shim(tmp_path, vanish=True)
        lab.refused(
            "include cannot be read: No such file", path=path, arguments=("--include", tmp_path / "include")
        )

    @pytest.mark.parametrize("content", [b"after!", b"much longer"])
    def test_B3_a_file_changes(self, lab: Laboratory, tmp_path: Path, content: bytes) -> None:
        path = self.shim(tmp_path, content=content)
        lab.refused(
            "include changed while it was read", path=path, arguments=("--include", tmp_path / "include")
        )

    def test_B3_a_file_of_unknown_length(self, lab: Laboratory) -> None:
        lab.refused(
            "/proc/version changed while it was read: 0 bytes", arguments=("--include", "/proc/version")
        )


class TestHostileNamesAndSizes:
    def test_B4_names_are_kept_byte_for_byte(self, lab: Laboratory, tmp_path: Path) -> None:
        folder = os.fsencode(tmp_path / "folder")
        os.mkdir(folder)
        names = [b"new\nline", b"\xff\xfe", b"\x1b]0;title\x07", b" ", "ä".encode(), b"x" * 255]
        for name in names:
            with open(folder + b"/" + name, "wb") as file:
                file.write(name)
        members = lab.members("--include", f"{tmp_path}/folder:/opt")
        for name in names:
            assert members["/opt/" + os.fsdecode(name)].data == name
        listing = subprocess.run(
            [sys.executable, "-m", "pyinit_image.cli", "ls", lab.output], capture_output=True, check=True
        ).stdout
        assert rb"/opt/new\x0aline" in listing and rb"/opt/\xff\xfe" in listing and b"\x1b" not in listing

    def test_B4_a_name_that_is_too_long_for_the_kernel(self, lab: Laboratory, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        target = "/" + "/".join(["x" * 200] * 21)
        lab.refused(
            "a name of 4220 bytes; the kernel takes 4095",
            arguments=("--include", f"{tmp_path}/file:{target}"),
        )

    def test_B4_a_file_of_more_than_4_GiB(self, lab: Laboratory, tmp_path: Path) -> None:
        with open(tmp_path / "big", "wb") as file:
            file.truncate(2**32)
        lab.refused("big has 4294967296 bytes", "4 GiB", arguments=("--include", tmp_path / "big"))

    @pytest.mark.parametrize("kind", ["fifo", "device"])
    def test_B4_an_include_that_is_no_file(self, lab: Laboratory, tmp_path: Path, kind: str) -> None:
        if kind == "fifo":
            os.mkfifo(tmp_path / "x")
        else:
            os.mknod(tmp_path / "x", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        lab.refused(f"x is not a regular file but a {'FIFO' if kind == 'fifo' else 'character device'}",
                    arguments=("--include", tmp_path / "x"))  # fmt: skip

    def test_B4_an_include_that_may_not_be_read(self, lab: Laboratory, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_bytes(b"secret")
        key.chmod(0o600)
        os.chown(key, 12345, 12345)
        drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
        error = lab.refused("key cannot be read: Permission denied", "as a user who may read it",
                            prefix=drop, arguments=("--include", key))  # fmt: skip
        assert "secret" not in error


class TestOutput:
    def test_I3_a_directory(self, lab: Laboratory, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        lab.refused(
            "folder cannot be written: it exists and is not a regular file", output=tmp_path / "folder"
        )
        assert os.listdir(tmp_path / "folder") == []

    def test_I3_no_such_directory(self, lab: Laboratory, tmp_path: Path) -> None:
        lab.refused("none cannot be opened: No such file or directory", output=tmp_path / "none/image")

    def test_I3_a_read_only_file_system(self, lab: Laboratory, tmp_path: Path) -> None:
        (tmp_path / "ro").mkdir()
        lab.refused("Read-only file system", "remount,rw", output=tmp_path / "ro/image",
                    before=f"mount -t tmpfs -o ro none {tmp_path}/ro")  # fmt: skip

    def test_I3_a_full_file_system(self, lab: Laboratory, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        lab.refused("No space left on device", "a previous image is untouched", "Make room",
                    output=tmp_path / "full/image",
                    before=f"mount -t tmpfs -o size=64k none {tmp_path}/full")  # fmt: skip

    def test_S8_only_the_owner_may_read_an_image(self, lab: Laboratory) -> None:
        lab.members(before="umask 0")
        assert stat.S_IMODE(lab.output.stat().st_mode) == 0o600


class TestExtensions:
    def test_hooks_of_the_target_come_along_with_what_they_import(
        self, lab: Laboratory, tmp_path: Path
    ) -> None:
        source = (
            b"import colorsys\ntry:\n    import nowhere\nexcept ImportError: pass\ndef mount(moment): pass\n"
        )
        lab.write("etc/pyinit/hooks.d/50-colour.py", source)
        members = lab.members()
        place = "/usr/lib/pyinit/pyinit_hooks/50-colour.py"
        assert (members[place].data, members[place].mode) == (source, stat.S_IFREG | 0o644)
        assert "/usr/lib/python3.11/colorsys.pyc" in members
        code = members["/usr/lib/pyinit/pyinit_hooks/__pycache__/50-colour.cpython-311.pyc"].data
        # PEP 552: by the hash of the source, which is compared, so that a corrected file counts.
        assert code[4:8] == b"\3\0\0\0"
        assert parse_config(members[CONFIG_PATH].data).hooks == {"mount": ["50-colour"]}
        why = subprocess.run(
            [sys.executable, "-m", "pyinit_image.cli", "explain", lab.output, "colorsys.pyc"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert (
            "imported by pyinit_hooks.50-colour line 1" in why and "/etc/pyinit/hooks.d/50-colour.py" in why
        )

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                b"import nowhere\ndef mount(moment): pass\n",
                "pyinit_hooks.x line 1 imports nowhere, which this Python 3.11",
            ),
            (b"def mount(moment):\n    return (\n", "x.py:2: '(' was never closed"),
            (
                b"def muont(moment): pass\n",
                "x.py:1: muont() is not the name of a stage; did you mean mount()?",
            ),
        ],
    )
    def test_a_hook_that_cannot_work(
        self, lab: Laboratory, tmp_path: Path, source: bytes, message: str
    ) -> None:
        (tmp_path / "x.py").write_bytes(source)
        lab.refused(message, arguments=("--hook", tmp_path / "x.py"))

    def test_a_hook_that_is_not_there(self, lab: Laboratory, tmp_path: Path) -> None:
        lab.refused("x.py cannot be read: No such file", arguments=("--hook", tmp_path / "x.py"))

    def test_a_feature_that_nobody_knows(self, lab: Laboratory) -> None:
        lab.refused("--feature lvmm: there is no such feature", arguments=("--feature", "lvmm"))


class TestUdevRules:
    def test_S21_rules_of_the_host_do_not_run_in_the_image(self, lab: Laboratory) -> None:
        evil = b'ACTION=="add", RUN+="/usr/local/bin/evil"\n'
        lab.write("etc/udev/rules.d/99-evil.rules", evil)
        lab.write("etc/udev/rules.d/60-block.rules", evil)
        lab.write("usr/lib/udev/rules.d/98-evil.rules", evil)
        members = lab.members()
        assert not [path for path, member in members.items() if b"/usr/local/bin/evil" in member.data]
        assert not any(path.startswith("/etc/udev/rules.d/") for path in members)

    def test_S21_programs_that_are_missing_are_listed(self, lab: Laboratory) -> None:
        rules = lab.original("usr/lib/udev/rules.d/60-block.rules")
        lab.write(
            "usr/lib/udev/rules.d/60-block.rules", rules + b'RUN+="/opt/none --x", PROGRAM=="gone %k"\n'
        )
        lab.members()
        for name in ("/opt/none", "gone"):
            assert f"warning: 60-block.rules calls {name}, which is not in" in lab.warnings


class TestTargets:
    """What the target system decides."""

    def test_a_blacklisted_module_is_explained(self, lab: Laboratory) -> None:
        lab.write("etc/modprobe.d/no.conf", b"blacklist ahci\n")
        lab.members("--mode", "generic")
        done = subprocess.run(
            [sys.executable, "-m", "pyinit_image.cli", "explain", lab.output, "ahci"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "ahci: not in this image (mode generic" in done.stderr
        assert "it is blacklisted by " in done.stderr and "/etc/modprobe.d/no.conf" in done.stderr
        assert "To have it all the same: --module ahci" in done.stderr

    def test_microcode_comes_first(self, lab: Laboratory) -> None:
        """Uncompressed, as the very first archive, all files of a vendor in one."""
        lab.write("usr/lib/firmware/amd-ucode/microcode_amd.bin", b"AMD")
        lab.write("usr/lib/firmware/intel-ucode/06-0a-09", b"one")
        lab.write("usr/lib/firmware/intel-ucode/06-0b-01", b"two")
        lab.write("usr/lib/firmware/intel-ucode/README", b"no")
        lab.members("--compress", "zstd")
        segments = archive.read(lab.output.read_bytes())
        assert (segments[0].offset, segments[0].compression, segments[1].compression) == (0, "none", "zstd")
        early = {member.name: member.data for member in segments[0].members if member.data}
        assert early == {
            b"kernel/x86/microcode/AuthenticAMD.bin": b"AMD",
            b"kernel/x86/microcode/GenuineIntel.bin": b"onetwo",
        }
        lab.members("--microcode", "none", "--compress", "zstd")
        assert archive.read(lab.output.read_bytes())[0].compression == "zstd"


def test_S25_modules_are_not_stripped(small: Image) -> None:
    """What follows the ELF file in a module is its signature."""
    modules = [path for path in small.members if path.endswith(".ko")]
    assert len(modules) > 5
    for path in modules:
        assert small.members[path].data == (small.debian.tree / path[1:]).read_bytes()


def hostile(choice: random.Random) -> bytes:
    """An archive that tries to leave the directory it is unpacked into."""
    names = [
        b"../out",
        b"/out",
        b"a/../../out",
        b"link/out",
        b"link",
        b"./link/../../out",
        b"a",
        b"a/b",
        b"link/a/b",
    ]
    kinds = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFREG | 0o4000]
    targets = [b"..", b"/tmp", b"../../..", b".", b"/", b"link", b"../outside"]
    data = b""
    for _ in range(choice.randint(1, 6)):
        name, kind = choice.choice(names), choice.choice(kinds)
        body = choice.choice(targets)
        size = choice.choice([len(body)] * 12 + [0xFFFFFFFF, 0x7FFFFFFF])
        fields = (choice.randint(0, 3), kind | 0o777, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % value for value in fields) + name + b"\0"
        data += head + b"\0" * (-len(head) % 4) + body + b"\0" * (-len(body) % 4)
    trailer = b"070701" + b"%08X" % 0 * 11 + b"%08X" % 11 + b"%08X" % 0 + b"TRAILER!!!\0"
    return data + (trailer if choice.random() < 0.8 else b"")


def test_H6_S15_nothing_is_written_outside_the_target(tmp_path: Path) -> None:
    choice = random.Random(2015)
    outside = tmp_path / "outside"
    outside.mkdir()
    done = 0
    for _ in range(200):
        target = outside / "target"
        try:
            archive.extract(archive.tree(archive.read(hostile(choice))), target)
            done += 1
        except archive.BuildError as error:
            assert str(error).isascii()
        assert os.listdir(outside) in ([], ["target"])
        shutil.rmtree(target, ignore_errors=True)
    assert 0 < done < 200
    assert os.listdir(tmp_path) == ["outside"]


@pytest.mark.parametrize("command", ["ls", "cat", "explain", "extract"])
def test_H6_commands_refuse_an_archive_that_leaves_the_root(tmp_path: Path, command: str) -> None:
    image = tmp_path / "image"
    member = cpio.Member(b"xx/out", stat.S_IFREG | 0o644, b"hostile")
    content = b"".join(cpio.write([cpio.Member(b"xx", stat.S_IFDIR | 0o755), member]))
    image.write_bytes(content.replace(b"xx", b".."))
    rest = {"ls": [], "cat": ["/out"], "explain": ["out"], "extract": [tmp_path / "target"]}[command]
    done = subprocess.run(
        [sys.executable, "-m", "pyinit_image.cli", command, image, *rest],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "hostile archive: the name .. leaves the root" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["image"]
