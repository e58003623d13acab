from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import BootFailed, Disk, Machine, MachineError, QmpError, Verdict

Fake = Callable[..., Machine]
LONG = 60.0


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_console_is_matched_as_text_with_a_cursor(fake: Fake) -> None:
    machine = fake("pass")
    assert machine.expect(r"Linux version (\S+)", LONG)[1] == "0.0.0-fake"
    first, second = machine.expect_in_order([r"^ *OK +Reached", r"target\nDebian login: "], LONG)
    assert first.end() < second.end()
    with pytest.raises(BootFailed):
        machine.expect("Linux version", LONG)


def test_halves_of_characters_and_escapes(fake: Fake) -> None:
    machine = fake("half")
    machine.expect("^café \ufffd\ufffd red end$", LONG)
    assert b"caf\xc3\xa9 \xff\xfe \x1b[31mred" in (machine.folder / "console.log").read_bytes()


def test_a_word_that_comes_in_pieces_is_matched_whole(fake: Fake) -> None:
    machine = fake("pieces", run=False, echo=lambda data: machine.send_line("go on"))
    machine.run()
    assert machine.expect(r"word \S+", LONG)[0] == "word 6.1.0-50-cloud-amd64"
    assert machine.expect(r"^login: $", LONG)[0] == "login: "


def test_a_wait_can_say_what_must_not_come_first(fake: Fake) -> None:
    machine = fake("echo")
    machine.expect("ready", LONG)
    machine.send_line("first and second")
    assert machine.expect("first", LONG, fail="second")[0] == "first"
    with pytest.raises(BootFailed) as failed:
        machine.expect("third", LONG, fail="and sec.nd$")
    assert failed.value.verdict is Verdict.GUEST_FAIL
    assert failed.value.reason == "the console shows what it was not to show: first and second"
    assert "waited for: /third/ on the console" in failed.value.report


def test_typing(fake: Fake) -> None:
    machine = fake("echo")
    machine.expect("ready", LONG)
    machine.send_line("ls ü")
    machine.expect("^ls ü$", LONG)
    machine.send_bytes(b"\x03bye")
    assert machine.finish(LONG, goal="shutdown").check().shutdown == "guest-shutdown"


def test_typing_at_a_machine_that_is_gone(fake: Fake) -> None:
    machine = fake("crash")
    with pytest.raises(BootFailed, match="out of luck"):
        machine.expect("never said", LONG)
    machine.send_line("anybody?")


def test_frames(fake: Fake) -> None:
    machine = fake("pass")
    assert machine.wait_frame("witness", LONG)["pid"] == 1
    assert machine.wait_frame("hello", LONG) == {"kind": "hello"}
    outcome = machine.finish(LONG)
    assert [frame["kind"] for frame in outcome.frames] == ["hello", "witness", "done"]
    lines = (machine.folder / "frames.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["hello", "witness", "done"]


def test_a_frame_that_cannot_come_any_more(fake: Fake) -> None:
    with pytest.raises(BootFailed, match="'record' frame"):
        fake("pass").wait_frame("record", LONG)


def test_disks_come_and_go(fake: Fake, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    disk, stranger = Disk(image, late=True), Disk(image, serial="other")
    machine = fake("hang", disks=[disk])
    machine.plug(disk)
    machine.unplug(disk)
    log = (machine.folder / "qmp.log").read_text()
    assert re.search(r'> .*"device_add".*"virtio-blk-pci"', log)
    assert "DEVICE_DELETED" in log
    with pytest.raises(MachineError, match="not a disk of this machine"):
        machine.plug(stranger)
    with pytest.raises(QmpError, match="Device not found"):
        machine.qmp("device_del", id="other")


def test_a_disk_that_is_not_there(fake: Fake) -> None:
    with pytest.raises(MachineError, match=r"/nonexistent cannot be used: No such file"):
        fake("pass", disks=[Disk("/nonexistent")])


@pytest.mark.parametrize("scenario", ["hang", "stubborn", "closed", "progress"])
@pytest.mark.parametrize("how", ["stop", "power_cut", "close", "finish"])
def test_nothing_is_left_behind(fake: Fake, scenario: str, how: str) -> None:
    machine = fake(scenario)
    machine.expect("Linux version", LONG)
    scratch = machine._scratch
    assert scratch is not None
    if how == "finish":
        machine.finish(0.2)
    else:
        getattr(machine, how)()
    assert gone(machine.pid)
    machine.close()
    assert not scratch.exists()
    assert not any(thread.name == "pyinit-qemu" and thread is machine._thread for thread in _threads())


def _threads() -> list[object]:
    import threading

    return list(threading.enumerate())


def test_stop_passes_unless_a_failure_shows(fake: Fake) -> None:
    machine = fake("hang")
    machine.expect("Linux", LONG)
    assert machine.stop("the first line").verdict is Verdict.PASS
    machine = fake("traceback")
    machine.expect("Linux", LONG)
    with pytest.raises(BootFailed):
        machine.expect("never", LONG)
    assert machine.stop().verdict is Verdict.GUEST_FAIL


def test_a_paused_machine_says_nothing(fake: Fake) -> None:
    machine = fake("pass", run=False)
    assert machine.running
    assert machine.console == ""
    machine.run()
    assert machine.finish(LONG).ok


def test_a_machine_starts_once(fake: Fake) -> None:
    machine = fake("hang")
    with pytest.raises(MachineError, match="started before"):
        machine.start()


def test_an_unknown_failure_name_is_refused(fake: Fake) -> None:
    with pytest.raises(ValueError, match="called panics; known: no-root, panic"):
        fake("pass", allow=["panics"])


def test_artifacts(fake: Fake, tmp_path: Path) -> None:
    image = tmp_path / "my disk"
    image.write_bytes(bytes(1 << 20))
    machine = fake("pass", disks=[Disk(image), Disk(image, interface="scsi", serial="b", late=True)])
    assert machine.finish(LONG).ok
    script = machine.folder / "cmdline.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text()
    assert f"-m pyinit_qemu.overlay disk0.qcow2 {1 << 20}" in text
    assert "fake=pass" in text
    assert "device_add driver=scsi-hd,id=dev1" in text
    assert json.loads((machine.folder / "spec.json").read_text())["disks"][1]["serial"] == "b"
    assert {path.name for path in machine.folder.iterdir()} == {
        "cmdline.sh",
        "console.log",
        "frames.jsonl",
        "qmp.log",
        "spec.json",
        "verdict.txt",
    }


def test_faults_of_what_a_machine_does_not_have(fake: Fake, tmp_path: Path) -> None:
    machine = fake("hang")
    with pytest.raises(MachineError, match="not a disk of this machine: declare it there"):
        machine.faults.hang(Disk(tmp_path / "other"))
    with pytest.raises(MachineError, match="no network: give it network=True"):
        machine.faults.cut_network()
    with pytest.raises(MachineError, match="has not ended: only then"):
        machine.again()
