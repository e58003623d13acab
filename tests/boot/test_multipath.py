"""A disk that is reached in two ways: used through both, through one that is left, and explained without."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_debian import PATIENCE

from pyinit.config.volumes import dump
from pyinit.storage import SEALED_MULTIPATH
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import LABEL as DEBIAN
from pyinit_qemu.debian import STORAGE, ArchiveError, DebianRoot, provision
from pyinit_qemu.disks.declare import ext4, gpt
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import lvm
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.timing import Timeout
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

NAME = "5000c50015ea71aa"
#: As multipath has it: "3" for the kind of name, that of the registered ones.
WWID = f"3{NAME}"
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "ext4")
REFUSING = ((b'blacklist {\n\twwid ".*"\n}\n', "/etc/multipath.conf"),)
Start = Callable[..., Machine]


def way(number: int, *, path: bool) -> tuple[str, ...]:
    """QEMU's words for one way to the first disk: a controller, and the disk behind it."""
    disk = f"scsi-hd,id=path{number},bus=way{number}.0,drive=disk0,share-rw=on,serial=shared,wwn=0x{NAME}"
    adapter = ("-device", f"virtio-scsi-pci,id=way{number},addr={9 + number}")
    return (*adapter, "-device", disk) if path else adapter


@pytest.fixture(scope="module")
def tools() -> DebianRoot:
    """Debian 12 with multipath-tools, and those of volumes."""
    try:
        return provision("bookworm", packages=(*STORAGE, "multipath-tools"))
    except ArchiveError as error:
        pytest.skip(f"infrastructure: {error}")


@pytest.fixture(scope="module")
def root(tools: DebianRoot) -> Ext4:
    return Ext4(small_root(tools), label=LABEL)


@pytest.fixture
def start(boot: Start, tools: DebianRoot, image: Callable[..., Path], root: Ext4) -> Start:
    def go(
        append: str,
        *,
        ways: int = 2,
        disk: Path | None = None,
        more: tuple[Disk, ...] = (),
        features: tuple[str, ...] = ("multipath",),
        includes: tuple[tuple[bytes, str], ...] = (),
    ) -> Machine:
        given = {"modules": MODULES, "features": features, "includes": includes, "rescue": "open"}
        return boot(
            kernel=tools.kernel,
            initrd=image(tools, mode="list", **given),
            disks=(Disk(disk or gpt(root).build(), interface="scsi", late=True), *more),
            extra=tuple(word for number in range(2) for word in way(number, path=number < ways)),
            append=f"quiet {append}",
        )

    return go


