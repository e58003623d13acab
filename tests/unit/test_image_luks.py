"""What an image takes along for encrypted volumes and for keyboards."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_image_features import target as plain_target

from pyinit.config import crypttab
from pyinit_image.errors import BuildError
from pyinit_image.facts import Facts, Unlocked
from pyinit_image.features import keymap, luks, tokens
from pyinit_image.features.base import Target
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot

TABLE = """\
root UUID=1 none luks,discard
home UUID=2 /etc/home.key luks
data UUID=3 none luks
swap /dev/sda3 /dev/urandom swap
late UUID=4 none luks,noauto
"""


class System:
    """A target system with a few files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def file(self, path: str, content: str | bytes, mode: int = 0o644) -> System:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        place.chmod(mode)
        return self

    @property
    def plan(self) -> Plan:
        return Plan(Sysroot(self.root))

    def target(self, *lines: int) -> Target:
        """Of mode host when the numbers of the lines of crypttab that are in use are given."""
        found = plain_target(self.plan, "generic")
        if not lines:
            return found
        rows = tuple(Unlocked(line, "x", ()) for line in lines)
        facts = Facts("", (), (), (), rows, (), (), (), (), (), ())
        return Target(found.sysroot, cast(Any, None), "host", "open", "", facts)

    def names(self, *lines: int) -> list[str]:
        return [entry.name for entry in luks.entries(self.target(*lines))]


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path / "root")


def test_in_mode_host_the_volumes_of_the_root(system: System) -> None:
    system.file("/etc/crypttab", TABLE)
    assert system.names(1) == ["root"]
    assert luks.Luks().wanted(system.target(1)) == "/etc/crypttab line 1: root"
    # Swap with a new key each time holds nothing that could be resumed from.
    assert system.names(1, 4) == ["root"]


def test_otherwise_those_that_fstab_names_or_that_are_marked(system: System) -> None:
    system.file("/etc/crypttab", TABLE).file("/etc/fstab", "/dev/mapper/root / ext4 defaults 0 1\n")
    assert system.names() == ["root"]
    system.file("/etc/crypttab", TABLE.replace("3 none luks", "3 none luks,x-initrd.attach"))
    assert system.names() == ["root", "data"]


def test_else_all_that_take_a_passphrase(system: System) -> None:
    system.file("/etc/crypttab", TABLE).file("/etc/fstab", "/dev/mapper/vg-root / ext4 defaults 0 1\n")
    assert system.names() == ["root", "data"]


def test_a_system_without_encrypted_volumes_wants_nothing(system: System) -> None:
    assert luks.Luks().wanted(system.target()) == ""
    system.file("/etc/crypttab", "# none\n")
    assert luks.Luks().wanted(system.target()) == ""
    system.file(luks.PACKAGED, "")
    assert luks.PACKAGED in luks.Luks().wanted(system.target())


def test_what_crypttab_says_of_the_root_closes_the_rescue_shell_to_strangers(system: System) -> None:
    said = "the root may be encrypted (the image can open encrypted volumes)"
    assert luks.Luks().encrypted_root(system.target()) == said
    system.file("/etc/crypttab", TABLE).file("/etc/fstab", "/dev/mapper/root / ext4 defaults 0 1\n")
    said = "the root may be encrypted (/etc/crypttab line 1: root)"
    assert luks.Luks().encrypted_root(system.target()) == said
    # In mode host the devices below the root tell it, not the table.
    assert luks.Luks().encrypted_root(system.target(1)) == ""


def key_of(system: System, line: str) -> Plan:
    (entry,) = crypttab.parse(line.encode())[0]
    plan = system.plan
    luks._key(plan, plan.sysroot, entry)
    return plan


def test_a_key_file_comes_along_for_root_alone(system: System) -> None:
    system.file("/etc/keys/root.key", b"\x01\x02", 0o400)
    plan = key_of(system, "root UUID=1 /etc/keys/root.key luks")
    assert plan.secrets == ["/etc/keys/root.key"]
    entry = plan.entries["/etc/keys/root.key"]
    assert (entry.data, entry.mode & 0o777) == (b"\x01\x02", 0o400)
    assert entry.reason == "key file of root <- /etc/crypttab line 1"


def test_a_key_on_a_device_of_its_own_stays_there(system: System) -> None:
    assert key_of(system, "root UUID=1 /root.key:LABEL=stick luks").entries == {}


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o644])
def test_a_key_file_that_others_can_read_is_refused(mode: int, system: System) -> None:
    system.file("/etc/root.key", b"key", mode)
    with pytest.raises(BuildError, match=f"may be read by others .mode 0{mode:o}.") as caught:
        key_of(system, "root UUID=1 /etc/root.key luks")
    assert caught.value.hint == "chmod 0400 /etc/root.key"


