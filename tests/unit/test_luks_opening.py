"""The opening of encrypted volumes, step by step: what is tried, what is asked, what is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import cast

import pytest
from test_luks_header import device as header_bytes
from test_luks_header import luks1

from pyinit.config.luks import LuksWords
from pyinit.config.options import boot_config
from pyinit.config.sealed import EMPTY_INDEX
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children
from pyinit.kernel.prompt import Answered, Prompt, Question
from pyinit.record import Record
from pyinit.storage import luks as module
from pyinit.storage.luks import Luks
from pyinit.storage.luks_requests import requests

A = "1c0de5ea-0000-4000-8000-00000000000a"
B = "2c0de5ea-0000-4000-8000-00000000000b"


class FakeChildren:
    """Programs whose end the test decides; what they are given on their input is kept."""

    def __init__(self) -> None:
        self.started: list[tuple[list[str], bytes | None]] = []
        self.ended: dict[int, int] = {}
        self.statuses: list[int] = []
        """Of the next programs that are waited for; after these, 0."""

    def start(self, argv: list[str], *, stdin: int = -1, stdout: int | None = None) -> int:
        given = None if stdin < 0 else os.pread(stdin, 4096, 0)
        self.started.append((argv, given))
        return len(self.started) + 10_000_000

    def status(self, pid: int) -> int | None:
        return self.ended.get(pid)

    def wait(self, pid: int, timeout: float | None) -> int | None:
        return self.ended.setdefault(pid, self.statuses.pop(0) if self.statuses else 0)

    def end(self, status: int) -> None:
        self.ended[len(self.started) + 10_000_000] = status


class FakePrompt:
    """A person who answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.question: Question | None = None

    def ask(self, text: str, answered: Answered, *, secret: bool = True) -> Question:
        assert secret
        self.asked.append(text)
        self.question = Question(text, answered, secret)
        return self.question

    def again(self, question: Question, why: str = "") -> None:
        assert question is self.question
        self.said.append(why)

    def withdraw(self, question: Question, why: str = "") -> None:
        assert question is self.question
        self.question = None


class FakeKeyboard:
    def terminals(self) -> tuple[str, ...]:
        return ("/dev/ttyS0",)


class Bench:
    """An assembler with everything around it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
        self.folder = folder
        self.clock = 1000.0
        monkeypatch.setattr(module, "find_program", lambda name: f"/sbin/{name}")
        monkeypatch.setattr(module, "LOCKS", str(folder / "locks"))
        monkeypatch.setattr(module, "monotonic", lambda: self.clock)
        monkeypatch.setattr(module, "_available_memory", lambda: 4 << 20)
        monkeypatch.setattr(module, "_is_active", lambda name: True)
        self.record = Record("1", "6")
        self.console = Console(self.record)
        self.children = FakeChildren()
        self.prompt = FakePrompt()
        words = boot_config(line.encode()).luks or LuksWords()
        found, _ = requests(words, (), {})
        self.luks = Luks(
            found,
            words,
            lambda: cast(Prompt, self.prompt),
            cast(Keyboard, FakeKeyboard()),
            cast(Children, self.children),
            Modules(EMPTY_INDEX, self.console),
            self.console,
        )
        self.known: list[DeviceView] = []

    def plug(self, name: str, uuid: str, data: bytes | None = None) -> None:
        path = self.folder / name
        path.write_bytes(header_bytes(lambda raw: raw["tokens"].clear()) if data is None else data)
        found = {"ID_FS_TYPE": "crypto_LUKS", "ID_FS_UUID": uuid}
        self.known.append(
            DeviceView(
                f"/sys/{name}", name, "block", "disk", str(path), (8, len(self.known)), (), found, True
            )
        )

    def react(self) -> None:
        self.luks.react(self.known)

    def type(self, text: str | None) -> bytearray | None:
        answer = None if text is None else bytearray(text.encode())
        question = self.prompt.question
        assert question is not None
        question.answered(question, answer)
        self.react()
        return answer

    def cryptsetup(self, status: int) -> None:
        self.children.end(status)
        self.react()

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds
        self.react()


def bench(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> Bench:
    return Bench(folder, monkeypatch, line)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One volume whose device is there."""
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault")
    made.plug("sda", A)
    made.react()
    return made


