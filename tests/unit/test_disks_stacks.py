"""What the machine that makes disks is told to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.stacks import MIB, Md, Stack, Volume, Work, btrfs_pool, luks, lvm, md
from pyinit_qemu.disks.tools import silent


def planned(stack: Stack) -> tuple[list[int], list[str]]:
    """Sizes of the devices, and the commands."""
    work = Work(Cache(Path("/nonexistent")), silent)
    sizes = stack.sizes(work)
    stack.make(work, [f"@target{number}" for number in range(stack.members)], True)
    work.plan.close()
    return sizes, [" ".join(step["run"]) for step in work.plan.steps if "run" in step]


def test_what_is_inside_is_made_after_and_closed_before() -> None:
    sizes, commands = planned(md(1, luks(lvm(vg="a-b", root=Volume(size=8 * MIB)))))
    assert [command.split()[0:2] for command in commands] == [
        ["mdadm", "--create"],
        ["cryptsetup", "--batch-mode"],
        ["cryptsetup", "--batch-mode"],
        ["lvm", "pvcreate"],
        ["lvm", "vgcreate"],
        ["lvm", "lvcreate"],
        ["lvm", "vgchange"],
        ["cryptsetup", "close"],
        ["mdadm", "--stop"],
    ]
    # 8 MiB, two extents for the group, 16 MiB for the header, the array's own: rounded up.
    assert sizes == [35 * MIB] * 2
    assert "-L 8388608b -n root a-b" in commands[5]


def test_a_passphrase_is_never_a_word_of_a_command() -> None:
    _, commands = planned(luks(passphrase="correct horse", key=b"battery"))
    assert not [command for command in commands if "correct" in command or "battery" in command]


def test_equal_declarations_have_equal_recipes_and_others_do_not() -> None:
    assert luks(lvm(root=Volume())).recipe == luks(lvm(root=Volume())).recipe
    variants: list[Stack] = [
        luks(),
        luks(version=1),
        luks(detached=True),
        luks(luks()),
        lvm(a=Volume()),
        lvm(b=Volume()),
        lvm(a=Volume(), b=Volume()),
        lvm(b=Volume(), a=Volume()),
        lvm(pvs=2, a=Volume()),
        md(1),
        md(0),
        md(1, luks().member(0)),
        md(1, luks(detached=True).member(0)),
        md(1, luks(detached=True).member(1)),
        btrfs_pool(),
        btrfs_pool(devices=2),
        btrfs_pool(subvolumes={"@": None}),
    ]
    recipes = [repr(stack.recipe) for stack in variants]
    assert len(set(recipes)) == len(recipes)


@given(
    level=st.sampled_from([0, 1, 4, 5, 6, 10]),
    count=st.integers(2, 9),
    size=st.integers(1, 1 << 32),
)
def test_members_of_an_array_have_room_for_its_content(level: Any, count: int, size: int) -> None:
    least = {0: 2, 1: 2, 4: 3, 5: 3, 6: 4, 10: 2}[level]
    content = lvm(vg="v", root=Volume(size=size))
    if count < least:
        with pytest.raises(ValueError, match=f"at least {least} members"):
            Md(level, content, count)
        return
    array = Md(level, content, count)
    work = Work(Cache(Path("/nonexistent")), silent)
    needed = content.sizes(work)[0]
    assert needed >= size
    data_disks = {0: count, 1: 1, 4: count - 1, 5: count - 1, 6: count - 2, 10: count / 2}[level]
    (each,) = set(array.sizes(work))
    # An array uses whole chunks of 512 KiB behind the first MiB.
    assert (each - MIB) // (MIB // 2) * (MIB // 2) * data_disks >= needed


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: luks(version=3), "LUKS has versions 1 and 2, not 3"),
        (lambda: luks(version=1, label="x"), "LUKS1 has no label"),
        (lambda: luks(passphrase=""), "needs a passphrase"),
        (lambda: lvm(), "'vg' has no volumes"),
        (lambda: lvm(root=Volume(kind="raid1")), "raid1 volume 'root' needs pvs=2"),
        (
            lambda: lvm(s=Volume(kind="snapshot", origin="root")),
            "'s' is of 'root', which is no volume of 'vg'",
        ),
        (lambda: md(3), "0, 1, 4, 5, 6 and 10, not 3"),  # type: ignore[arg-type]
        (lambda: lvm(vg="-v", root=Volume()), "'-v' is no name of a volume or a group"),
        (lambda: lvm(vg="v", **{"a/b": Volume()}), "'a/b' is no name"),
        (lambda: md(1, name="a b"), "'a b' is no name of an array"),
        (lambda: btrfs_pool(subvolumes={"a/../b": None}), "no path of a subvolume"),
        (lambda: btrfs_pool(default="@"), "'@' is not one of the subvolumes"),
        (
            lambda: luks(md(1)).sizes(Work(Cache(Path("/nonexistent")), silent)),
            r"name one by member\(index\)",
        ),
        (lambda: md(1).build(), r"lies on 2 devices: use disks\(\) or member\(\)"),
        (lambda: md(1).member(2), "has no device 2, it has 2"),
        (lambda: md(1).write(Path("/nonexistent"), 512), r"lies on 2 devices"),
        (lambda: md(1).member(0).write(Path("/nonexistent"), 4096), "sectors of 512 bytes, not 4096"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(declare: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare()
