"""What the rescue shell tells of a boot, and what a report must not tell."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.errors import CODES
from pyinit.kernel.memory import parse_meminfo
from pyinit.record import Record
from pyinit.rescue.codes import HELP, document
from pyinit.rescue.report import HIDDEN, compose, mask, masked
from pyinit.rescue.status import Facts, status

REPOSITORY = Path(__file__).parents[2]


def record() -> dict[str, Any]:
    made = Record("1.2", "6.1")
    made.data["cmdline"] = "root=LABEL=x rd.luks.password=hunter2"
    made.add("stages", name="cmdline", start=0, end=5, outcome="done")
    made.add("stages", name="initqueue", start=5, end=9, outcome="E-DEV")
    made.add("modules", name="ext4", start=1, end=2, result="loaded")
    made.add("modules", name="foo", start=1, end=2, result="Unknown symbol")
    made.add(
        "wants", name="root", spec="LABEL=x", asked=0, ended=2_500_000, outcome="expired", by="", event=""
    )
    made.message("info", "mounting with passphrase: hunter2")
    return made.data


def test_status_says_where_the_boot_stands() -> None:
    facts = Facts(
        record(),
        "initqueue",
        "E-DEV root: gone",
        ("root=LABEL=y",),
        "",
        ("udevd (7)",),
        (2 << 20, 8 << 20),
        ("x works",),
    )
    assert status(facts) == [
        "pyinit:    1.2, Linux 6.1",
        "stopped:   in initqueue",
        "because:   E-DEV root: gone",
        "asked for: root=LABEL=x rd.luks.password=hunter2",
        "set here:  root=LABEL=y",
        "root:      nothing is mounted on /sysroot",
        "done:      cmdline",
        "waited:    for root: LABEL=x, 2.5 s: expired",
        "modules:   1 loaded, refused: foo (Unknown symbol)",
        "processes: udevd (7)",
        "at work:   x works",
        "memory:    2 of 8 MiB available",
    ]
    quiet = facts._replace(failure="", stage="mount", root="/dev/vda1 on /sysroot (ext4, ro)")
    assert status(quiet)[1:3] == ["stopped:   before mount", "because:   rd.break asks for it"]
    assert "root:      /dev/vda1 on /sysroot (ext4, ro)" in status(quiet)


@given(st.binary())
def test_any_meminfo_is_read(data: bytes) -> None:
    assert min(parse_meminfo(data).values(), default=0) >= 0
    assert parse_meminfo(b"MemTotal: " + b"9" * 5000 + b" kB") == {}
    assert parse_meminfo(b"MemTotal: 10 kB\nMemAvailable:  7 kB\nHugePages_Total: 1\n") == {
        "MemTotal": 10 << 10,
        "MemAvailable": 7 << 10,
    }


def test_a_report_hides_secrets() -> None:
    text = compose(["E-DEV x"], record(), (), None).decode("ascii")
    assert "hunter2" not in text
    assert f"in effect: root=LABEL=x rd.luks.password={HIDDEN}" in text
    assert text.startswith("--- failure\nE-DEV x\n--- system\n")
    assert {"timeline", "mounts", "kernel log", "processes"} <= set(re.findall(r"^--- (.*)$", text, re.M))


NAMES = st.sampled_from(
    ["password", "rd.x.passphrase", "SECRET", "wifi_token", "systemd.set_credential", "passwd"]
)
VALUES = st.text(
    st.characters(codec="ascii", exclude_characters=" ,\"'\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f"), min_size=6
)


@given(NAMES, VALUES, st.sampled_from(["", "a=b "]), st.sampled_from(["", " quiet", ",rw"]))
def test_the_value_of_a_secret_never_stays(name: str, value: str, before: str, after: str) -> None:
    assert mask(f"{before}{name}={value}{after}") == f"{before}{name}={HIDDEN}{after}"
    assert mask(f'{name}="{value} {value}"{after}') == f"{name}={HIDDEN}{after}"


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ('x.password="two words', f"x.password={HIDDEN}"),
        ('"x.password=two words" quiet "a=b c"', f'"x.password={HIDDEN}" quiet "a=b c"'),
        ('x.password=a"b c"d quiet', f"x.password={HIDDEN} quiet"),
        ("x.password= y.secret: z", f"x.password= y.secret: {HIDDEN}"),
        ("a.passwd=b.token=c d", f"a.passwd={HIDDEN} d"),
        ('{"password": "x", "b": 1}', f'{{"password": {HIDDEN}, "b": 1}}'),
    ],
)
def test_quotes_do_not_uncover_a_secret(line: str, hidden: str) -> None:
    assert mask(line) == hidden


def test_ordinary_words_stay_and_addresses_lose_their_passwords() -> None:
    line = "root=UUID=1-2 rd.luks.key=/key:UUID=3 keyboard=de root=/dev/sda1 ip=dhcp"
    assert mask(line) == line
    assert mask("root=cifs://me:secr@host/share") == f"root=cifs://{HIDDEN}@host/share"
    assert mask("netroot=iscsi:me:secr@1.2.3.4::::iqn.x") == f"netroot=iscsi:{HIDDEN}@1.2.3.4::::iqn.x"
    assert mask("root=iscsi:1.2.3.4::::iqn.x:y") == "root=iscsi:1.2.3.4::::iqn.x:y"
    assert mask("wifi.psk=abc x") == f"wifi.psk={HIDDEN} x"


def test_a_record_is_masked_string_by_string() -> None:
    known = {"cmdline": 'a="1" x.password="two words" b', "stages": [{"name": "mount", "start": 1}]}
    assert masked(known) == {
        "cmdline": f'a="1" x.password={HIDDEN} b',
        "stages": [{"name": "mount", "start": 1}],
    }


def test_every_code_is_documented() -> None:
    assert list(HELP) == list(CODES)
    assert (
        REPOSITORY / "docs" / "errors.md"
    ).read_text() == document(), "run: python3 -m pyinit.rescue.codes > docs/errors.md"


def test_every_code_is_provoked_by_a_boot_that_compares_the_whole_screen() -> None:
    tests = REPOSITORY / "tests" / "boot"
    compared = {
        code.value
        for path in sorted(tests.glob("test_*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "expect_screen"
        for code in call.args[1:]
        if isinstance(code, ast.Constant)
    }
    assert compared == set(CODES)
    screens = {path.stem: path.read_text() for path in (tests / "screens").iterdir()}
    assert set(screens) == set(CODES)
    part = r"pyinit:   (?:tried: |found: |to do: |       ) .+\n"
    for code, text in screens.items():
        # The cause is not left to chance.
        assert re.fullmatch(
            rf"pyinit: {code} [^{{]{{8}}.*\npyinit:   in stage [a-z-]+\n(?:{part})+", text
        ), code
