"""What is found in a sound image, which is nothing, and in one that is broken in one place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built_image import Image
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.sealed import CONFIG_PATH, MODULES_PATH, SENTINEL_PATH
from pyinit_image import archive, cpio, elf, plan, verify
from pyinit_image.errors import BuildError
from pyinit_image.verify import Finding
from pyinit_image.verify.unpacked import Unpacked
from pyinit_qemu.debian import DebianRoot

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def inspect(content: bytes, **options: Any) -> list[Finding]:
    """The findings for an image file."""
    try:
        return verify.static(archive.read(content), packed=len(content), **options)
    except BuildError as error:
        return [verify.unreadable(error)]


class Copy:
    """The members of an image, to be broken and packed again."""

    def __init__(self, image: Image) -> None:
        self.members = dict(image.members)

    def data(self, path: str, data: bytes) -> None:
        self.members[path] = dataclasses.replace(self.members[path], data=data)

    def add(self, path: str, data: bytes, mode: int = FILE) -> None:
        self.members[path] = cpio.Member(path[1:].encode(), mode, data)

    def find(self, name: str) -> str:
        """The only regular file of this name."""
        (path,) = (
            path
            for path, member in self.members.items()
            if posixpath.basename(path) == name and stat.S_ISREG(member.mode)
        )
        return path

    def remove(self, name: str) -> str:
        path = self.find(name)
        del self.members[path]
        return path

    def order(self) -> list[str]:
        return sorted(self.members, key=lambda path: (path == SENTINEL_PATH, path.split("/")))

    def pack(self, *, sealed: bool = True) -> bytes:
        """The image; ``sealed`` writes manifest and sentinel anew, as if it had been built like that."""
        if sealed:
            self._seal()
        members = (
            dataclasses.replace(self.members[path], name=path[1:].encode("utf-8", "surrogateescape"))
            for path in self.order()
        )
        return b"".join(cpio.write(members))

    def findings(self, *, sealed: bool = True, **options: object) -> list[Finding]:
        return inspect(self.pack(sealed=sealed), **options)  # type: ignore[arg-type]

    def _seal(self) -> None:
        old = json.loads(self.members[plan.MANIFEST_PATH].data)
        kinds = {
            stat.S_IFREG: "file",
            stat.S_IFDIR: "directory",
            stat.S_IFLNK: "link",
            stat.S_IFCHR: "device",
        }
        entries: dict[str, dict[str, object]] = {}
        for path, member in self.members.items():
            if path in (plan.MANIFEST_PATH, SENTINEL_PATH):
                continue
            row: dict[str, object] = {"kind": kinds[stat.S_IFMT(member.mode)], "reason": "", "source": "test"}
            if stat.S_ISREG(member.mode):
                row |= {"size": len(member.data), "sha256": hashlib.sha256(member.data).hexdigest()}
            entries[path] = row
        data = json.dumps({**old, "entries": entries}).encode()
        self.data(plan.MANIFEST_PATH, data)
        digest = hashlib.sha256(data).hexdigest()
        self.data(SENTINEL_PATH, f"entries {len(entries) + 1}\nmanifest sha256 {digest}\n".encode())


@pytest.fixture
def copy(small: Image) -> Copy:
    return Copy(small)


def only(findings: list[Finding], code: str, *, fatal: bool = True) -> Finding:
    """The one finding there is."""
    assert [(finding.code, finding.fatal) for finding in findings] == [(code, fatal)], findings
    assert findings[0].hint
    return findings[0]


@pytest.mark.parametrize("suite", ["bookworm", "trixie", "sid"])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_sound_image_has_no_findings(image: Callable[..., Image], suite: str, compress: str) -> None:
    built = image(suite, compress=compress)
    content = built.path.read_bytes()
    assert inspect(content, kernel=built.debian.release, memory=512 << 20) == []


def test_a_sound_generic_image_has_no_findings(image: Callable[..., Image]) -> None:
    built = image("bookworm", mode="generic", modules=())
    assert inspect(built.path.read_bytes(), kernel=built.debian.release, memory=512 << 20) == []


def test_sealing_anew_breaks_nothing(copy: Copy) -> None:
    assert copy.findings() == []


def test_a_library_that_is_missing(copy: Copy) -> None:
    path = copy.remove(posixpath.basename(_target(copy, "libkmod.so.2")))
    found = only(copy.findings(), "library")
    assert "libkmod.so.2 is needed by " in found.message and "systemd-udevd" not in posixpath.basename(path)
    assert "the udev daemon does not start, and no disk is found" in found.message


def test_a_library_of_the_interpreter(copy: Copy) -> None:
    copy.remove(posixpath.basename(_target(copy, "libexpat.so.1")))
    found = only(copy.findings(), "library")
    assert "libexpat.so.1 is needed by /usr/bin/python3.11" in found.message
    assert "PID 1 does not start and the kernel panics" in found.message


def test_a_library_of_a_python_module_is_reported_once(copy: Copy) -> None:
    copy.remove(posixpath.basename(_target(copy, "libffi.so.8")))
    assert "libffi.so.8" in only(copy.findings(), "library").message


def test_a_library_for_another_processor(copy: Copy) -> None:
    path = copy.find(posixpath.basename(_target(copy, "libkmod.so.2")))
    data = copy.members[path].data
    copy.data(path, data[:18] + (183).to_bytes(2, "little") + data[20:])
    findings = copy.findings()
    assert sorted(finding.code for finding in findings) == ["library", "machine"]
    assert all(finding.fatal for finding in findings)
    assert any("the image has it for another processor only" in finding.message for finding in findings)


def test_a_library_that_is_damaged(copy: Copy) -> None:
    path = copy.find(posixpath.basename(_target(copy, "libkmod.so.2")))
    copy.data(path, copy.members[path].data[:1000])
    codes = [finding.code for finding in copy.findings()]
    assert sorted(codes) == ["elf", "library"]


def test_the_program_loader(copy: Copy) -> None:
    copy.remove(posixpath.basename(_target(copy, "ld-linux-x86-64.so.2")))
    found = only(copy.findings(), "library")
    assert "PID 1 does not start and the kernel panics" in found.message


def test_the_interpreter_of_init_and_of_a_script(copy: Copy) -> None:
    path = copy.remove("python3.11")
    found = only(copy.findings(), "interpreter")
    assert found.path == path
    assert "/init" in found.message and "/usr/bin/pyinit" in found.message and "panics" in found.message


def test_a_script_whose_interpreter_may_not_be_executed(copy: Copy) -> None:
    copy.add("/usr/bin/interpreter", b"\x7fELF")
    copy.add("/usr/bin/tool", b"#! /bin/interpreter -x\n", stat.S_IFREG | 0o755)
    copy.add("/usr/bin/not-executed", b"#!/nowhere\n")
    found = only(copy.findings(), "interpreter")
    assert "/bin/interpreter, which executes /usr/bin/tool, may not be executed" in found.message


def test_a_python_module_that_is_imported_at_once(copy: Copy) -> None:
    path = next(path for path in copy.members if path.endswith("/json/decoder.pyc"))
    del copy.members[path]
    found = only(copy.findings(), "python")
    assert "the Python module json.decoder is missing" in found.message
    assert "pyinit.boot" in found.message


def test_a_python_module_that_a_function_imports(copy: Copy) -> None:
    del copy.members["/usr/lib/pyinit/pyinit/boot.py"]
    found = only(copy.findings(), "python")
    assert "pyinit.boot is missing; it is imported by pyinit.__main__ line " in found.message


def test_a_python_package_without_a_module_that_is_imported_from_it(copy: Copy) -> None:
    copy.add("/usr/lib/pyinit/pyinit/extra.py", b"def late():\n    from pyinit import nothing\n")
    found = only(copy.findings(), "python")
    assert "pyinit.nothing is missing; it is imported by pyinit.extra line 2" in found.message


def test_a_python_module_that_cannot_be_imported(copy: Copy) -> None:
    path = next(path for path in copy.members if path.endswith("/pyudev/monitor.pyc"))
    copy.data(path, b"rubbish")
    found = only(copy.findings(), "python")
    assert "pyudev cannot be imported: ImportError: bad magic number in 'pyudev.monitor'" in found.message


def test_an_extension_module_that_is_missing(copy: Copy) -> None:
    name = next(posixpath.basename(path) for path in copy.members if "/_psutil_linux" in path)
    copy.remove(name)
    assert "_psutil_linux" in only(copy.findings(), "python").message


def test_hooks_are_read_but_not_executed(copy: Copy, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hook = f"open({str(trace)!r}, 'w')\ndef cmdline(moment):\n    import tomllib\n"
    copy.add("/usr/lib/pyinit/pyinit_hooks", b"", DIRECTORY)
    copy.add("/usr/lib/pyinit/pyinit_hooks/__init__.py", b"")
    copy.add("/usr/lib/pyinit/pyinit_hooks/mine.py", hook.encode())
    found = only(copy.findings(), "python")
    assert "tomllib is missing; it is imported by pyinit_hooks.mine line 3" in found.message
    assert not trace.exists()


def test_a_hook_that_is_no_python(copy: Copy) -> None:
    copy.add("/usr/lib/pyinit/pyinit_hooks", b"", DIRECTORY)
    copy.add("/usr/lib/pyinit/pyinit_hooks/__init__.py", b"")
    copy.add("/usr/lib/pyinit/pyinit_hooks/mine.py", b"def\n")
    assert "is no Python" in only(copy.findings(), "python").message


def test_modules_for_another_kernel(copy: Copy, small: Image) -> None:
    found = only(copy.findings(kernel="6.99"), "kernel")
    assert f"the modules are for Linux {small.debian.release}, not for 6.99" in found.message
    assert "--kernel-version 6.99" in found.hint


def test_a_module_that_was_made_for_another_kernel(copy: Copy, small: Image) -> None:
    path = copy.find("jbd2.ko")
    release = small.debian.release.encode()
    copy.data(
        path, copy.members[path].data.replace(b"vermagic=" + release, b"vermagic=" + b"9" * len(release))
    )
    found = only(copy.findings(), "vermagic")
    assert found.path == path and "made for Linux 9" in found.message


def test_a_module_that_another_one_depends_on(copy: Copy) -> None:
    path = copy.remove("jbd2.ko")
    found = only(copy.findings(), "module")
    assert found.path == path
    for user in ("ext4", "modules.json", "modules.dep.bin"):
        assert user in found.message


def test_a_module_that_is_no_module(copy: Copy) -> None:
    copy.data(copy.find("jbd2.ko"), b"rubbish")
    assert "jbd2.ko is no kernel module" in only(copy.findings(), "module").message


def test_a_module_that_depends_on_one_that_no_index_knows(copy: Copy) -> None:
    path = copy.find("ext4.ko")
    data = re.sub(rb"(depends=[a-z0-9_,]*)mbcache", rb"\1mbcashe", copy.members[path].data)
    copy.data(path, data)
    found = only(copy.findings(), "module")
    assert "the kernel module mbcashe is not there; ext4 would need it" in found.message


@pytest.mark.parametrize("name", ["modules.dep.bin", "modules.alias.bin"])
def test_an_index_that_is_damaged(copy: Copy, name: str) -> None:
    copy.data(copy.find(name), b"rubbish")
    assert "damaged kmod index" in only(copy.findings(), "index").message


def test_an_index_of_pid_1_that_is_damaged(copy: Copy) -> None:
    copy.data(MODULES_PATH, b"{}")
    assert "PID 1 of this version stops with E-IMAGE" in only(copy.findings(), "index").message


def test_an_index_that_lacks_a_module(copy: Copy) -> None:
    raw = json.loads(copy.members[MODULES_PATH].data)
    del raw["modules"]["jbd2"]
    copy.data(MODULES_PATH, json.dumps(raw).encode())
    found = copy.findings()
    assert {finding.code for finding in found} == {"index"}
    assert any("does not list jbd2" in finding.message for finding in found)


def test_a_program_of_udev_rules(copy: Copy) -> None:
    program = copy.remove("scsi_id")
    found = only(copy.findings(), "udev", fatal=False)
    assert found.path == program
    assert "60-persistent-storage.rules call scsi_id, which is not there" in found.message


def test_a_tail_that_is_cut_off_between_members(copy: Copy) -> None:
    order = copy.order()
    for path in order[-3:]:
        del copy.members[path]
    found = only(copy.findings(sealed=False), "sentinel")
    assert f"was cut off behind {order[-4]}, and PID 1 stops with E-IMAGE" in found.message


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_file_that_is_cut_off(image: Callable[..., Image], compress: str) -> None:
    content = image("bookworm", compress=compress).path.read_bytes()
    found = only(inspect(content[:-5000]), "archive")
    assert "everything behind it is missing" in found.message


def test_bytes_that_are_no_image() -> None:
    only(inspect(b"no image"), "archive")


def test_an_empty_file_starts_nothing() -> None:
    only(inspect(b""), "init")


def test_a_byte_of_a_file_that_is_changed(copy: Copy) -> None:
    path = "/etc/initrd-release"
    data = bytearray(copy.members[path].data)
    data[0] ^= 1
    copy.data(path, bytes(data))
    found = only(copy.findings(sealed=False), "manifest")
    assert found.path == path and "not as the manifest says" in found.message


def test_a_file_that_is_missing_and_one_that_nobody_listed(copy: Copy) -> None:
    del copy.members["/etc/initrd-release"]
    del copy.members["/etc/os-release"]
    copy.add("/etc/mine", b"")
    missing, unlisted = copy.findings(sealed=False)
    assert "listed in the manifest, but not there: /etc/initrd-release, /etc/os-release" in missing.message
    assert (missing.code, missing.fatal, unlisted.code, unlisted.fatal) == (
        "manifest",
        True,
        "manifest",
        False,
    )
    assert unlisted.path == "/etc/mine"


def test_a_manifest_of_another_image(copy: Copy) -> None:
    manifest = copy.members[plan.MANIFEST_PATH].data
    copy.data(plan.MANIFEST_PATH, manifest.replace(b'"schema":1', b'"schema": 1'))
    assert (
        "is for another /usr/lib/pyinit/manifest.json"
        in only(copy.findings(sealed=False), "sentinel").message
    )


def test_a_wrong_count(copy: Copy) -> None:
    data = copy.members[SENTINEL_PATH].data
    copy.data(SENTINEL_PATH, b"entries 7\n" + data.split(b"\n", 1)[1])
    assert "is for 7 entries" in only(copy.findings(sealed=False), "sentinel").message


def test_the_manifest_is_missing(copy: Copy) -> None:
    del copy.members[plan.MANIFEST_PATH]
    only(copy.findings(sealed=False), "manifest")


def test_a_damaged_configuration(copy: Copy) -> None:
    copy.data(CONFIG_PATH, b"[]")
    assert "E-IMAGE" in only(copy.findings(), "manifest").message


def test_an_archive_behind_the_image(copy: Copy) -> None:
    more = b"".join(cpio.write([cpio.Member(b"etc", DIRECTORY)]))
    found = only(inspect(copy.pack(sealed=False) + more), "sentinel", fatal=False)
    assert "is not the last member, but /etc" in found.message


def test_microcode_before_the_image_is_fine(copy: Copy) -> None:
    early = [cpio.Member(b"kernel", DIRECTORY), cpio.Member(b"kernel/microcode.bin", FILE, b"x")]
    assert inspect(b"".join(cpio.write(early)) + copy.pack(sealed=False)) == []


def test_members_before_their_directory(small: Image) -> None:
    segment = archive.read(small.path.read_bytes())[0]
    members = [member for member in segment.members if member.name != b"etc/udev"]
    late = next(member for member in segment.members if member.name == b"etc/udev")
    moved = dataclasses.replace(segment, members=(*members[:-1], late, members[-1]))
    found = only(verify.static([moved]), "parent")
    assert "/etc/udev/udev.conf; the kernel makes no directories by itself" in found.message


def test_a_name_that_is_twice_with_different_content(copy: Copy) -> None:
    (segment,) = archive.read(copy.pack())
    release = next(member for member in segment.members if member.name == b"etc/initrd-release")
    wrong = dataclasses.replace(release, data=b"ID=other\n")

    def twice(*order: cpio.Member) -> list[Finding]:
        others = [member for member in segment.members if member is not release]
        return verify.static([dataclasses.replace(segment, members=(*others[:-1], *order, others[-1]))])

    assert twice(release, release) == []
    # What the manifest lists comes last, so that is what counts.
    assert twice(wrong, release) == []
    assert sorted(finding.code for finding in twice(release, wrong)) == ["manifest", "twice"]


def test_a_name_that_leads_upwards(copy: Copy) -> None:
    segment = archive.read(copy.pack())[0]
    hostile = cpio.Member(b"etc/../../\x1b[31m", FILE)
    found = verify.static([dataclasses.replace(segment, members=(hostile, *segment.members))])
    assert "\x1b" not in only(found, "name").message


@pytest.mark.parametrize(
    ("mode", "words"), [(0o644, "has no x bit"), (None, "is not there")], ids=["no x bit", "none"]
)
def test_init(copy: Copy, mode: int | None, words: str) -> None:
    if mode is None:
        del copy.members["/init"]
    else:
        copy.members["/init"] = dataclasses.replace(copy.members["/init"], mode=stat.S_IFREG | mode)
    assert words in only(copy.findings(), "init").message


def test_init_may_be_another_program(copy: Copy) -> None:
    copy.members["/start"] = copy.members.pop("/init")
    assert copy.findings(rdinit="/start") == []


def test_the_console(copy: Copy) -> None:
    console = copy.members["/dev/console"]
    copy.members["/dev/console"] = dataclasses.replace(console, device=(5, 2))
    assert "5:1" in only(copy.findings(), "console").message
    # The kernel has one of its own.
    del copy.members["/dev/console"]
    assert copy.findings() == []


def test_memory(copy: Copy) -> None:
    found = only(copy.findings(memory=128 << 20), "memory")
    assert "there are 128: the kernel runs out of memory" in found.message


def test_images_of_other_makers_have_nothing_fatal(debian: Callable[..., DebianRoot]) -> None:
    for suite in ("bookworm", "trixie", "sid"):
        system = debian(suite)
        findings = inspect(system.initrd_debian.read_bytes(), kernel=system.release)
        assert [finding for finding in findings if finding.fatal] == []


def test_what_is_fatal_in_an_image_of_another_maker(bookworm: DebianRoot) -> None:
    (segment,) = archive.read(bookworm.initrd_debian.read_bytes())

    def without(name: bytes) -> list[Finding]:
        members = tuple(m for m in segment.members if m.name.rpartition(b"/")[2] != name)
        assert len(members) < len(segment.members)
        return verify.static([dataclasses.replace(segment, members=members)])

    def fatal(name: bytes) -> list[str]:
        return [finding.code for finding in without(name) if finding.fatal]

    assert fatal(b"init") == ["init"]
    # /init is a script there, and its interpreter a program with libraries.
    assert fatal(b"sh") == ["interpreter"]
    shell = Unpacked([segment]).file("/bin/sh")
    assert shell is not None
    binary = elf.parse(shell.data)
    assert binary is not None
    loader = posixpath.basename(binary.interpreter).encode()
    assert fatal(loader) == ["library"]
    # Modules and rules of others may be for what the machine does not have.
    assert fatal(b"jbd2.ko") == []
    assert any(finding.code == "module" and "jbd2" in finding.message for finding in without(b"jbd2.ko"))


def test_hard_links_have_the_content_of_the_one_that_has_any() -> None:
    members = [
        cpio.Member(b"a", FILE, links=2, inode=7),
        cpio.Member(b"b", FILE, b"content", links=2, inode=7),
        cpio.Member(b"c", FILE, links=1, inode=7),
    ]
    image = Unpacked([archive.Segment(0, "none", tuple(members))])
    assert [image.text(path) for path in ("/a", "/b", "/c")] == ["content", "content", ""]


def test_members_below_a_link_are_where_it_leads() -> None:
    members = [
        cpio.Member(b"usr", DIRECTORY),
        cpio.Member(b"usr/bin", DIRECTORY),
        cpio.Member(b"bin", LINK, b"/usr/bin"),
        cpio.Member(b"bin/x", FILE, b"x"),
        cpio.Member(b"loop", LINK, b"loop"),
        cpio.Member(b"y", LINK, b"bin/../bin/x"),
    ]
    image = Unpacked([archive.Segment(0, "none", tuple(members))])
    assert "/usr/bin/x" in image.nodes and image.orphans == []
    assert (image.text("/y"), image.resolve("/loop"), image.file("/loop/x")) == ("x", None, None)


names = st.sampled_from(
    [b"init", b"usr", b"usr/lib", b"lib", b"lib/modules/6/a.ko", b"lib/modules/6/modules.dep.bin", b"x"]
    + [path[1:].encode() for path in (SENTINEL_PATH, plan.MANIFEST_PATH, CONFIG_PATH, MODULES_PATH)]
    + [b"etc/ld.so.cache", b"lib/udev/rules.d/1.rules", b"dev/console", b"../x", b""]
)
contents = st.sampled_from([b"#!", b"#!/x y\n", b"\x7fELF\x02\x01", b"/usr/bin/python3.11\0", b"{}", b"[]"])
anything = st.builds(
    cpio.Member,
    names,
    st.sampled_from([FILE, FILE | 0o111, DIRECTORY, LINK, stat.S_IFCHR]),
    st.one_of(
        contents, names, st.binary(max_size=80), st.builds(bytes.__add__, contents, st.binary(max_size=99))
    ),
    links=st.integers(0, 2),
)


@given(st.lists(anything, max_size=12))
def test_no_content_raises_an_exception(members: list[cpio.Member]) -> None:
    for finding in verify.static([archive.Segment(0, "none", tuple(members))], memory=1, kernel="6"):
        assert finding.code in verify.CODES
        assert all(text.isprintable() for text in (finding.path, finding.message, finding.hint))


def _target(copy: Copy, name: str) -> str:
    """What the library's link leads to, or itself."""
    link = next(path for path in copy.members if posixpath.basename(path) == name)
    member = copy.members[link]
    return member.data.decode() if stat.S_ISLNK(member.mode) else link
