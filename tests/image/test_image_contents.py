"""What is in an image of a real Debian, and that it works there."""

from __future__ import annotations

import fnmatch
import json
import stat
import subprocess
from collections.abc import Callable

import pytest
from built_image import Image

from pyinit.config.sealed import CONFIG_PATH, MODULES_PATH, SENTINEL_PATH, parse_config, parse_modules
from pyinit_image import archive, kmods, plan
from pyinit_image.elf import closure
from pyinit_image.sysroot import Sysroot

SUITES = ("bookworm", "trixie", "sid")

IMPORT_ALL = """
import sys
from pyinit.devices import udev
udev._import_pyudev({"udev": "libudev.so.1", "c": "libc.so.6"})
for name in sys.argv[1:]:
    __import__(name)
import linecache, traceback
try:
    1 / 0
except ZeroDivisionError:
    assert "division by zero" in traceback.format_exc()
assert "def main" in "".join(linecache.getlines(sys.modules["pyinit.__main__"].__file__))
print(sys.version_info[:2], sys.prefix)
"""


@pytest.mark.parametrize("suite", SUITES)
def test_python_of_the_target_starts_and_imports_everything(image: Callable[..., Image], suite: str) -> None:
    built = image(suite)
    prefix = "/usr/lib/pyinit/"
    modules = [
        path.removeprefix(prefix).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in built.members
        if path.startswith(prefix) and path.endswith(".py")
    ]
    options = ("-S", "-s", "-P", "-B")
    output = built.run("/usr/bin/python3", *options, "-c", IMPORT_ALL, "pyudev", "psutil", *modules)
    minor = {"bookworm": 11, "trixie": 13}.get(suite)
    assert output.startswith(f"(3, {minor})" if minor else "(3, ")


@pytest.mark.parametrize("suite", SUITES)
def test_udevd_and_modprobe_find_their_libraries(image: Callable[..., Image], suite: str) -> None:
    built = image(suite)
    config = parse_config(built.members[CONFIG_PATH].data)
    assert int(built.run(config.udevd, "--version").split(".")[0]) >= 252
    assert "kmod version" in built.run("/sbin/modprobe", "--version")
    names = {path.rpartition("/")[2] for path in built.members}
    for library in ("libkmod.so.2", "libblkid.so.1", "libacl.so.1", *config.libraries.values()):
        assert library in names


@pytest.mark.parametrize("suite", SUITES)
def test_every_program_and_library_is_complete(image: Callable[..., Image], suite: str) -> None:
    built = image(suite)
    inside = Sysroot(built.tree)
    files = [path for path, member in built.members.items() if stat.S_ISREG(member.mode)]
    # A closure inside the image fails for whatever is missing, and may not find more than there is.
    assert {item.path for item in closure(inside, files)} <= set(built.members)


@pytest.mark.parametrize("suite", SUITES)
def test_links_lead_somewhere(image: Callable[..., Image], suite: str) -> None:
    built = image(suite)
    inside = Sysroot(built.tree)
    links = [path for path, member in built.members.items() if stat.S_ISLNK(member.mode)]
    assert links
    assert [path for path in links if inside.resolve(path) is None] == []


@pytest.mark.parametrize("suite", SUITES)
def test_modules_load_in_the_order_of_modprobe(image: Callable[..., Image], suite: str) -> None:
    built = image(suite)
    index = parse_modules(built.members[MODULES_PATH].data)
    release = built.debian.release

    def modprobe(tree: object, name: str) -> list[str]:
        done = subprocess.run(
            ["modprobe", "-d", str(tree), "-S", release, "--show-depends", name],
            capture_output=True,
            text=True,
            check=True,
        )
        words = [line.split()[1] for line in done.stdout.splitlines()]
        return [kmods.module_name(word) for word in words]

    for name in ("ext4", "virtio_blk", "fs-ext3"):
        # The same with the whole system's index, the image's index, and for PID 1.
        expected = modprobe(built.debian.tree, name)
        assert modprobe(built.tree, name) == expected
    order = [*index.modules["ext4"].needs, "ext4"]
    assert set(order) == set(modprobe(built.debian.tree, "ext4"))
    assert order.index("mbcache") < order.index("ext4")
    for name in order:
        assert (built.tree / index.directory.lstrip("/") / index.modules[name].path).is_file()


