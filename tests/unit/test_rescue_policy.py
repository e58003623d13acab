"""Who gets a rescue shell: what is sealed, what the command line makes of it, and the password."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.boot import Boot
from pyinit.config.options import boot_config
from pyinit.config.sealed import POLICIES, SealedConfig, is_password_hash, strictest
from pyinit.kernel import keyboard as keyboard_module
from pyinit.kernel.console import Console
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.process import Children
from pyinit.kernel.prompt import Prompt
from pyinit.record import Record
from pyinit.rescue import password as password_module
from pyinit.rescue.password import Password
from pyinit.rescue.shell import Policy, loosening
from pyinit_image.access import make_hash

LIBRARY = "libcrypt.so.1"
RIGHT = b"correct horse"

# What a command line can say of the shell, and the policy that it asks for.
LINES = {
    "": "open",
    "rd.shell": "open",
    "rd.shell=1": "open",
    "rd.shell=0": "none",
    "rd.shell=0 rd.shell=1": "none",
    "rd.break": "open",
    "rd.break=mount rd.shell=0": "none",
    "rd.pyinit.rescue=open": "open",
    "rd.pyinit.rescue=password": "password",
    "rd.pyinit.rescue=none": "none",
    "rd.pyinit.rescue=none rd.pyinit.rescue=open": "none",
    "rd.pyinit.rescue=password rd.shell=1": "password",
    "rd.pyinit.rescue=password rd.shell=0": "none",
    "rd.pyinit.rescue=nonsense": "open",
    "SYSTEMD_SULOGIN_FORCE=1 rd.systemd.debug_shell single init=/bin/sh": "open",
}


@pytest.fixture(scope="module")
def hashed() -> str:
    return make_hash(bytearray(RIGHT))


def image(rescue: str, password: str = "", shell: str = "/bin/sh", library: str = LIBRARY) -> SealedConfig:
    libraries = {"crypt": library} if library else {}
    return SealedConfig("", "list", rescue, password, "", "/udevd", shell, libraries)


@pytest.mark.fault("row-3", "A3")
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("built", POLICIES)
def test_built_policy_and_command_line_come_to_the_stricter_one(built: str, line: str, hashed: str) -> None:
    config = boot_config(line.encode())
    policy = Policy(image(built, hashed), config)
    least = min(built, LINES[line], key=POLICIES.index)
    assert policy.level == least
    assert policy.open == (least != "none")
    looser = {asked for asked in config.rescue if POLICIES.index(asked) > POLICIES.index(built)}
    warnings = loosening(built, config.rescue)
    assert len(warnings) == len(looser)
    assert all(any(f"rescue policy {asked}" in warning for warning in warnings) for asked in looser)


@pytest.mark.fault("row-3", "A3")
@given(st.sampled_from(POLICIES), st.text(), st.lists(st.sampled_from(list(LINES))))
def test_no_further_word_loosens(built: str, odd: str, lines: list[str]) -> None:
    levels = [
        Policy(image(built), boot_config(" ".join(lines[:count]).encode())).level
        for count in range(len(lines) + 1)
    ]
    ranks = [POLICIES.index(level) for level in levels]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == POLICIES.index(built)
    assert strictest(built, odd) == (strictest(built) if odd in POLICIES[2:] else strictest(odd, built))


@pytest.mark.fault("row-4")
@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "*",
        "!",
        "plain",
        "$y$j9T$salt",
        "$6$salt$" + "a" * 86,
        "$1$salt$" + "a" * 22,
        "$y$j9T$salt$" + "a" * 42,
        "$y$j9T$salt$" + "a" * 43 + "\n",
        "$2x$10$" + "a" * 53,
    ],
)
def test_a_hash_that_is_none_or_a_weak_one_lets_nobody_in(bad: str, hashed: str) -> None:
    config = boot_config(b"")
    assert Policy(image("password", hashed), config).open
    assert not Policy(image("password", bad), config).open


def test_without_the_library_a_shell_or_a_known_policy_nobody_gets_in(hashed: str) -> None:
    config = boot_config(b"")
    assert not Policy(image("password", hashed, library=""), config).open
    assert not Policy(image("password", hashed, shell=""), config).open
    assert not Policy(image("open", shell=""), config).open
    assert not Policy(image("Open", hashed), config).open
    assert not Policy(None, config).open
    # The line asks for a password, and the image has none.
    assert not Policy(image("open"), boot_config(b"rd.pyinit.rescue=password")).open


@given(st.text())
def test_any_text_is_a_hash_or_is_none(text: str) -> None:
    assert is_password_hash(text) == (
        text.startswith("$") and text.isascii() and text.isprintable() and is_password_hash(text)
    )


class Desk:
    """A console, and somebody who types lines at it as soon as each question appears."""

    def __init__(self, controller: int, path: str) -> None:
        self.controller, self.path = controller, path
        record = Record("1", "6.1")
        self.record = record
        self.keyboard = Keyboard()
        self.children = Children(record)
        self.console = Console(record)
        self.prompt = Prompt(self.keyboard, self.console)
        self.password = Password(self.prompt, self.keyboard, self.children, self.console)

    def ask(
        self,
        lines: list[bytes],
        hashed: str,
        *,
        may_leave: bool = False,
        library: str = LIBRARY,
        limit: float = inf,
    ) -> str:
        seen = b""

        def type_lines() -> None:
            nonlocal seen
            for line in lines:
                while not seen.endswith(b"Password of the rescue shell: "):
                    poll = select.poll()
                    poll.register(self.controller, select.POLLIN)
                    if not poll.poll(10_000):
                        return
                    seen += os.read(self.controller, 4096)
                seen = b""
                os.write(self.controller, line)

        person = threading.Thread(target=type_lines)
        person.start()
        try:
            verdict, terminal = self.password.ask(hashed, library, may_leave=may_leave, limit=limit)
            assert terminal == (self.path if lines else "")
            return verdict
        finally:
            person.join()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    controller, device = os.openpty()
    path = os.ttyname(device)
    monkeypatch.setattr(keyboard_module, "active_consoles", lambda: [path])
    monkeypatch.setattr(Console, "write", lambda self, text: None)
    monkeypatch.setattr(password_module, "_FIRST_DELAY", 0.01)
    yield Desk(controller, path)
    os.close(controller)
    os.close(device)


def test_panic_limits_the_wait_for_the_first_key(desk: Desk, hashed: str) -> None:
    assert desk.ask([], hashed, limit=0.01) == "nobody"
    assert desk.ask([RIGHT + b"\r"], hashed, limit=30) == "right"
    sealed = image("password", hashed)
    patience = {line: Policy(sealed, boot_config(line)).patience for line in (b"", b"panic=-1", b"panic=20")}
    assert patience == {b"": 0, b"panic=-1": 0, b"panic=20": 20}


def test_who_knows_the_password_is_let_in_and_nothing_of_it_is_told(desk: Desk, hashed: str) -> None:
    assert desk.ask([b"wrong\r", RIGHT + b"\r"], hashed) == "right"
    told = desk.record.encode()
    assert b"this is not the password, try 1 of 3" in told
    assert RIGHT not in told and b"wrong" not in told and hashed.encode() not in told
    assert desk.keyboard.descriptors() == ()


@pytest.mark.fault("row-4", "A2")
@pytest.mark.parametrize(
    "lines",
    [
        [b"wrong\r"] * 3,
        [b"\r"] * 3,
        [b"\x03", b"\x04", b"\x1a\x1c\r"],
        [RIGHT + b"x\r", RIGHT[:-1] + b"\r", RIGHT.upper() + b"\r"],
        [b"a" * 600 + b"\r", b"\xff\r", b"\r"],
    ],
    ids=["wrong", "empty", "keys", "nearly", "long"],
)
def test_three_tries_are_all(lines: list[bytes], desk: Desk, hashed: str) -> None:
    assert desk.ask(lines, hashed) == "wrong"


def test_who_was_let_go_gets_no_new_tries(desk: Desk, hashed: str) -> None:
    assert desk.ask([b"1\r", b"\x04"], hashed, may_leave=True) == "left"
    assert desk.ask([b"2\r", b"\x03"], hashed, may_leave=True) == "left"
    assert desk.ask([b"3\r"], hashed, may_leave=True) == "wrong"


def test_the_right_password_gives_the_tries_back(desk: Desk, hashed: str) -> None:
    for _ in range(3):
        assert desk.ask([b"1\r", b"2\r", RIGHT + b"\r"], hashed) == "right"


@pytest.mark.parametrize("library", ["libnowhere.so.1", "libc.so.6"])
def test_a_library_that_cannot_check_it_lets_nobody_in(library: str, desk: Desk, hashed: str) -> None:
    assert desk.ask([RIGHT + b"\r"] * 3, hashed, library=library) == "wrong"


def test_without_a_console_nobody_is_waited_for(
    desk: Desk, hashed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyboard_module, "active_consoles", list)
    assert desk.ask([], hashed) == "wrong"


def test_the_delay_grows(desk: Desk, hashed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(desk.password, "_pause", waited.append)
    monkeypatch.setattr(password_module, "_FIRST_DELAY", 2.0)
    desk.ask([b"\r"] * 3, hashed)
    assert waited == [2.0, 4.0]


SHELLS = ("/bin/sh", "/bin/bash", "/usr/bin/python3", "/sysroot/../bin/sh", "sh")
INITS = ("/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd")


@pytest.mark.fault("row-12")
@pytest.mark.parametrize(
    ("built", "own", "line", "set_here", "expected"),
    [
        *(("open", "", path, "", path) for path in (*SHELLS, *INITS)),
        *((built, "", path, "", None) for built in ("none", "password") for path in SHELLS),
        *((built, "", path, "", path) for built in ("none", "password") for path in INITS),
        ("none", "/nix/store/x/init", "/bin/sh", "", "/nix/store/x/init"),
        ("none", "/nix/store/x/init", "/nix/store/x/init", "", "/nix/store/x/init"),
        ("password", "", "", "/bin/sh", "/bin/sh"),
        ("password", "", "/bin/bash", "/bin/sh", "/bin/sh"),
        ("none", "", "", "", None),
    ],
)
def test_the_boot_loader_cannot_make_a_shell_the_real_init(
    built: str, own: str, line: str, set_here: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = Boot([], [b"/init"])
    monkeypatch.setattr(boot.console, "write", lambda text: None)
    boot.sealed = image(built)
    boot.sources = tuple(f"init={path}".encode() if path else b"" for path in (own, line, set_here))
    boot.config = boot_config(*boot.sources)
    requested, candidates = boot._permitted_init()
    assert requested == expected
    assert ("/bin/sh" in candidates) == (built == "open")
    told = [message["text"] for message in boot.record.data["messages"]]
    ignored = line and line != expected and not set_here
    assert told == (
        [f"warning: init={line} is ignored: it may be a shell, which not everybody may have"]
        if ignored
        else []
    )
