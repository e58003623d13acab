"""Which of udev's memories outlive the initramfs."""

from __future__ import annotations

from pathlib import Path

from pyinit.devices.udev import clean_database


def test_only_devices_marked_to_be_remembered_stay(tmp_path: Path) -> None:
    for directory in ("data", "links/disk\\x2fby-uuid", "links/other", "tags/systemd", "watch"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("b254:0", "b253:0"):
        (tmp_path / "data" / name).write_text("E:X=1\n")
        (tmp_path / "links/disk\\x2fby-uuid" / name).touch()
        (tmp_path / "tags/systemd" / name).touch()
    (tmp_path / "data/b253:0").chmod(0o1644)
    (tmp_path / "links/other/b254:0").touch()
    for name, target in (("1", "b254:0"), ("b254:0", "1"), ("2", "b253:0"), ("b253:0", "2")):
        (tmp_path / "watch" / name).symlink_to(target)
    (tmp_path / "control").touch()

    clean_database(str(tmp_path))

    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == [
        "data/b253:0",
        "links/disk\\x2fby-uuid/b253:0",
        "tags/systemd/b253:0",
        "watch/2",
        "watch/b253:0",
    ]
    assert not (tmp_path / "links/other").exists()


def test_without_a_database_there_is_nothing_to_do(tmp_path: Path) -> None:
    clean_database(str(tmp_path / "absent"))