def test_the_targets_own_modprobe_reads_the_index(image: Callable[..., Image]) -> None:
    for suite in ("bookworm", "trixie"):
        built = image(suite)
        shown = built.run("/sbin/modprobe", "-S", built.debian.release, "--show-depends", "ext4")
        assert "/ext4.ko" in shown.splitlines()[-1]
        assert "crc32c" in shown


def test_list_mode_has_no_other_modules(small: Image) -> None:
    index = parse_modules(small.members[MODULES_PATH].data)
    kernel = kmods.Kernel(Sysroot(small.debian.tree), small.debian.release)
    allowed = {"ext4", "virtio_blk", "virtio_pci"}
    allowed |= {need for name in allowed for need in kernel.needs(name)}
    assert index.first == ("sha256_ssse3",)
    assert kmods.hash_driver(kernel) == "sha256_ssse3"
    inside = {kmods.module_name(path) for path in small.members if ".ko" in path.rpartition("/")[2]}
    assert inside == set(index.modules) == {*allowed, *index.first}
    assert set(index.preload) == allowed
    loaded: set[str] = set()
    for name in index.preload:
        assert set(index.modules[name].needs) <= loaded, name
        loaded.add(name)


def test_generic_mode_has_the_usual_disks_and_file_systems(image: Callable[..., Image]) -> None:
    built = image("bookworm", mode="generic", modules=())
    index = parse_modules(built.members[MODULES_PATH].data)
    wanted = (
        "ahci ata_piix nvme virtio_blk virtio_scsi virtio_pci sd_mod sr_mod usb_storage uas xhci_pci "
        "ehci_pci usbhid hid_generic hv_storvsc xen_blkfront vmw_pvscsi mptspi megaraid_sas mpt3sas "
        "mmc_block sdhci_pci ext4 xfs btrfs f2fs squashfs erofs overlay vfat nls_cp437 isofs dm_mod raid1 "
        "vmd loop"
    )
    assert set(wanted.split()) - set(index.modules) - index.builtin == set()
    assert "scsi_debug" not in index.modules
    assert index.preload == ()
    patterns = {}
    for pattern, name in index.aliases:
        patterns.setdefault(name, []).append(pattern)
    # An AHCI controller of Intel's, as its modalias reads in sysfs.
    alias = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
    assert any(fnmatch.fnmatchcase(alias, pattern) for pattern in patterns["ahci"])
    assert "fs_xfs" in patterns["xfs"]


def test_first_and_last(small: Image) -> None:
    segments = archive.read(small.path.read_bytes())
    assert len(segments) == 1
    names = [member.name for member in segments[0].members]
    assert b"/" + names[-1] == SENTINEL_PATH.encode()
    count = int(segments[0].members[-1].data.split()[1])
    # The layers follow one another, each with the directories above its members.
    twice = {name for name in names if names.count(name) > 1}
    assert count == len(set(names)) - 1
    assert twice and all(stat.S_ISDIR(small.members[f"/{name.decode()}"].mode) for name in twice)
    assert all(b"/" not in name or name.rpartition(b"/")[0] in names[:at] for at, name in enumerate(names))
    assert small.members["/init"].mode == stat.S_IFREG | 0o755
    nodes = {path: member.device for path, member in small.members.items() if stat.S_ISCHR(member.mode)}
    assert nodes == {
        "/dev/console": (5, 1),
        "/dev/kmsg": (1, 11),
        "/dev/null": (1, 3),
        "/dev/random": (1, 8),
        "/dev/urandom": (1, 9),
    }
    release = small.members["/etc/initrd-release"].data.decode()
    assert "ID=debian\n" in release and "VARIANT_ID=initrd\n" in release


def test_nothing_brings_random_numbers_or_a_second_find_library(small: Image) -> None:
    modules = {path.rpartition("/")[2] for path in small.members if path.endswith(".pyc")}
    unwanted = {"random.pyc", "tempfile.pyc", "hashlib.pyc", "ssl.pyc", "asyncio.pyc", "tracemalloc.pyc"}
    assert not modules & unwanted
    assert not any(path.endswith("/ctypes/util.pyc") for path in small.members)