def test_the_right_passphrase_opens_and_is_forgotten(one: Bench) -> None:
    assert one.prompt.asked == [f"Passphrase for vault ({one.folder}/sda): "]
    assert one.luks.holds() and one.luks.wake() == inf
    answer = one.type("secret")
    argv, given = one.children.started[0]
    assert given == b"secret" and "secret" not in " ".join(argv)
    assert argv[0] == "/sbin/cryptsetup" and argv[-2:] == [f"{one.folder}/sda", "vault"]
    assert "--key-file" in argv and argv[argv.index("--key-file") + 1] == "-"
    one.cryptsetup(0)
    assert not one.luks.holds() and one.luks.opened() == ("vault",)
    assert answer == bytearray(6)
    assert one.prompt.question is None


def test_a_wrong_one_is_followed_by_a_pause_that_grows_and_by_an_end(one: Bench) -> None:
    for tries, pause in ((1, 1.0), (2, 2.0)):
        one.type("wrong")
        one.cryptsetup(2)
        assert one.luks.wake() == one.clock + pause
        one.pass_time(pause - 0.1)
        assert len(one.prompt.said) == tries - 1
        one.pass_time(0.1)
        assert one.prompt.said[-1] == f"That does not open vault (try {tries} of 3)."
    one.type("wrong")
    with pytest.raises(BootError, match="E-UNLOCK vault cannot be unlocked: 3 wrong passphrases"):
        one.cryptsetup(2)
    assert one.prompt.question is None


@pytest.mark.parametrize("typed", ["", None])
def test_an_empty_line_and_one_given_up_are_tries_without_a_key_derivation(
    typed: str | None, one: Bench
) -> None:
    one.type(typed)
    one.pass_time(1)
    one.type(typed)
    one.pass_time(2)
    with pytest.raises(BootError, match="E-UNLOCK"):
        one.type(typed)
    assert one.children.started == []


def test_after_a_shell_it_is_asked_again(one: Bench) -> None:
    one.type("secret")
    one.cryptsetup(0)
    one.luks.close()
    assert one.children.started[-1][0] == ["/sbin/cryptsetup", "close", "vault"]
    assert one.luks.opened() == ()
    one.react()
    assert len(one.prompt.asked) == 2


def test_what_cannot_be_closed_gets_a_table_without_a_key_or_stops_the_shell(one: Bench) -> None:
    one.type("secret")
    one.cryptsetup(0)
    one.children.statuses = [5, 0]
    one.luks.close()
    assert one.children.started[-1][0] == ["/sbin/dmsetup", "remove", "--force", "vault"]
    one.react()
    one.type("secret")
    one.cryptsetup(0)
    one.children.statuses = [5, 1]
    with pytest.raises(OSError, match="vault cannot be closed"):
        one.luks.close()


def test_one_passphrase_is_tried_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=one rd.luks.name={B}=two")
    made.plug("sda", A)
    made.plug("sdb", B)
    made.react()
    assert made.prompt.asked == [f"Passphrase for one ({tmp_path}/sda), two ({tmp_path}/sdb): "]
    made.type("secret")
    made.cryptsetup(0)
    made.cryptsetup(0)
    assert made.luks.opened() == ("one", "two") and len(made.prompt.asked) == 1
    assert [given for _, given in made.children.started] == [b"secret", b"secret"]


def test_a_passphrase_that_opens_one_of_two_is_no_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=one rd.luks.name={B}=two")
    made.plug("sda", A)
    made.plug("sdb", B)
    made.react()
    made.type("first")
    made.cryptsetup(0)
    made.cryptsetup(2)
    assert made.prompt.asked[1] == f"Passphrase for two ({tmp_path}/sdb): "
    made.type("second")
    made.cryptsetup(0)
    assert not made.luks.holds()