@pytest.mark.parametrize("words", ["rd.multipath", f"rd.multipath={WWID}"])
def test_a_root_on_a_disk_with_two_paths_is_used_through_both(
    words: str, start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(f"root=LABEL={LABEL} {words}")
    seen = witness_of(vm)
    assert seen.root.device.startswith("dm-")
    assert seen.root.properties["DM_UUID"] == f"part1-mpath-{WWID}"
    assert {f"/dev/mapper/{WWID}", f"/dev/mapper/{WWID}-part1"} <= set(seen.dev)
    # The names that a path has are those of the map.
    assert f"/dev/disk/by-id/wwn-0x{NAME}-part1" in seen.root.links
    assert "multipath does not take" not in vm.console


def test_one_path_is_enough_and_the_other_may_go(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(f"root=LABEL={LABEL} rd.multipath={WWID} rd.break=pre-mount")
    shell = Shell.rescue(vm, "pre-mount")
    assert shell.check("multipath -ll -v1").split() == [WWID]
    assert shell.check("multipath -l").count("sd") == 2
    since = len(shell.check("ls /sys/class/block").split())
    vm.qmp("device_del", id="path0")
    vm.wait_event("DEVICE_DELETED", device="path0")
    assert len(shell.check("ls /sys/class/block").split()) < since
    shell.leave()
    assert witness_of(vm).root.properties["DM_UUID"] == f"part1-mpath-{WWID}"


def test_a_disk_with_one_path_left_is_used_at_once(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    seen = witness_of(start(f"root=LABEL={LABEL} rd.multipath={WWID}", ways=1))
    assert seen.root.properties["DM_UUID"] == f"part1-mpath-{WWID}"


def test_a_disk_without_a_path_is_explained_and_used_when_one_comes(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(f"root=LABEL={LABEL} rd.multipath={WWID} rd.timeout=4", ways=0)
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit explain")
    assert told.startswith(f"E-DEV root: LABEL={LABEL} did not appear within 4 s")
    assert f"multipath: no path to the disk {WWID}" in told
    vm.qmp("device_add", driver="scsi-hd", id="path0", bus="way0.0", drive="disk0", wwn=int(NAME, 16))
    shell.leave()
    assert witness_of(vm).root.properties["DM_UUID"] == f"part1-mpath-{WWID}"


def test_paths_that_nobody_asked_to_use_together_are_told_from_copies(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(f"root=LABEL={LABEL}")
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit explain")
    assert told.startswith(f"E-AMBIG 2 devices match root: LABEL={LABEL}")
    assert "They say that they are one disk, reached in several ways" in told
    shell.check("pyinit set rd.multipath")
    shell.leave()
    assert witness_of(vm).root.properties["DM_UUID"] == f"part1-mpath-{WWID}"


def test_volumes_on_a_disk_with_two_paths_and_no_other_disk_is_taken(
    start: Start, root: Ext4, tmp_path: Path, witness_of: Callable[[Machine], Witness]
) -> None:
    foreign = tmp_path / "foreign.img"
    foreign.write_bytes(gpt(ext4(label="foreign", size=16 * MIB)).build().read_bytes())
    before = hashlib.sha256(foreign.read_bytes()).digest()
    other = Disk(foreign, interface="scsi", serial="other", snapshot=False)
    disk = gpt(lvm(vg="far", root=root).member(0)).build()
    features = ("multipath", "lvm")
    vm = start(f"root=/dev/far/root rd.multipath={WWID}", disk=disk, more=(other,), features=features)
    seen = witness_of(vm)
    assert {"/dev/far/root", f"/dev/mapper/{WWID}-part1"} <= set(seen.dev)
    assert len([path for path in seen.dev if path.startswith("/dev/dm-")]) == 3
    assert hashlib.sha256(foreign.read_bytes()).digest() == before


def test_a_disk_that_multipath_refuses_is_used_as_any_other(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start(f"root=LABEL={LABEL} rd.multipath", ways=1, includes=REFUSING)
    assert witness_of(vm).root.device == "sda1"
    assert "multipath does not take /dev/sda: " in vm.console


def test_the_images_configuration_can_be_left_aside(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    seen = witness_of(start(f"root=LABEL={LABEL} rd.multipath=default", includes=REFUSING))
    assert seen.root.properties["DM_UUID"] == f"part1-mpath-{WWID}"


def test_a_debian_goes_on_with_the_map_and_finds_both_paths_below_it(
    boot: Start, tools: DebianRoot, image: Callable[..., Path], tmp_path: Path
) -> None:
    files = {
        "/etc/fstab": f"LABEL={DEBIAN} / ext4 errors=remount-ro 0 1\n".encode(),
        # As multipathd has left it.
        "/etc/multipath/wwids": f"/{WWID}/\n".encode(),
        "/etc/multipath.conf": b"defaults {\n\tuser_friendly_names yes\n}\n",
        "/etc/multipath/bindings": f"far {WWID}\n".encode(),
    }
    built = gpt(Ext4(tools.source.changed(files), label=DEBIAN, free=64 * MIB)).build()
    disk = tmp_path / "disk.img"
    shutil.copyfile(built, disk)
    disk.chmod(0o644)
    given = [(data, path) for path, data in files.items() if "multipath" in path]
    initrd = image(
        tools,
        mode="list",
        modules=MODULES,
        features=("multipath",),
        rescue="open",
        # What the builder makes of the table of a system that has one.
        includes=(*given, (dump([[WWID]]), SEALED_MULTIPATH)),
    )
    vm = boot(
        kernel=tools.kernel,
        initrd=initrd,
        disks=(Disk(disk, interface="scsi", late=True, snapshot=False),),
        extra=(*way(0, path=True), *way(1, path=True)),
        memory=1024 * MIB,
        append=f"quiet root=LABEL={DEBIAN} ro {PATIENCE}",
    )
    shell = Shell.login(vm)
    state = shell.run("systemctl is-system-running --wait", Timeout.LOGIN).output.strip()
    assert (shell.check("systemctl --failed --no-legend --plain"), state) == ("", "running")
    assert shell.check("findmnt -no SOURCE /") == "/dev/mapper/far-part1"
    assert shell.check("systemctl is-active multipathd") == "active"
    assert shell.check("multipathd show paths raw format '%d %m %t'").splitlines() == [
        "sda far active",
        "sdb far active",
    ]
    unit = "dev-mapper-far\\x2dpart1.device"
    assert shell.check(f"systemctl is-active '{unit}'") == "active"
    shell.check("udevadm trigger --action=change --subsystem-match=block --settle && systemctl daemon-reload")
    assert shell.check(f"systemctl is-active '{unit}' -- -.mount") == "active\nactive"
    shell.check("multipathd -k'fail path sda'")
    shell.check("sync; echo 3 > /proc/sys/vm/drop_caches; cp /bin/bash /root/written; sync")
    vm.send_line("systemctl poweroff")
    vm.finish(Timeout.LOGIN, goal="shutdown").check()
    assert "pyinit: the root file system (/dev/mapper/far-part1) is unmounted" in vm.console
    assert "stays: " not in vm.console


def test_an_image_without_multipath_says_so(start: Start) -> None:
    vm = start(f"root=LABEL={LABEL} rd.multipath", features=())
    Shell.rescue(vm, "initqueue")
    assert "rd.multipath: there is no multipath in the image; build with --feature multipath" in vm.console
    vm.stop()
