"""crypttab(5): which encrypted volumes there are, and how each is opened.

Bytes in, values out: a line or an option that cannot be understood is named in a warning and left out. Text
that was not UTF-8 is kept by surrogateescape; show it through :func:`pyinit.text.printable`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyinit.text import printable

DEFAULT_TRIES = 3
_MAX_NUMBER = 1 << 40


class Entry(NamedTuple):
    """One line."""

    line: int
    """From 1."""
    name: str
    """The device will be /dev/mapper/NAME."""
    source: str
    """The encrypted device: a path, ``UUID=...`` and so on."""
    key: str
    """The key file, perhaps ``PATH:DEVICE``; or ``none`` for a passphrase."""
    options: tuple[str, ...]


class Options(NamedTuple):
    """What the options of a volume come to. Times are seconds."""

    words: tuple[str, ...] = ()
    """Options of ``cryptsetup open``."""
    key_words: tuple[str, ...] = ()
    """Those that count only when the key is in a file."""
    discard: bool = False
    slot: int | None = None
    """The only key slot to try."""
    header: str = ""
    """Where its header is when it is not on the device itself: ``PATH`` or ``PATH:DEVICE``."""
    tries: int = DEFAULT_TRIES
    """How many passphrases may be wrong; 0: any number."""
    timeout: float = 0
    """How long a person may think; 0: as long as they like."""
    key_timeout: float | None = None
    """How long the device with the key file is waited for; None: not said."""
    token_timeout: float | None = None
    """How long a device of a token is waited for where nobody can type a passphrase; None: not said."""
    skip: str = ""
    """Why the volume is nothing for the initramfs; empty when it is."""


def parse(data: bytes) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Read a file: its lines, and warnings about those that are left out, ``line 3: ...``."""
    entries = []
    warnings: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        shown = printable(b" ".join(words)[:80])
        if b"\0" in line:
            warnings.append(f"line {number}: a zero byte in it: {shown}")
            continue
        if len(words) < 2:
            warnings.append(f"line {number}: no name and encrypted device: {shown}")
            continue
        name, source, *rest = (word.decode("utf-8", "surrogateescape") for word in words[:4])
        if not is_name(name):
            warnings.append(f"line {number}: {printable(name[:80])} cannot be a name below /dev/mapper")
            continue
        key, options = (*rest, "-", "-")[:2]
        entries.append(
            Entry(number, name, _unquote(source), "none" if key == "-" else key, split_options(options))
        )
    return tuple(entries), tuple(warnings)


def is_name(name: str) -> bool:
    """Whether a device can be called so below /dev/mapper: 127 bytes, DM_NAME_LEN in linux/dm-ioctl.h."""
    size = len(name.encode("utf-8", "surrogateescape"))
    return 0 < size < 128 and "/" not in name and "\0" not in name and name not in (".", "..", "control")


def split_options(text: str) -> tuple[str, ...]:
    """The options in the fourth column, or in ``rd.luks.options=``."""
    return tuple(option for option in text.split(",") if option not in ("", "-"))


# What is passed on to cryptsetup(8), which calls the same things otherwise.
_FLAGS = {
    "read-only": "--readonly",
    "readonly": "--readonly",
    "same-cpu-crypt": "--perf-same_cpu_crypt",
    "submit-from-crypt-cpus": "--perf-submit_from_crypt_cpus",
    "no-read-workqueue": "--perf-no_read_workqueue",
    "no-write-workqueue": "--perf-no_write_workqueue",
}
_NUMBERS = {"keyfile-offset": "--keyfile-offset", "keyfile-size": "--keyfile-size"}
# Nothing to do for: what the initramfs does anyway, or what is for the booted system.
_IGNORED = (
    "luks,nofail,noearly,_netdev,x-initrd.attach,initramfs,loud,quiet,force,headless,"
    "password-echo,password-cache,try-empty-password,"
    # The header says which tokens there are.
    "tpm2-device,fido2-device"
).split(",")
_KINDS = {
    "plain": "plain dm-crypt has no header to open it by",
    "tcrypt": "TrueCrypt volumes are not handled here",
    "bitlk": "BitLocker volumes are not handled here",
    "swap": "it gets a new key each time",
    "tmp": "it gets a new key each time",
    "noauto": "noauto",
}


def decode_options(options: tuple[str, ...]) -> tuple[Options, tuple[str, ...]]:
    """What options come to, and warnings about those that have no effect."""
    words: dict[str, str] = {}
    key_words: dict[str, str] = {}
    found: dict[str, object] = {}
    warnings = []
    for option in options:
        name, equals, value = option.partition("=")
        number = _seconds(value) if name.endswith("timeout") else _number(value)
        if name in ("discard", "allow-discards"):
            found["discard"] = True
        elif name in _FLAGS:
            words[_FLAGS[name]] = _FLAGS[name]
        elif name in _KINDS:
            found.setdefault("skip", _KINDS[name])
        elif name == "header" and value.startswith("/"):
            found["header"] = value
        elif name in _NUMBERS and number is not None:
            key_words[name] = f"{_NUMBERS[name]}={number:.0f}"
        elif name in ("key-slot", "keyslot") and number is not None:
            found["slot"] = int(number)
        elif name == "tries" and number is not None:
            found["tries"] = int(number)
        elif name == "timeout" and number is not None:
            found["timeout"] = number
        elif name == "keyfile-timeout" and number is not None:
            found["key_timeout"] = number
        elif name == "token-timeout" and number is not None:
            found["token_timeout"] = number
        elif name not in _IGNORED and not name.startswith(("x-", "tpm2-", "fido2-")):
            warnings.append(f"{printable(option[:80])} has no effect")
    settled = Options(tuple(words.values()), tuple(key_words.values()))
    return settled._replace(**found), tuple(warnings)  # type: ignore[arg-type]


def _number(text: str) -> float | None:
    if re.fullmatch("[0-9]{1,13}", text, re.ASCII) and int(text) <= _MAX_NUMBER:
        return int(text)
    return None


def _seconds(text: str) -> float | None:
    """A time span: a number of seconds, or one with a unit (systemd.time(7))."""
    match = re.fullmatch("([0-9]{1,9})(ms|s|sec|m|min|h)?", text, re.ASCII)
    if match is None:
        return None
    unit = {"ms": 0.001, "m": 60, "min": 60, "h": 3600}.get(match[2] or "s", 1)
    return min(int(match[1]) * unit, float(1 << 20))


def _unquote(spec: str) -> str:
    """``UUID="..."``, as fstab has it too, is ``UUID=...``."""
    tag, equals, value = spec.partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return f"{tag}={value[1:-1]}" if equals and quoted else spec