def test_a_key_file_that_is_missing_is_an_error(system: System) -> None:
    with pytest.raises(BuildError, match="/etc/crypttab line 1: the key file /etc/root.key is missing"):
        key_of(system, "root UUID=1 /etc/root.key luks")


def test_a_token_is_wanted_by_a_line_that_names_it(system: System) -> None:
    feature = tokens.Tpm2()
    system.file("/etc/crypttab", TABLE)
    assert feature.wanted(system.target()) == ""
    system.file("/etc/crypttab", "root UUID=1 none luks,tpm2-device=auto\n")
    assert feature.wanted(system.target()) == "/etc/crypttab line 1: root"
    assert tokens.Fido2().wanted(system.target()) == ""
    system.file("/usr/lib/x86_64-linux-gnu/libtss2-esys.so.0", "")
    missing = [
        need.paths[0] for need in feature.needs(system.target()) if not system.plan.sysroot.find(*need.paths)
    ]
    assert missing == [
        f"/usr/lib/x86_64-linux-gnu/{name}"
        for name in (
            "cryptsetup/libcryptsetup-token-systemd-tpm2.so",
            "libtss2-rc.so.0",
            "libtss2-mu.so.0",
            "libtss2-tcti-device.so.0",
        )
    ]


@given(st.binary(max_size=120))
def test_what_is_written_is_read_back(data: bytes) -> None:
    entries, _ = crypttab.parse(data)
    again, warnings = crypttab.parse(luks.text(entries))
    assert [entry[1:] for entry in again] == [entry[1:] for entry in entries]
    assert warnings == ()


def test_the_keymap_of_console_setup(system: System) -> None:
    system.file("/etc/console-setup/cached_UTF-8_del.kmap.gz", gzip.compress(b"keycode 16 = q\n"))
    system.file("/etc/console-setup/cached_ISO-8859-15_del.kmap.gz", gzip.compress(b"other\n"))
    place = keymap.configured(system.plan.sysroot)
    assert place == "/etc/console-setup/cached_UTF-8_del.kmap.gz"
    assert keymap.read(system.plan.sysroot, place) == b"keycode 16 = q\n"
    assert place in keymap.Keymap().wanted(system.target())


def test_the_keymap_of_vconsole_conf_with_what_it_includes(system: System) -> None:
    maps = "/usr/share/kbd/keymaps/i386"
    system.file("/etc/vconsole.conf", 'KEYMAP="de-latin1"\n')
    system.file(
        f"{maps}/qwertz/de-latin1.map.gz", gzip.compress(b'include "qwertz"\nkeycode 26 = udiaeresis\n')
    )
    system.file(f"{maps}/include/qwertz.inc", 'include "basic"\nkeycode 21 = z\n')
    system.file(f"{maps}/include/basic.inc", "keycode 30 = a\n")
    place = keymap.configured(system.plan.sysroot)
    assert place == f"{maps}/qwertz/de-latin1.map.gz"
    text = keymap.read(system.plan.sysroot, place)
    assert text == b"keycode 30 = a\n\nkeycode 21 = z\n\nkeycode 26 = udiaeresis\n"


def test_a_keymap_that_includes_itself_or_nothing(system: System) -> None:
    maps = "/usr/share/kbd/keymaps"
    system.file(f"{maps}/a.map", 'include "b"\n').file(f"{maps}/b.map", 'include "a"\n')
    with pytest.raises(BuildError, match="it includes itself"):
        keymap.read(system.plan.sysroot, f"{maps}/a.map")
    system.file(f"{maps}/c.map", 'include "gone"\n')
    with pytest.raises(BuildError, match=r"c.map: gone, which it includes, is missing"):
        keymap.read(system.plan.sysroot, f"{maps}/c.map")
    system.file(f"{maps}/d.map.gz", b"no gzip")
    with pytest.raises(BuildError, match="cannot be unpacked"):
        keymap.read(system.plan.sysroot, f"{maps}/d.map.gz")


@pytest.mark.parametrize("line", ["", "KEYMAP=us", 'KEYMAP="', "KEYMAP=unknown", "FONT=x"])
def test_a_system_with_the_kernels_own_layout(line: str, system: System) -> None:
    system.file("/etc/vconsole.conf", line)
    assert keymap.Keymap().wanted(system.target()) == ""
    with pytest.raises(BuildError, match="the target system has no keyboard layout"):
        keymap.Keymap().add(system.plan, system.target(), "x")
    assert os.listdir(system.root) == ["etc"]