def test_a_volume_that_comes_later_is_tried_with_what_opened_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=one rd.luks.name={B}=two")
    made.plug("sda", A)
    made.react()
    answer = made.type("secret")
    made.cryptsetup(0)
    assert answer == b"secret"
    made.plug("sdb", B)
    made.react()
    assert made.children.started[-1][1] == b"secret" and len(made.prompt.asked) == 1
    made.cryptsetup(0)
    assert answer == bytearray(6)


def test_a_key_file_comes_first_and_a_passphrase_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"key\n\0")
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault rd.luks.key={key} rd.luks.key=/missing")
    made.plug("sda", A)
    made.react()
    assert made.children.started[0][1] == b"key\n\0"
    made.cryptsetup(2)
    assert made.prompt.asked
    warnings = [m["text"] for m in made.record.data["messages"] if m["level"] == "warning"]
    assert any("/missing: No such file" in text for text in warnings)
    assert any(f"key file {key}: " in text for text in warnings)


def test_a_key_device_that_does_not_come_is_waited_for_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(
        tmp_path, monkeypatch, f"rd.luks.name={A}=vault rd.luks.key=/key:LABEL=stick rd.luks.key.tout=5"
    )
    made.plug("sda", A)
    made.react()
    assert made.luks.wake() == made.clock + 5
    assert made.luks.waits_for() == ("vault: waiting for its key: /key on LABEL=stick",)
    made.pass_time(5)
    assert made.prompt.asked and made.luks.wake() == inf


def test_only_key_slots_that_fit_into_memory_are_tried(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one.luks.close()
    monkeypatch.setattr(module, "_available_memory", lambda: 300 * 1024)
    one.react()
    one.type("secret")
    assert "--key-slot=1" in one.children.started[0][0]


def test_too_little_memory_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault")
    monkeypatch.setattr(module, "_available_memory", lambda: 300 * 1024)
    made.plug("sda", A, header_bytes(lambda raw: raw["keyslots"].pop("1")))
    with pytest.raises(BootError, match="E-OOM-KDF .* takes 1024 MiB, 300 MiB are available") as caught:
        made.react()
    assert "key slot 0: argon2id takes 1024 MiB" in caught.value.found
    assert made.prompt.asked == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (
            header_bytes(lambda raw: raw["segments"]["0"].update(encryption="cipher_null-ecb")),
            "E-LUKS-CIPHER",
        ),
        (luks1(cipher=b"cipher_null", mode=b"ecb"), "E-LUKS-CIPHER"),
        (bytes(1 << 20), "E-LUKS"),
    ],
)
def test_a_bad_header_is_refused_before_anything_is_asked(
    data: bytes, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault")
    made.plug("sda", A, data)
    with pytest.raises(BootError) as caught:
        made.react()
    assert caught.value.code == code
    assert made.prompt.asked == [] and made.children.started == []


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Bench]:
    """``stick(path)``: a volume whose header is at a path of another device, which has hostile links."""
    inside, outside = tmp_path / "keys/sdk", tmp_path / "outside"
    outside.write_bytes(header_bytes(lambda raw: raw["tokens"].clear()))
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/header").write_bytes(outside.read_bytes())
    (inside / "absolute").symlink_to("/etc/header")
    (inside / "upwards").symlink_to("../../etc/header")
    (inside / "out").symlink_to(outside)
    (inside / "up").symlink_to("../../outside")
    (inside / "kernel").symlink_to("/proc/1/root/etc/header")
    (inside / "around").symlink_to("around")
    monkeypatch.setattr(module, "MOUNTS", str(tmp_path / "keys"))
    for name in ("mount", "umount2"):
        monkeypatch.setattr(module, name, lambda *words: None)
    monkeypatch.setattr(os, "rmdir", lambda path: None)

    def plug(path: str) -> Bench:
        line = f"rd.luks.name={A}=vault rd.luks.options={A}=header={path}:LABEL=stick"
        words = boot_config(line.encode()).luks
        assert words is not None
        made = bench(tmp_path, monkeypatch, line)
        made.plug("sda", A, bytes(1 << 20))
        found = {"ID_FS_TYPE": "ext4", "ID_FS_LABEL": "stick", "ID_FS_USAGE": "filesystem"}
        made.known.append(DeviceView("/sys/sdk", "sdk", "block", "disk", "/dev/sdk", (8, 9), (), found, True))
        return made

    return plug


