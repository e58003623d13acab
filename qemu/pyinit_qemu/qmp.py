"""QEMU's control protocol (QMP): one JSON object a line, in both directions.

Only the state of the protocol is kept here; ``pyinit_qemu.machine.Machine`` moves the bytes. ``qemu.qmp``
is not used: it lives in an asyncio loop, and a wait here must see console, result channel, control events and
the end of the process in one order and wake on any of them. One thread that reads all four gives that; a
second loop in a second thread would have to be brought into step with it, to save the few lines below.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from pyinit_qemu.verdict import MachineError


class QmpError(MachineError):
    """QEMU refused a command."""

    def __init__(self, command: str, kind: str, message: str) -> None:
        super().__init__(f"QEMU refused {command}: {message} ({kind})")
        self.command = command
        self.kind = kind
        self.message = message


class Qmp:
    """Commands out, replies and events in."""

    def __init__(self) -> None:
        self.greeting: Mapping[str, Any] | None = None
        self.replies: dict[int, Mapping[str, Any]] = {}
        self.events: list[Mapping[str, Any]] = []
        self.garbage: list[bytes] = []
        self._numbers = itertools.count(1)
        self._pending = b""

    def request(self, command: str, arguments: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return a new command's number and its line."""
        number = next(self._numbers)
        message: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        return number, json.dumps(message).encode() + b"\n"

    def feed(self, data: bytes) -> None:
        """Take the next bytes from QEMU."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        match message:
            case {"QMP": _}:
                self.greeting = message
            case {"event": str()}:
                self.events.append(message)
            case {"id": int(number), "return": _} | {"id": int(number), "error": _}:
                self.replies[number] = message
            case _:
                self.garbage.append(line)

    def reply(self, number: int, command: str) -> Any:
        """Return what command ``number`` returned; QmpError if it was refused, KeyError before the reply."""
        message = self.replies.pop(number)
        if "error" in message:
            error = message["error"]
            raise QmpError(command, str(error.get("class", "")), str(error.get("desc", "")))
        return message["return"]

    def find_event(self, name: str, data: Mapping[str, Any], start: int = 0) -> Mapping[str, Any] | None:
        """Return the first event from index ``start`` with this name whose data contain ``data``."""
        for event in self.events[start:]:
            have = event.get("data", {})
            if event["event"] == name and all(have.get(key) == value for key, value in data.items()):
                return event
        return None