def test_only_pyinit_has_sources(small: Image) -> None:
    sources = [path for path in small.members if path.endswith(".py")]
    assert "/usr/lib/pyinit/pyinit/__main__.py" in sources
    assert all(path.startswith("/usr/lib/pyinit/pyinit/") for path in sources)
    for path in sources:
        directory, _, name = path.rpartition("/")
        cached = f"{directory}/__pycache__/{name.removesuffix('.py')}.cpython-311.pyc"
        # Hash-based and never checked against the source (PEP 552).
        assert small.members[cached].data[4:8] == b"\1\0\0\0"


def test_every_entry_has_a_reason(small: Image) -> None:
    manifest = plan.parse_manifest(small.members[plan.MANIFEST_PATH].data).entries
    assert set(small.members) - set(manifest) == {plan.MANIFEST_PATH, SENTINEL_PATH}
    for path in manifest:
        steps = plan.chain(manifest, path)
        assert all(reason for _, reason in steps), path
        # Every chain ends at something the build itself wanted.
        assert manifest[steps[-1][0]].get("parent") is None, steps


def test_size_of_a_small_image(image: Callable[..., Image]) -> None:
    built = image("bookworm", compress="zstd")
    assert built.path.stat().st_size <= 12_000_000


def test_without_a_rescue_shell_there_is_none(image: Callable[..., Image]) -> None:
    built = image("bookworm", rescue="none")
    config = parse_config(built.members[CONFIG_PATH].data)
    assert (config.rescue, config.shell) == ("none", "")
    names = {path.rpartition("/")[2] for path in built.members}
    assert not names & {"sh", "dash", "bash", "busybox", "pyinit-shell"}
    assert "/usr/bin/pyinit" not in built.members
    # What the kernel would start if /init could not be executed (init/main.c).
    for path in ("/sbin/init", "/etc/init", "/bin/init", "/bin/sh"):
        assert archive.lookup(built.members, path) is None
    assert archive.lookup(built.members, "/sbin/modprobe") is not None


def test_the_rescue_shell_works(small: Image) -> None:
    config = parse_config(small.members[CONFIG_PATH].data)
    assert small.run(config.shell, "-c", "ls / | cat; mount --version; pyinit help").count("init") > 1


def test_groups_of_device_nodes_are_those_of_the_target(small: Image) -> None:
    lines = small.members["/etc/group"].data.decode().splitlines()
    groups = {line.split(":")[0]: line.split(":")[2] for line in lines}
    assert groups["disk"] == "6" and groups["tty"] == "5"
    assert all(line.endswith(":") for line in lines)
    assert small.members["/etc/passwd"].data.startswith(b"root:x:0:0:root:/root:")


def test_gnu_cpio_agrees(small: Image) -> None:
    """The archive program of the target reads what we wrote, names, modes, devices and all."""
    tree = small.debian.tree
    loader = next(tree.glob("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    command = [loader, "--library-path", loader.parent, tree / "usr/bin/cpio"]
    done = subprocess.run(
        [*command, "-tv", "-n", "--quiet"],
        input=small.path.read_bytes(),
        capture_output=True,
        check=True,
        env={"TZ": "UTC", "LC_ALL": "C"},
    )
    lines = done.stdout.decode().splitlines()
    (segment,) = archive.read(small.path.read_bytes())
    for line, member in zip(lines, segment.members, strict=True):
        fields = line.split(maxsplit=8 if not stat.S_ISCHR(member.mode) else 9)
        assert fields[0] == stat.filemode(member.mode), member.name
        assert fields[-1].split(" -> ")[0] == member.name.decode()


def test_config_is_what_was_asked_for(image: Callable[..., Image]) -> None:
    built = image("bookworm", cmdline="quiet root=LABEL=a")
    config = json.loads(built.members[CONFIG_PATH].data)
    assert config["cmdline"] == "quiet root=LABEL=a"
    assert config["kernel"] == built.debian.release
    assert config["mode"] == "list"
