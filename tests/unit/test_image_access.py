"""The policy that an image gets, the password for it, and where a shell may lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_machine import MadeUpMachine

from pyinit.config.sealed import is_password_hash
from pyinit_image import access, facts, features, tools
from pyinit_image.errors import BuildError
from pyinit_image.features import Chosen, Feature, Target
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot

HASH = "$y$j9T$sV.rwP7d0/URrLoY2hes8/$rPkUIr2MRFVHJMVyiKFcAjR45JA3IFbImHHxXBTHsC2"


@pytest.mark.parametrize(
    ("asked", "hashed", "encrypted", "policy"),
    [
        ("", "", "", "open"),
        ("", "", "the root is encrypted", "none"),
        ("", HASH, "the root is encrypted", "password"),
        ("", HASH, "", "password"),
        ("open", "", "the root is encrypted", "open"),
        ("open", HASH, "the root is encrypted", "open"),
        ("none", HASH, "", "none"),
        ("password", HASH, "", "password"),
    ],
)
def test_the_default_follows_the_root_and_the_password(
    asked: str, hashed: str, encrypted: str, policy: str
) -> None:
    decision = access.decide(asked, hashed, encrypted)
    assert decision.policy == policy
    # What nobody asked for is explained, unless it is what everybody expects.
    assert bool(decision.reason) == (not asked and policy != "open")


def test_a_password_that_was_not_given_is_asked_for() -> None:
    with pytest.raises(BuildError, match="--rescue-password-file") as caught:
        access.decide("password", "", "")
    assert "pyinit-image hash-password" in caught.value.hint


@pytest.mark.parametrize(
    ("uuid", "reason"),
    [
        (f"CRYPT-LUKS2-{'0' * 32}-root", "the root is encrypted (root on dm-0)"),
        (f"CRYPT-PLAIN-root{'0' * 8}", "the root is encrypted (root on dm-0)"),
        (f"LVM-{'x' * 64}", ""),
    ],
)
def test_an_encrypted_root_is_known_by_the_devices_below_it(uuid: str, reason: str, tmp_path: Path) -> None:
    machine = MadeUpMachine(tmp_path)
    disk = machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    lower = machine.block("virtual/block/dm-0", "253:0", disk, dm_name="vg-lower", dm_uuid="LVM-" + "y" * 64)
    middle = machine.block("virtual/block/dm-1", "253:1", lower, dm_name="root", dm_uuid=uuid)
    machine.block("virtual/block/dm-2", "253:2", middle, dm_name="vg-root", dm_uuid="LVM-" + "z" * 64)
    machine.mount("253:2", "/", "ext4", "/dev/mapper/vg-root")
    assert access.encrypted_root(facts.record(tmp_path)) == reason


def test_an_encrypted_disk_that_is_not_the_roots_says_nothing_of_it(tmp_path: Path) -> None:
    machine = MadeUpMachine(tmp_path)
    disk = machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    machine.block(
        "virtual/block/dm-0", "253:0", disk, dm_name="usr", dm_uuid="CRYPT-LUKS2-" + "0" * 32 + "-usr"
    )
    machine.mount("254:0", "/", "ext4", "/dev/vda")
    machine.mount("253:0", "/usr", "ext4", "/dev/mapper/usr")
    assert access.encrypted_root(facts.record(tmp_path)) == ""


def test_a_feature_may_know_that_the_root_is_encrypted(tmp_path: Path) -> None:
    class Locks(Feature):
        name = "locks"

        def encrypted_root(self, target: Target) -> str:
            return f"/etc/locks names the root of {target.mode}"

    target = Target(Sysroot(tmp_path), cast(Any, None), "list", "", "")
    chosen = [Chosen(Feature(), ""), Chosen(Locks(), "")]
    assert features.encrypted_root(target, chosen) == "/etc/locks names the root of list"
    assert features.encrypted_root(target, chosen[:1]) == ""


def read(tmp_path: Path, content: str, shadow: str = "") -> str:
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/shadow").write_text(shadow)
    (tmp_path / "rescue.hash").write_text(content)
    return access.read_hash(tmp_path / "rescue.hash", Sysroot(tmp_path))


def test_a_file_with_a_hash(tmp_path: Path) -> None:
    assert read(tmp_path, f"# of the machine in the cellar\n\n  {HASH}\n", "root:*:1::::::\n") == HASH


@pytest.mark.fault("row-4")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "hunter2 itself\n",
        f"{HASH}\n{HASH}\n",
        "$6$salt$" + "a" * 86,
        HASH[:-1],
        HASH + "=",
        "\0\xff",
    ],
)
def test_a_file_without_a_strong_hash_is_refused_and_not_told(content: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        read(tmp_path, content)
    assert "hash" in str(caught.value) and "rescue.hash" in str(caught.value)
    assert "pyinit-image hash-password" in caught.value.hint
    assert not content.strip() or content.strip() not in str(caught.value)


@pytest.mark.fault("row-4")
def test_the_hash_of_a_login_is_refused(tmp_path: Path) -> None:
    shadow = f"root:*:19000:0:99999:7:::\ngrace:{HASH}:19000:0:99999:7:::\n"
    with pytest.raises(BuildError, match="hash of grace's login password") as caught:
        read(tmp_path, HASH, shadow)
    assert HASH not in str(caught.value)


def test_a_hash_is_made_with_a_new_salt_and_the_password_wiped() -> None:
    phrases = [bytearray(b"correct horse"), bytearray(b"correct horse")]
    one, other = (access.make_hash(phrase) for phrase in phrases)
    assert one != other
    assert all(re.fullmatch(r"\$y\$.*", hashed) and is_password_hash(hashed) for hashed in (one, other))
    assert phrases == [bytes(13), bytes(13)]


@pytest.mark.parametrize("phrase", [b"", b"a" * 513, b"a\0b", b"tab\there", b"\x7f"])
def test_a_password_that_nobody_could_type_is_refused(phrase: bytes) -> None:
    with pytest.raises(BuildError):
        access.make_hash(bytearray(phrase))


@given(st.binary(max_size=40))
def test_any_file_is_a_hash_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("hash")
    (folder / "file").write_bytes(content)
    with pytest.raises(BuildError) as caught:
        access.read_hash(folder / "file", Sysroot(folder))
    assert str(caught.value).isprintable()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A system whose /bin leads to /usr/bin and whose /bin/sh is a link, as Debian has it."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    for name in ("dash", "cat"):
        (tmp_path / "usr/bin" / name).write_bytes(f"the program {name}".encode())
        (tmp_path / "usr/bin" / name).chmod(0o755)
    (tmp_path / "usr/bin/sh").symlink_to("dash")
    plan = Plan(Sysroot(tmp_path))
    plan.link("/bin", "usr/bin", "merged directories")
    return plan


@pytest.mark.fault("row-14", "A4")
@pytest.mark.parametrize("policy", access.RESCUE)
def test_behind_a_password_the_shell_has_no_name_that_the_kernel_tries(policy: str, plan: Plan) -> None:
    shell = tools.collect_rescue(plan, "/usr/bin/python3", policy)
    assert shell == {"open": "/bin/sh", "password": "/usr/bin/dash", "none": ""}[policy]
    assert ("/usr/bin/sh" in plan.entries) == (policy == "open")
    assert ("/usr/bin/dash" in plan.entries) == (policy != "none")
    assert ("/bin/sh" in plan.absent) == (policy != "open")
    access.refuse_fallbacks(plan, policy)


@pytest.mark.fault("row-14", "A4")
def test_a_shell_that_is_itself_at_such_a_place_gets_another(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "usr/bin/sh").unlink()
    (tmp_path / "usr/bin/dash").rename(tmp_path / "usr/bin/sh")
    assert tools.collect_rescue(plan, "/usr/bin/python3", "password") == tools.HIDDEN_SHELL
    assert plan.entries[tools.HIDDEN_SHELL].data == b"the program dash"
    access.refuse_fallbacks(plan, "password")


@pytest.mark.fault("row-14", "A4")
@pytest.mark.parametrize("path", access.FALLBACKS)
@pytest.mark.parametrize("policy", access.RESCUE)
def test_nothing_else_may_be_there_either(policy: str, path: str, plan: Plan) -> None:
    plan.data(path, b"#!", "interpreter of a script", "/usr/bin/fsck.xfs", mode=0o755)
    if policy == "open":
        access.refuse_fallbacks(plan, policy)
        return
    with pytest.raises(BuildError, match=path) as caught:
        access.refuse_fallbacks(plan, policy)
    assert "interpreter of a script, for /usr/bin/fsck.xfs" in str(caught.value)
