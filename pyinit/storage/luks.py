"""LUKS volumes: opened as their devices appear, with key files, tokens, or a passphrase that a person types.

cryptsetup of the target system does the work, one process at a time: a key derivation takes memory. A secret
reaches it through a descriptor, never as a word of its command line. Passphrases are kept in buffers that
can be overwritten, and are, as soon as no volume is left that they could open.

An end of the tries is a failure of its own, ``E-UNLOCK``. The time that a person takes does not count as
time that a device takes to appear, so the one can never pass for the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from errno import EBUSY
from math import inf
from time import monotonic
from typing import NamedTuple

from pyinit.config import crypttab, devspec
from pyinit.config.crypttab import Options
from pyinit.config.luks import Key, LuksWords
from pyinit.context import Context
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.errors import BootError
from pyinit.kernel import memory
from pyinit.kernel.console import Console
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.filesystems import read_only_data
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.line import wipe
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience, hang
from pyinit.kernel.process import Children, find_program
from pyinit.kernel.prompt import Prompt, Question
from pyinit.kernel.syscalls import MNT_DETACH, MS, RESOLVE_IN_ROOT, mount, openat2, umount2
from pyinit.storage import asked_paths, luks_header, luks_tokens
from pyinit.storage.luks_requests import (
    DEFAULT_KEY_TIMEOUT,
    Request,
    is_luks,
    keys_for,
    requests,
    settle,
)
from pyinit.storage.luks_tokens import Token
from pyinit.text import printable

CRYPTTAB = "/etc/crypttab"
MOUNTS = "/run/pyinit/keys"
LOCKS = "/run/cryptsetup"
# Beside what the key derivation takes, cryptsetup and the boot need some memory, in KiB.
RESERVE = 16 * 1024
CLOSE_TIMEOUT = 10.0
#: Seconds that cryptsetup gets at the least, however short the boot's own limit is: deriving a key takes long
#: on a slow machine.
LEAST_LIMIT = 30.0
LONGEST_DELAY = 30.0
#: Seconds for which the device of a token may be missing where nobody can type a passphrase: crypttab(5),
#: token-timeout=.
DEFAULT_TOKEN_TIMEOUT = 30.0
#: Seconds between two looks for it. No block device appears with it, so that no event says so.
TOKEN_LOOK = 0.5
#: A device that got as many wrong PINs may allow only a few more before it locks itself (FIDO2: eight).
PIN_TRIES = 3
_WRONG_KEY, _NO_MEMORY = 2, 3  # cryptsetup(8), RETURN CODES


class _Volume:
    """A device that is to be opened."""

    def __init__(
        self, name: str, request: Request, view: DeviceView, options: Options, keys: list[Key]
    ) -> None:
        self.name = name
        self.request = request
        self.view = view
        self.options = options
        self.keys = keys
        self.state = "new"
        """``new``, ``keys`` (key files are tried, and tokens that want nobody), ``ask``, ``open``."""
        self.header = ""
        """The file with the header, when it is not on the device: a path for cryptsetup."""
        self.header_shown = ""
        """What it is for people, printable."""
        self.header_file = -1
        """The descriptor that the path means, where it is on another device."""
        self.tokens: list[Token] = []
        """Those that were not tried in vain."""
        self.missed: set[Token] = set()
        """Those of which it was said that their device is not there."""
        self.pins = 0
        """How many PINs were wrong."""
        self.token_deadline = 0.0
        self.slots: tuple[int | None, ...] = (None,)
        """The key slots to try one by one; None: all."""
        self.tries = 0
        self.tried: list[str] = []
        """What failed, printable."""
        self.key_deadline = inf
        self.lacks = ""
        """Which other device it needs that is not there, printable."""
        self.next_good = 0
        """How many of the passphrases that opened others were tried on it."""

    @property
    def shown(self) -> str:
        """Its name for people."""
        return printable(self.name)

    @property
    def place(self) -> str:
        """Where its header is, printable."""
        return self.header_shown if self.header else printable(self.view.node)

    def wanting_pin(self) -> list[Token]:
        """The tokens that a PIN can be tried on now."""
        there = self.pins < PIN_TRIES
        return [token for token in self.tokens if there and token.pin and luks_tokens.present(token)]

    def close_header(self) -> None:
        """Let go of the device with the header; the header is looked for again when it is needed."""
        if self.header_file >= 0:
            os.close(self.header_file)
            self.header, self.header_file = "", -1
            if self.state != "open":
                self.state = "new"

    def may_come(self) -> bool:
        """Whether a token may open it whose device is not there."""
        return any(not luks_tokens.present(token) for token in self.tokens)


class _Attempt(NamedTuple):
    """One run of cryptsetup."""

    pid: int
    volume: _Volume
    what: str
    """What it is tried with, printable."""
    input: int
    """The descriptor with the secret; -1: none."""
    secret: bool
    """Whether what is behind that descriptor must be overwritten."""
    output: int
    deadline: float
    token: Token | None


class _Trial:
    """A passphrase that is tried on one volume after the other."""

    def __init__(self, secret: bytearray, volumes: list[_Volume], question: Question | None) -> None:
        self.secret = secret
        self.question = question
        """Where it was typed; None: it has opened another volume before."""
        self.volumes = volumes
        self.left: list[tuple[_Volume, int | None, Token | None]] = []
        """Volume and key slot; or the token whose PIN it may be, which is known much sooner."""
        if question is not None:
            self.left += [(v, None, token) for v in volumes for token in v.wanting_pin()]
        self.left += [(v, slot, None) for v in volumes for slot in v.slots]
        self.opened = False


class Luks:
    """Opens encrypted volumes."""

    name = "luks"

    def __init__(
        self,
        requests: list[Request],
        words: LuksWords,
        prompt: Callable[[], Prompt],
        keyboard: Keyboard,
        children: Children,
        modules: Modules,
        console: Console,
        ready_to_ask: Callable[[], bool] = lambda: True,
        patience: Patience | None = None,
    ) -> None:
        """``prompt`` gives the consoles; ``ready_to_ask`` says whether the keyboard has its layout."""
        self._patience = patience or Patience(console)
        self._requests = requests
        self._words = words
        self._prompt = prompt
        self._keyboard = keyboard
        self._children = children
        self._modules = modules
        self._console = console
        self._ready_to_ask = ready_to_ask
        self._volumes: dict[str, _Volume] = {}
        """By the name that it gets."""
        self._opened: list[str] = []
        self._attempt: _Attempt | None = None
        self._trial: _Trial | None = None
        self._good: list[bytearray] = []
        """Passphrases that have opened a volume."""
        self._question: Question | None = None
        self._asked: list[_Volume] = []
        self._answer: bytearray | None = None
        self._answered = False
        self._ask_deadline = inf
        self._again_at = inf
        self._again_why = ""
        self._mounts: list[str] = []

    # What the waiting calls.

    def react(self, known: Collection[DeviceView]) -> None:
        """Go on as far as possible without waiting."""
        self._discover(known)
        self._end_attempt()
        for volume in self._volumes.values():
            if volume.state == "new":
                self._prepare(volume, known)
        if self._answered and self._attempt and self._attempt.token and not self._attempt.secret:
            # Whoever types a passphrase does not want to use the device.
            self._attempt.volume.tokens.append(self._attempt.token)
            self._kill(self._attempt)
        if self._attempt is None:
            self._start_next(known)
        if not self.holds():
            self._unmount_keys()
            if len(self._volumes) >= len(self._requests):
                self._forget_secrets()

    def wake(self) -> float:
        """When a wrong passphrase may be followed by another one, or time runs out."""
        if self._attempt:
            return self._attempt.deadline
        waits = [volume.key_deadline for volume in self._volumes.values() if volume.state == "keys"]
        if any(volume.may_come() for volume in self._asking()):
            waits.append(monotonic() + TOKEN_LOOK)
        return min(self._again_at, self._ask_deadline, *waits, inf)

    def holds(self) -> bool:
        """Whether a volume that is there, with all it needs, is not open yet."""
        return any(volume.state != "open" and not volume.lacks for volume in self._volumes.values())

    def waits_for(self) -> tuple[str, ...]:
        """What is being done, and which volumes are not there."""
        lines = []
        if self._attempt:
            lines.append(f"opening {self._attempt.volume.shown} with {self._attempt.what}")
        for volume in self._volumes.values():
            if volume.lacks:
                lines.append(f"{volume.shown}: waiting for {volume.lacks}")
            elif volume.state == "keys" and volume.keys:
                lines.append(f"{volume.shown}: waiting for its key: {_show_key(volume.keys[0])}")
            elif volume.state == "ask":
                missing = "".join(f"; {token.place} is not there" for token in volume.missed)
                lines.append(f"{volume.shown}: its passphrase is asked for{missing}")
        there = {id(volume.request) for volume in self._volumes.values()}
        lines += [f"no volume {r.describe()}" for r in self._requests if id(r) not in there]
        return tuple(lines)

    def opened(self) -> tuple[str, ...]:
        """The names of the volumes that are open."""
        return tuple(self._opened)

    def close(self) -> None:
        """Forget the secrets and close what was opened."""
        self._stop()
        for name in reversed(self._opened):
            self._close_volume(name)
        self._opened.clear()
        self._volumes.clear()

    def forget(self) -> None:
        """Forget the secrets: nothing more is to be opened."""
        self._stop()

    # Which devices there are.

    def _discover(self, known: Collection[DeviceView]) -> None:
        present = {view.sys_path for view in known}
        for name, volume in list(self._volumes.items()):
            if volume.view.sys_path not in present and volume.state != "open":
                self._drop(name, volume)
        # A copy that is plugged in later changes nothing for the one that is open.
        in_use = {volume.view.sys_path for volume in self._volumes.values() if volume.state == "open"}
        for request in self._requests:
            found = request.find(known)
            if not any(view.sys_path in in_use for view in found):
                _refuse_copies(request, found)
            for view in found:
                uuid = view.properties.get("ID_FS_UUID", "")
                name = request.name or f"luks-{uuid or view.name}"
                if name in self._volumes:
                    continue
                options, keys = settle(request, self._words, uuid), keys_for(request, self._words, uuid)
                volume = self._volumes[name] = _Volume(name, request, view, options, keys)
                if _is_mapped(name, known):
                    volume.state = "open"  # By a person, in the rescue shell.
                    if name not in self._opened:
                        self._opened.append(name)

    def _drop(self, name: str, volume: _Volume) -> None:
        """The device went away before it was opened."""
        self._console.warning(f"{printable(volume.view.node)} went away before {volume.shown} was opened")
        volume.close_header()
        del self._volumes[name]
        if volume in self._asked:
            self._withdraw()
        if self._trial:
            self._trial.left = [item for item in self._trial.left if item[0] is not volume]

    # What opens a volume.

    def _prepare(self, volume: _Volume, known: Collection[DeviceView]) -> None:
        """Look at the header, load what the kernel needs, and decide what is tried."""
        if not self._find_header(volume, known):
            return
        header = self._read_header(volume)
        slots = header.slots
        if volume.options.slot is not None:
            slots = tuple(slot for slot in slots if slot.number == volume.options.slot) or slots
            volume.slots = (volume.options.slot,)
        available = _available_memory()
        fitting = [slot for slot in slots if slot.memory + RESERVE <= available]
        if slots and not fitting:
            raise _no_memory(volume, slots, available)
        if len(fitting) < len(slots):
            volume.slots = tuple(slot.number for slot in fitting)
        self._modules.load("dm-crypt")
        self._modules.load("algif_skcipher")
        for part in luks_header.ciphers(header.cipher):
            for name in self._modules.matching(f"crypto-{part}"):
                self._modules.load(name, quietly=True)
        volume.tokens = list(header.tokens)
        timeout = volume.options.token_timeout
        volume.token_deadline = monotonic() + (DEFAULT_TOKEN_TIMEOUT if timeout is None else timeout or inf)
        volume.state = "keys"

    def _find_header(self, volume: _Volume, known: Collection[DeviceView]) -> bool:
        """Where the header is; False while the device that it is on is not there."""
        path, _, device = volume.options.header.partition(":")
        if not path or volume.header:
            return True
        if device:
            key = Key(path, device, "")
            place = self._mount_key_device(key, known)
            if place is None:
                volume.lacks = f"its header: {_show_key(key)}"
                return False
            # Whoever made the key device chose its links, and cryptsetup would follow them anywhere.
            try:
                volume.header_file = self._patience.call(
                    f"reading {printable(path)}", _open_inside, place, path
                )
            except OSError as error:
                cause = f"the LUKS header {_show_key(key)} cannot be read: {error.strerror}"
                raise _broken(volume, cause) from error
            volume.header_shown = _show_key(key)
            path = f"/proc/{os.getpid()}/fd/{volume.header_file}"
        else:
            volume.header_shown = printable(path)
        volume.lacks, volume.header = "", path
        return True

    def _read_header(self, volume: _Volume) -> luks_header.Header:
        place, shown = volume.header or volume.view.node, volume.place
        try:
            copies = self._patience.call(f"reading the LUKS header of {shown}", _read_copies, place)
        except OSError as error:
            raise _broken(volume, f"{shown} cannot be read: {error.strerror}") from error
        for header in copies.good:
            if header.weak:
                raise _weak(volume, header)
        if not copies.good:
            raise _broken(volume, f"the LUKS header of {shown} is damaged", copies.damage)
        for damage in copies.damage:
            self._console.warning(f"{shown}: {damage}; the other copy of the header is used")
        return copies.good[0]

    def _start_next(self, known: Collection[DeviceView]) -> None:
        """Start the next run of cryptsetup, or ask for a passphrase."""
        for volume in self._volumes.values():
            if volume.state == "keys" and self._try_key(volume, known):
                return
        if self._answered and self._trial is None:
            self._take_answer()
        if self._trial:
            if self._trial.left:
                volume, slot, token = self._trial.left.pop(0)
                what = f"{token.place} and a PIN" if token else "a passphrase"
                self._start(volume, what, secret=self._trial.secret, slot=slot, token=token)
                return
            self._judge(self._trial)
        asking = self._asking()
        for volume in asking:
            if volume.next_good < len(self._good):
                volume.next_good += 1
                self._trial = _Trial(self._good[volume.next_good - 1], [volume], None)
                self._start_next(known)
                return
        if asking:
            self._look_for_tokens(asking)
            self._ask(asking)
            for volume in asking:
                if not self._answered and self._try_token(volume, touch=True):
                    return

    def _look_for_tokens(self, volumes: list[_Volume]) -> None:
        """Say of each device once that it is not there, and of one that wants a PIN when it is."""
        for volume in volumes:
            for token in volume.tokens:
                there = luks_tokens.present(token)
                if not there and token not in volume.missed:
                    volume.missed.add(token)
                    self._console.notice(f"{volume.shown}: {token.place} has a key for it, and is not there")
                elif there:
                    volume.missed.discard(token)

    def _try_key(self, volume: _Volume, known: Collection[DeviceView]) -> bool:
        """Try the next key file; False when none can be tried now."""
        moment = monotonic()
        while volume.keys:
            key = volume.keys[0]
            place = self._mount_key_device(key, known) if key.device else "/"
            if place is None:
                if volume.key_deadline == inf:
                    limit = volume.options.key_timeout
                    wait = DEFAULT_KEY_TIMEOUT if limit is None else limit or inf
                    volume.key_deadline = moment + wait
                if moment < volume.key_deadline:
                    return False
                self._cannot(volume, _show_key(key), "its device did not appear")
            else:
                try:
                    descriptor = self._patience.call(
                        f"reading {printable(key.path)}", _open_inside, place, key.path
                    )
                except OSError as error:
                    self._cannot(volume, _show_key(key), str(error.strerror))
                else:
                    del volume.keys[0]
                    volume.key_deadline = inf
                    self._start(volume, f"key file {_show_key(key)}", descriptor=descriptor)
                    return True
            del volume.keys[0]
            volume.key_deadline = inf
        if self._try_token(volume):
            return True
        volume.state = "ask"
        return False

    def _try_token(self, volume: _Volume, *, touch: bool = False) -> bool:
        """Try a token that wants no PIN; one that must be touched only if ``touch``. False: there is none."""
        for token in volume.tokens:
            if not token.pin and (touch or not token.touch) and luks_tokens.present(token):
                volume.tokens.remove(token)
                if token.touch:
                    self._console.notice(f"{volume.shown}: touch {token.place}, or type a passphrase")
                self._start(volume, token.place, token=token)
                return True
        return False

    def _cannot(self, volume: _Volume, what: str, why: str) -> None:
        volume.tried.append(f"{what}: {why}")
        self._console.warning(f"{volume.shown}: {what}: {why}")

    def _start(
        self,
        volume: _Volume,
        what: str,
        *,
        secret: bytearray | None = None,
        descriptor: int = -1,
        slot: int | None = None,
        token: Token | None = None,
    ) -> None:
        """Start cryptsetup with a passphrase, a key file that is open, or a token and maybe its PIN."""
        program = find_program("cryptsetup")
        if not program:
            raise BootError(
                "E-LUKS",
                f"{volume.shown} cannot be opened: this image has no cryptsetup",
                found=(describe(volume.view),),
                advice=("Build an image that has it: pyinit-image build --feature luks.",),
            )
        words = [program, "open", "--type", "luks", "--batch-mode", "--tries", "1", *volume.options.words]
        if secret is not None:
            descriptor = os.memfd_create("passphrase")
            os.write(descriptor, secret)
            os.lseek(descriptor, 0, os.SEEK_SET)
        elif descriptor >= 0:
            words += volume.options.key_words
        if token:
            # It reads a PIN from its input, where that is no terminal.
            words += ["--token-only", "--token-type", f"systemd-{token.kind}"]
        else:
            words += ["--key-file", "-"]
            slot = volume.slots[0] if slot is None and len(volume.slots) == 1 else slot
            if slot is not None:
                words.append(f"--key-slot={slot}")
        if volume.header:
            words += ["--header", volume.header]
        if volume.options.discard:
            words.append("--allow-discards")
        os.makedirs(LOCKS, 0o700, exist_ok=True)
        output = os.memfd_create("output")
        pid = self._children.start([*words, volume.view.node, volume.name], stdin=descriptor, stdout=output)
        limit = self._patience.limit
        deadline = inf if limit is None else monotonic() + max(limit, LEAST_LIMIT)
        self._attempt = _Attempt(pid, volume, what, descriptor, secret is not None, output, deadline, token)

    def _end_attempt(self) -> None:
        """See how the running cryptsetup has ended, if it has."""
        attempt = self._attempt
        if attempt is None:
            return
        status = self._children.status(attempt.pid)
        if status is None:
            if monotonic() >= attempt.deadline and attempt.token:
                self._kill(attempt)
                self._cannot(attempt.volume, attempt.what, "nothing came of it in time")
            elif monotonic() >= attempt.deadline:
                self._stop()
                limit = max(self._patience.limit or 0.0, LEAST_LIMIT)
                raise hang(
                    f"opening {attempt.volume.shown} ({printable(attempt.volume.view.node)})",
                    f"cryptsetup has not ended after {limit:.6g} s, and was killed",
                )
            return
        said = self._let_go(attempt)
        volume = attempt.volume
        if status and self._volumes.get(volume.name) is not volume:
            return  # Its device went away meanwhile.
        if status == 0:
            volume.state = "open"
            self._opened.append(volume.name)
            self._console.info(f"opened {volume.shown} ({printable(volume.view.node)}) with {attempt.what}")
            if self._trial:
                self._trial.opened = True
                self._trial.left = [item for item in self._trial.left if item[0] is not volume]
            elif volume in self._asked:
                self._withdraw()
        elif status in (_NO_MEMORY, -9):
            raise _no_memory(volume, (), _available_memory(), said)
        elif status == _WRONG_KEY or attempt.token:
            if attempt.secret and attempt.token:
                volume.pins += 1
                if volume.pins == PIN_TRIES:
                    self._console.notice(
                        f"{volume.shown}: no more PINs are tried, lest the device locks itself"
                    )
            elif not attempt.secret:
                self._cannot(volume, attempt.what, said[-1] if said else "it does not open the volume")
        else:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise _broken(volume, f"{volume.shown} cannot be opened: cryptsetup ended with {how}", said)

    def _let_go(self, attempt: _Attempt) -> tuple[str, ...]:
        """Overwrite and close what an attempt used; returns what cryptsetup said, printable."""
        self._attempt = None
        if attempt.secret:
            _overwrite(attempt.input)
        if attempt.input >= 0:
            os.close(attempt.input)
        said = os.pread(attempt.output, 4096, 0)
        os.close(attempt.output)
        return tuple(printable(line) for line in said.splitlines() if line.strip())

    # Passphrases.

    def _asking(self) -> list[_Volume]:
        return [volume for volume in self._volumes.values() if volume.state == "ask"]

    def _ask(self, volumes: list[_Volume]) -> None:
        moment = monotonic()
        limits = (volume.options.timeout for volume in volumes if volume.options.timeout)
        deadline = moment + min(limits, default=inf)
        if self._question and moment >= self._again_at:
            self._again_at = inf
            if self._asked == volumes:
                self._ask_deadline = deadline
                self._prompt().again(self._question, self._again_why)
            else:
                self._withdraw(self._again_why)
        what = "Passphrase or PIN" if any(volume.wanting_pin() for volume in volumes) else "Passphrase"
        them = ", ".join(f"{volume.shown} ({printable(volume.view.node)})" for volume in volumes)
        text = f"{what} for {them}: "
        if self._question and self._question.text != text and self._again_at == inf:
            self._withdraw()
        if self._question is None and self._ready_to_ask():
            self._ask_deadline = deadline
            self._asked = volumes
            self._question = self._prompt().ask(text, self._take)
        token_may_come = any(volume.may_come() and moment < volume.token_deadline for volume in volumes)
        if self._question and not self._keyboard.terminals() and not token_may_come:
            raise self._exhausted("there is no console on which somebody could type a passphrase")
        if moment >= self._ask_deadline:
            raise self._exhausted("nobody typed a passphrase in time")

    def _take(self, question: Question, answer: bytearray | None) -> None:
        """A line was typed; called while the keyboard is read."""
        self._answer, self._answered = answer, True

    def _take_answer(self) -> None:
        answer, self._answer, self._answered = self._answer, None, False
        self._ask_deadline = inf
        if answer:
            self._trial = _Trial(answer, self._asking(), self._question)
        else:
            # Nothing was typed, or it was given up: a try like others that needs no key derivation.
            self._wrong()

    def _judge(self, trial: _Trial) -> None:
        """Every volume has been tried with a passphrase."""
        self._trial = None
        if trial.question is None:
            return
        if trial.opened:
            self._good.append(trial.secret)
            for volume in trial.volumes:
                volume.next_good = len(self._good)
            self._withdraw()
        else:
            wipe(trial.secret)
            self._wrong()

    def _wrong(self) -> None:
        """Count a try that opened nothing; ``E-UNLOCK`` when it was the last one."""
        volumes = self._asking()
        if not volumes:
            return  # Their devices have gone away.
        for volume in volumes:
            volume.tries += 1
        tries = max(volume.tries for volume in volumes)
        limit = min((volume.options.tries for volume in volumes if volume.options.tries), default=0)
        if limit and tries >= limit:
            raise self._exhausted("no passphrase opens it" if tries == 1 else f"{tries} wrong passphrases")
        them = ", ".join(volume.shown for volume in volumes)
        left = f" (try {tries} of {limit})" if limit else ""
        self._again_why = f"That does not open {them}{left}."
        self._again_at = monotonic() + min(2.0 ** (tries - 1), LONGEST_DELAY)

    def _exhausted(self, why: str) -> BootError:
        volumes = self._asking()
        them = ", ".join(volume.shown for volume in volumes)
        error = BootError(
            "E-UNLOCK",
            f"{them} cannot be unlocked: {why}",
            tried=tuple(f"{volume.shown}: {what}" for volume in volumes for what in volume.tried),
            found=tuple(describe(volume.view) for volume in volumes),
            advice=(
                "Look at the keyboard's layout and Caps Lock, then leave the shell: it is asked again.",
                "A header that was damaged opens with no passphrase: cryptsetup luksDump DEVICE shows it.",
            ),
        )
        self._stop()
        return error

    def _withdraw(self, why: str = "") -> None:
        if self._question:
            self._prompt().withdraw(self._question, why)
        self._question, self._asked = None, []
        self._ask_deadline = self._again_at = inf
        if self._answer:
            wipe(self._answer)
        self._answer, self._answered = None, False

    # Devices with keys.

    def _mount_key_device(self, key: Key, known: Collection[DeviceView]) -> str | None:
        """Where the file system with the key file is mounted, read-only; None while it is not there."""
        try:
            spec = devspec.parse_spec(key.device)
        except BootError:
            return None
        found = devspec.resolve(spec, known)
        if len(found) != 1:
            return None
        view, kind = found[0], found[0].properties.get("ID_FS_TYPE", "")
        place = f"{MOUNTS}/{view.name}"
        if place in self._mounts:
            return place
        self._modules.load_for_filesystem(kind)
        os.makedirs(place, 0o700, exist_ok=True)
        try:
            self._patience.call(
                f"mounting {printable(view.node)}",
                mount,
                view.node,
                place,
                kind,
                MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC,
                read_only_data(kind),
            )
        except OSError as error:
            self._console.warning(f"{printable(view.node)} with the key cannot be mounted: {error.strerror}")
            return None
        self._mounts.append(place)
        return place

    # The end.

    def _forget_secrets(self) -> None:
        """The next volume would be asked for anew."""
        for secret in self._good:
            wipe(secret)
        self._good.clear()

    def _unmount_keys(self) -> None:
        for volume in self._volumes.values():
            volume.close_header()
        while self._mounts:
            place = self._mounts.pop()
            try:
                umount2(place, MNT_DETACH)
                os.rmdir(place)
            except OSError as error:
                self._console.warning(f"{place} stays: {error.strerror}")

    def _stop(self) -> None:
        """End what is going on and forget the secrets."""
        if self._attempt:
            self._kill(self._attempt)
        if self._trial:
            wipe(self._trial.secret)
            self._trial = None
        self._withdraw()
        self._forget_secrets()
        self._unmount_keys()

    def _kill(self, attempt: _Attempt) -> None:
        try:
            os.kill(attempt.pid, 9)
        except ProcessLookupError:
            pass
        self._children.wait(attempt.pid, CLOSE_TIMEOUT)
        name = attempt.volume.name
        if _is_active(name) and name not in self._opened:
            attempt.volume.state = "open"  # It was quicker.
            self._opened.append(name)
        self._let_go(attempt)

    def _close_volume(self, name: str) -> None:
        """Close a volume; when something still uses it, put a table in its place that has no key.

        OSError when neither can be done: then no shell may be opened.
        """
        said = "there is no program for it"
        for words in (("cryptsetup", "close", name), ("dmsetup", "remove", "--force", name)):
            if not _is_active(name):
                return
            program = find_program(words[0])
            if not program:
                continue
            output = os.memfd_create("output")
            pid = self._children.start([program, *words[1:]], stdout=output)
            status = self._children.wait(pid, CLOSE_TIMEOUT)
            said = printable(b" ".join(os.pread(output, 4096, 0).split()))
            os.close(output)
            if status == 0:
                return
            self._console.warning(f"{' '.join(words[:2])} {printable(name)}: {said}")
        raise OSError(EBUSY, f"{printable(name)} cannot be closed: {said}")


def _is_active(name: str) -> bool:
    """Whether there is a mapping of this name (Documentation/ABI/testing/sysfs-block-dm)."""
    wanted = name.encode("utf-8", "surrogateescape") + b"\n"
    return any(
        read_if_there(f"/sys/class/block/{entry}/dm/name") == wanted for entry in names("/sys/class/block")
    )


def make(context: Context) -> Luks | None:
    """The assembler for what this boot asks for, or None when it asks for nothing."""
    words = context.config.luks or LuksWords()
    entries, warnings = crypttab.parse(read_if_there(CRYPTTAB))
    found, more = requests(words, entries, asked_paths(context))
    for warning in (*(f"crypttab {warning}" for warning in warnings), *more):
        context.console.warning(warning)
    if not found:
        return None
    return Luks(
        found,
        words,
        lambda: context.prompt,
        context.keyboard,
        context.children,
        context.modules,
        context.console,
        context.keymap.ready,
        context.patience,
    )


def _is_mapped(name: str, known: Collection[DeviceView]) -> bool:
    return any(
        view.properties.get("DM_NAME") == name and view.properties.get("DM_UUID", "").startswith("CRYPT-")
        for view in known
    )


def _refuse_copies(request: Request, found: list[DeviceView]) -> None:
    """Two devices with one LUKS UUID: which of them is the right one is not for us to guess."""
    by_uuid: dict[str, list[DeviceView]] = {}
    for view in found:
        by_uuid.setdefault(view.properties.get("ID_FS_UUID", "") if is_luks(view) else "", []).append(view)
    for views in by_uuid.values() if request.kind != "spec" else (found,):
        if len(views) > 1:
            raise BootError(
                "E-AMBIG",
                f"{len(views)} devices match the encrypted volume {request.describe()}",
                found=tuple(describe(view) for view in views),
                advice=(
                    "Remove the copy, or give one of them another UUID: cryptsetup luksUUID --uuid UUID.",
                ),
            )


def _available_memory() -> int:
    """KiB that can be had without swapping (Documentation/filesystems/proc.rst, MemAvailable)."""
    return memory.meminfo().get("MemAvailable", 1 << 50) >> 10


def _open_inside(place: str, path: str) -> int:
    """Open a file below ``place`` for reading; no link in its path leads out of there."""
    top = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(top, path.lstrip("/"), os.O_RDONLY, RESOLVE_IN_ROOT)
    finally:
        os.close(top)


def _read_copies(place: str) -> luks_header.Copies:
    """The headers of a volume; OSError when they cannot be read."""
    with open(place, "rb", buffering=0) as file:
        return luks_header.read(lambda offset, size: _read_at(file.fileno(), offset, size))


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``, or as many as there are."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def _overwrite(descriptor: int) -> None:
    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)


def _show_key(key: Key) -> str:
    return printable(f"{key.path} on {key.device}" if key.device else key.path)


def _broken(volume: _Volume, cause: str, found: tuple[str, ...] = ()) -> BootError:
    return BootError(
        "E-LUKS",
        cause,
        found=(describe(volume.view), *found),
        advice=(
            "Do not write to the device. A backup of the header, if there is one, brings it back: "
            "cryptsetup luksHeaderRestore.",
        ),
    )


def _weak(volume: _Volume, header: luks_header.Header) -> BootError:
    return BootError(
        "E-LUKS-CIPHER",
        f"{volume.shown} is not opened: {header.weak}",
        tried=(f"looked at the header of {volume.place} before opening it",),
        found=(describe(volume.view),),
        advice=(
            "Unless you made it so yourself, somebody has changed the header to get at what you would write.",
            "Type no passphrase. Compare the header with a backup: cryptsetup luksDump DEVICE.",
        ),
    )


def _no_memory(
    volume: _Volume, slots: tuple[luks_header.Slot, ...], available: int, said: tuple[str, ...] = ()
) -> BootError:
    needs = tuple(
        f"key slot {slot.number}: {printable(slot.kdf)} takes {slot.memory // 1024} MiB" for slot in slots
    )
    least = f" {min(slot.memory for slot in slots) // 1024} MiB" if slots else " more memory"
    return BootError(
        "E-OOM-KDF",
        f"{volume.shown} cannot be opened: deriving its key takes{least}, "
        f"{available // 1024} MiB are available",
        found=(*needs, *said, describe(volume.view)),
        advice=(
            "Give the machine more memory.",
            "On a machine with enough of it add a key that takes less: "
            "cryptsetup luksAddKey --pbkdf-memory KIB DEVICE.",
        ),
    )