@pytest.mark.parametrize("path", ["/etc/header", "/absolute", "/upwards"])
def test_a_header_on_another_device_is_handed_over_as_it_was_opened(
    path: str, stick: Callable[[str], Bench]
) -> None:
    made = stick(path)
    made.react()
    made.type("secret")
    argv, _ = made.children.started[0]
    place = argv[argv.index("--header") + 1]
    inside = made.folder / "keys/sdk/etc/header"
    assert place.startswith(f"/proc/{os.getpid()}/fd/") and os.path.samefile(place, inside)
    made.cryptsetup(0)
    assert made.luks.opened() == ("vault",)
    assert not os.path.exists(place)


@pytest.mark.parametrize("path", ["/out", "/up", "/kernel", "/around"])
def test_no_link_on_the_device_with_a_header_leads_out_of_it(
    path: str, stick: Callable[[str], Bench]
) -> None:
    made = stick(path)
    with pytest.raises(BootError, match=f"E-LUKS the LUKS header {path} on LABEL=stick cannot be read"):
        made.react()
    assert made.children.started == []


def test_copies_of_a_volume_are_refused(one: Bench) -> None:
    one.plug("sdb", A)
    with pytest.raises(BootError, match="E-AMBIG 2 devices match the encrypted volume vault: UUID="):
        one.react()


def test_what_cryptsetup_says_is_told(one: Bench) -> None:
    one.type("secret")
    with pytest.raises(BootError, match="E-LUKS vault cannot be opened: cryptsetup ended with exit status 4"):
        one.cryptsetup(4)


def test_a_volume_that_is_not_there_is_named_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault")
    made.react()
    assert not made.luks.holds()
    assert made.luks.waits_for() == (f"no volume vault: UUID={A} (rd.luks.name)",)


def test_a_person_who_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault rd.luks.timeout=60")
    made.plug("sda", A)
    made.react()
    assert made.luks.wake() == made.clock + 60
    with pytest.raises(
        BootError, match="E-UNLOCK vault cannot be unlocked: nobody typed a passphrase in time"
    ):
        made.pass_time(60)


def test_where_nobody_can_type_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault")
    made.plug("sda", A)
    monkeypatch.setattr(FakeKeyboard, "terminals", lambda self: ())
    with pytest.raises(BootError, match="E-UNLOCK vault cannot be unlocked: there is no console"):
        made.react()


def test_each_try_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tmp_path, monkeypatch, f"rd.luks.name={A}=vault rd.luks.timeout=60")
    made.plug("sda", A)
    made.react()
    made.type("wrong")
    assert made.luks.wake() == made.clock + 180
    made.cryptsetup(2)
    made.pass_time(1)
    assert made.luks.wake() == made.clock + 60


def test_a_device_that_goes_away_while_it_is_opened_is_no_failure(one: Bench) -> None:
    answer = one.type("secret")
    one.known.clear()
    one.cryptsetup(4)
    assert one.prompt.question is None and answer == bytearray(6)
    assert not one.luks.holds()
    one.plug("sda", A)
    one.react()
    assert one.prompt.question is not None


def test_a_device_that_goes_away_before_the_answer_is_looked_at(one: Bench) -> None:
    one.known.clear()
    answer = one.type("secret")
    assert one.children.started == [] and answer == bytearray(6)


def test_a_device_that_goes_away_is_asked_for_no_more(one: Bench) -> None:
    one.known.clear()
    one.react()
    assert one.prompt.question is None and not one.luks.holds()


