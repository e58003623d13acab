"""`pyinit-qemu bench`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pyinit_qemu.cli import main


@pytest.mark.boot
@pytest.mark.icount
def test_two_images_are_compared(
    initramfs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = initramfs(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"))
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    words = ["--peer", "pyinit-list", "--image", f"broken={tmp_path / 'broken'}", "--boots", "2"]
    (tmp_path / "broken").write_bytes(b"070701 no archive")
    assert main(["bench", *words, "--json", str(figures), "--svg", str(chart)]) == 1
    assert f"{tmp_path / 'broken'}: " in capsys.readouterr().err

    words = ["--peer", "pyinit-list", "--image", f"again={image}", "--boots", "2"]
    words += ["--append", "root=LABEL=small-root"]
    assert main(["bench", *words, "--json", str(figures), "--svg", str(chart)]) == 0
    table = capsys.readouterr().out
    assert "| pyinit list |" in table and "| again " in table
    first, second = json.loads(figures.read_text())["images"]
    for entry in (first, second):
        assert not entry["failure"] and len(entry["boots"]) >= 2
        for boot in entry["boots"]:
            assert 0 < boot["mounted"] < boot["initramfs"] < boot["kernel"]
    ElementTree.parse(chart)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "x=/nonexistent"], "'/nonexistent' is no file; an image is given as NAME=FILE"),
        (["--peer", "dracut"], "may be each of dracut-"),
        (["--peer", "grub"], "is none of pyinit-list"),
        (["--boots", "0"], "at least 1"),
        (["--disk", "/dev/null"], "needs the word root="),
        (["--kernel", "/dev/null"], "--kernel is for images that are given with --image"),
    ],
)
def test_wrong_words_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
