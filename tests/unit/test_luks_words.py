"""rd.luks.* words and crypttab: which volumes they ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.crypttab import parse as parse_crypttab
from pyinit.config.luks import Key, LuksWords, covers, parse_key
from pyinit.config.options import boot_config
from pyinit.devices.view import DeviceView
from pyinit.storage.luks_requests import Request, keys_for, requests, settle

A = "1c0de5ea-0000-4000-8000-00000000000a"
B = "2c0de5ea-0000-4000-8000-00000000000b"


def words(line: str) -> LuksWords:
    config = boot_config(line.encode())
    assert config.warnings == ()
    assert config.luks is not None
    return config.luks


def device(name: str, uuid: str, **properties: str) -> DeviceView:
    found = {"ID_FS_TYPE": "crypto_LUKS", "ID_FS_UUID": uuid, **properties}
    return DeviceView(
        f"/sys/{name}", name, "block", "disk", f"/dev/{name}", (8, ord(name[-1])), (), found, True
    )


DISKS = (
    device("sda", A, ID_SERIAL_SHORT="S1", ID_PART_ENTRY_UUID="aa-1"),
    device("sdb", B, ID_SERIAL_SHORT="S2"),
    device("sdc", "", ID_FS_TYPE="ext4"),
)


def asked(line: str, table: str = "", root: str = "") -> dict[str, list[str]]:
    """The name of each request to the devices that it finds."""
    given_words = boot_config(line.encode()).luks or LuksWords()
    found, _ = requests(given_words, parse_crypttab(table.encode())[0], {root: "root="} if root else {})
    return {request.name: [view.name for view in request.find(DISKS)] for request in found}


TABLE = f"one UUID={A} none luks\ntwo UUID={B} none luks\n"


@pytest.mark.parametrize(
    ("line", "table", "found"),
    [
        ("", "", {}),
        ("", TABLE, {"one": ["sda"], "two": ["sdb"]}),
        ("rd.luks=0", TABLE, {}),
        ("rd.luks.crypttab=0", TABLE, {}),
        (f"rd.luks.uuid={A}", TABLE, {"one": ["sda"]}),
        ("rd.luks.uuid=luks-1C0D", "", {"": ["sda"]}),
        (f"rd.luks.name={B}=vault", TABLE, {"vault": ["sdb"]}),
        (f"rd.luks.name={B}=vault rd.luks.crypttab=0", TABLE, {"vault": ["sdb"]}),
        ("rd.luks.partuuid=AA-1", "", {"": ["sda"]}),
        ("rd.luks.serial=S2", "", {"": ["sdb"]}),
        ("", "path /dev/sdb none luks\n", {"path": ["sdb"]}),
        # A device that has no LUKS header is none that could be opened.
        ("", "path /dev/sdc none luks\n", {"path": []}),
        ("", "apart /dev/sdc none header=/header\n", {"apart": ["sdc"]}),
        (f"rd.luks.options={A}=header=/h rd.luks.data={A}=/dev/sdc rd.luks.name={A}=x", "", {"x": ["sdc"]}),
        ("", f"swap UUID={A} /dev/urandom swap\nlater UUID={B} none noauto\n", {}),
    ],
)
def test_what_is_asked_for(line: str, table: str, found: dict[str, list[str]]) -> None:
    assert asked(line, table) == found


def test_a_root_with_the_name_of_a_volume_asks_for_it() -> None:
    assert asked("", root=f"/dev/mapper/luks-{A}") == {f"luks-{A}": ["sda"]}
    assert asked("", root="/dev/mapper/vault") == {}
    assert asked(f"rd.luks.uuid={A}", root=f"/dev/mapper/luks-{A}") == {"": ["sda"]}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("/k", Key("/k", "", "")),
        ("/k:UUID=1-2", Key("/k", "UUID=1-2", "")),
        (f"/k:/dev/sdb1:UUID={A}", Key("/k", "/dev/sdb1", A)),
        (f"/k::{A[:8].upper()}", Key("/k", "", A[:8])),
        (f"{A}=/k:LABEL=keys", Key("/k", "LABEL=keys", A)),
        ("k", None),
        ("/", None),
        ("", None),
        ("/k:a:not-a-uuid", None),
    ],
)
def test_key_files(text: str, key: Key | None) -> None:
    assert parse_key(text) == key


def test_a_key_for_one_volume_comes_before_one_for_all() -> None:
    given_words = words(f"rd.luks.key=/all rd.luks.key=/one::{A}")
    request = Request("uuid", A, None, "", Key("/own", "", ""), (), "x")
    assert [key.path for key in keys_for(request, given_words, A)] == ["/own", "/one", "/all"]
    assert [key.path for key in keys_for(request, given_words, B)] == ["/own", "/all"]


def test_the_command_line_counts_more_than_crypttab() -> None:
    given_words = words(
        f"rd.luks.options={A}=tries=5 rd.luks.options=tries=7 rd.luks.timeout=9 rd.luks.allow-discards={B}"
    )
    request = Request("uuid", A, None, "", None, ("tries=2", "timeout=1"), "x")
    one, two = (settle(request, given_words, uuid) for uuid in (A, B))
    assert (one.tries, one.timeout, one.discard) == (5, 9, False)
    assert (two.tries, two.timeout, two.discard) == (7, 9, True)


def test_what_is_not_understood_is_told() -> None:
    line = b"rd.luks.uuid=xyz rd.luks.name=1 rd.luks.key=k rd.luks.data=1 rd.luks.options=nonsense"
    warnings = boot_config(line).warnings
    assert [warning.split()[0] for warning in warnings] == [
        "rd.luks.uuid=xyz",
        "rd.luks.name=1",
        "rd.luks.data=1",
        "rd.luks.key=k",
        "rd.luks.options=nonsense:",
    ]


TEXTS = st.text(max_size=60) | st.sampled_from(
    ["", "=", "::", f"{A}=", f"luks-{A}", "/k:UUID=1:2", "keysource:"]
)


@given(TEXTS, TEXTS)
def test_any_values_are_understood_or_warned_about(one: str, other: str) -> None:
    names = "uuid name key data options allow-discards partuuid serial timeout key.tout".split()
    line = " ".join(f"rd.luks.{name}={value}" for name in names for value in (one, other))
    config = boot_config(line.encode("utf-8", "surrogatepass"))
    assert all(warning.isascii() and warning.isprintable() for warning in config.warnings)
    found, warnings = requests(
        config.luks or LuksWords(),
        parse_crypttab(f"n {one} {other}".encode(errors="replace"))[0],
        {one: other},
    )
    for request in found:
        assert request.describe().isascii()
        request.find(DISKS)
    assert all(warning.isascii() and warning.isprintable() for warning in warnings)


@given(st.text(alphabet="0123456789abcdefABCDEF-", max_size=40))
def test_the_beginning_of_a_uuid(start: str) -> None:
    plain = start.replace("-", "").lower()
    assert covers(start, A) == (plain != "" and A.replace("-", "").startswith(plain))