class Tokens:
    """A volume with tokens, and the devices that are there for them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *tokens: dict[str, object]) -> None:
        self.there: set[str] = set()
        monkeypatch.setattr(module.luks_tokens, "present", lambda token: token.kind in self.there)
        self.bench = bench(
            folder, monkeypatch, f"rd.luks.name={A}=vault rd.luks.options=token-timeout=20,tries=9"
        )
        table = {str(number): {"keyslots": ["1"], **token} for number, token in enumerate(tokens)}
        self.data = header_bytes(lambda raw: raw.update(tokens=table))

    def start(self, *there: str) -> Bench:
        self.there.update(there)
        self.bench.plug("sda", A, self.data)
        self.bench.react()
        return self.bench

    def notices(self) -> list[str]:
        return [m["text"] for m in self.bench.record.data["messages"] if m["level"] == "notice"]


TPM2, FIDO2 = {"type": "systemd-tpm2"}, {"type": "systemd-fido2"}


def test_a_tpm_that_is_there_is_asked_before_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Tokens(tmp_path, monkeypatch, TPM2).start("tpm2")
    argv, given = made.children.started[0]
    assert argv[-5:-2] == ["--token-only", "--token-type", "systemd-tpm2"] and given is None
    assert made.prompt.asked == []
    made.cryptsetup(1)
    assert made.prompt.asked == [f"Passphrase for vault ({tmp_path}/sda): "]


def test_a_device_that_comes_while_a_person_is_asked_opens_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(tmp_path, monkeypatch, TPM2)
    made = tokens.start()
    assert made.prompt.question and made.children.started == []
    assert tokens.notices() == ["vault: the machine's TPM has a key for it, and is not there"]
    assert "the machine's TPM is not there" in made.luks.waits_for()[0]
    assert made.luks.wake() <= made.clock + 1
    tokens.there.add("tpm2")
    made.react()
    made.cryptsetup(0)
    assert made.prompt.question is None and made.luks.opened() == ("vault",)


def test_where_nobody_can_type_the_device_is_waited_for_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeKeyboard, "terminals", lambda self: ())
    made = Tokens(tmp_path, monkeypatch, TPM2).start()
    made.pass_time(19)
    with pytest.raises(BootError, match="there is no console"):
        made.pass_time(1)


def test_a_touch_is_waited_for_while_a_passphrase_may_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(tmp_path, monkeypatch, FIDO2)
    made = tokens.start("fido2")
    assert tokens.notices() == ["vault: touch a FIDO2 device, or type a passphrase"]
    assert made.prompt.question and "systemd-fido2" in made.children.started[0][0]
    monkeypatch.setattr(module.os, "kill", lambda pid, signal: made.children.end(-signal))
    monkeypatch.setattr(module, "_is_active", lambda name: False)
    made.type("secret")
    assert made.children.started[1][1] == b"secret" and "--key-file" in made.children.started[1][0]
    made.cryptsetup(0)
    assert made.luks.opened() == ("vault",)


def test_what_is_typed_is_tried_as_the_pin_of_a_device_first_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(tmp_path, monkeypatch, {**FIDO2, "fido2-clientPin-required": True})
    made = tokens.start("fido2")
    assert made.prompt.asked == [f"Passphrase or PIN for vault ({tmp_path}/sda): "]
    for tries in (1, 2):
        made.type("wrong")
        assert "--token-only" in made.children.started[-1][0] and made.children.started[-1][1] == b"wrong"
        made.cryptsetup(2)
        assert "--key-file" in made.children.started[-1][0]
        made.cryptsetup(2)
        made.pass_time(2 ** (tries - 1))
    made.type("1234")
    made.cryptsetup(0)
    assert made.luks.opened() == ("vault",)
    assert len(made.children.started) == 5


def test_no_device_is_made_to_lock_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tmp_path, monkeypatch, {**TPM2, "tpm2-pin": True})
    made = tokens.start("tpm2")
    for tries in range(1, 5):
        made.type("wrong")
        made.cryptsetup(2)
        if tries <= module.PIN_TRIES:
            made.cryptsetup(2)
        made.pass_time(30)
    pins = [argv for argv, _ in made.children.started if "--token-only" in argv]
    assert len(pins) == module.PIN_TRIES
    assert tokens.notices()[-1] == "vault: no more PINs are tried, lest the device locks itself"
    assert made.prompt.asked[-1].startswith("Passphrase for")
