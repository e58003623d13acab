"""A keyboard with the US layout: text and names of keys into QEMU's key codes, and typing on it.

The codes are those of ``QKeyCode`` in QEMU's ``qapi/ui.json``; QMP's ``send-key`` takes them.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinit_qemu.machine import Machine

Chord = tuple[str, ...]
"""Key codes that are pressed together, in this order, and released in the opposite one."""

HOLD = 0.04
"""Seconds of the guest's clock between two changes of keys: a guest that is slow to answer the interrupt
still finds room for the next one in the keyboard controller, which keeps 16 bytes."""

_PLAIN = {
    " ": "spc",
    "\n": "ret",
    "\t": "tab",
    "\b": "backspace",
    "\x7f": "backspace",
    "\x1b": "esc",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    **{character: character for character in string.ascii_lowercase + string.digits},
}

_SHIFTED = dict(zip('_+{}:"~|<>?', "-=[];'`\\,./", strict=True)) | dict(
    zip(")!@#$%^&*(", "0123456789", strict=True)
)

_NAMES = {
    **{name: name for name in _PLAIN.values()},
    **{
        name: name
        for name in ("ctrl", "alt", "shift", "ctrl_r", "alt_r", "shift_r", "meta_l", "meta_r", "menu")
    },
    **{
        name: name
        for name in ("up", "down", "left", "right", "home", "end", "pgup", "pgdn", "insert", "delete")
    },
    **{name: name for name in ("caps_lock", "num_lock", "scroll_lock", "print", "sysrq", "pause", "power")},
    **{f"f{number}": f"f{number}" for number in range(1, 13)},
    "del": "delete",
    "enter": "ret",
    "return": "ret",
    "escape": "esc",
    "space": "spc",
    "control": "ctrl",
}


def keys_of(text: str) -> tuple[Chord, ...]:
    """Return the key presses that type ``text`` on a US keyboard.

    ``\\n`` is Enter, ``\\x7f`` Backspace, and other control characters are typed with Ctrl. ValueError names
    the first character that this keyboard does not have.
    """
    return tuple(_chord_of(character) for character in text)


def _chord_of(character: str) -> Chord:
    if (code := _PLAIN.get(character)) is not None:
        return (code,)
    if (base := _SHIFTED.get(character)) is not None:
        return ("shift", _PLAIN[base])
    if "A" <= character <= "Z":
        return ("shift", character.lower())
    if "\x01" <= character <= "\x1a":
        return ("ctrl", chr(ord(character) + 0x60))
    raise ValueError(f"a US keyboard has no key for {character!r} (U+{ord(character):04X})")


def chord(name: str) -> Chord:
    """Return the key codes of a combination as people write it: ``ctrl-alt-delete``, ``alt-f2``, ``A``.

    ValueError names the word that is no key.
    """
    if len(name) == 1:
        return _chord_of(name)
    words = [word.strip().lower() for word in name.split("-")]
    if unknown := [word for word in words if word not in _NAMES]:
        raise ValueError(f"{name!r}: no key is called {unknown[0]!r}; known: {', '.join(sorted(_NAMES))}")
    return tuple(_NAMES[word] for word in words)


class Keyboard:
    """The keyboard of a running machine; a PC has one with and without a screen."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def press(self, name: str) -> None:
        """Press and release a combination of keys (:func:`chord`)."""
        self._send(chord(name))

    def type(self, text: str, *, secret: bool = False) -> None:
        """Type text (:func:`keys_of`); return when the last key has been released in the guest's time.

        ``secret``: the log of control commands does not tell the keys.
        """
        for keys in keys_of(text):
            self._send(keys, secret=secret)

    def _send(self, keys: Chord, *, secret: bool = False) -> None:
        codes = [{"type": "qcode", "data": key} for key in keys]
        hold = round(HOLD * 1000)
        self._machine.qmp("send-key", hidden=secret, keys=codes, **{"hold-time": hold})
        # QEMU queues what is pressed faster than the guest's clock goes, and throws away what does not fit.
        self._machine.idle(2 * len(keys) * HOLD)
