"""The boot record: what every step of a boot did and how long it took.

It is written to ``/run/pyinit/boot.json``, survives into the real system, and is printed there with
``python3 /run/pyinit/timeline.py`` (a copy of this file, which therefore imports nothing of pyinit) or, where
pyinit is installed, ``python3 -m pyinit.record [FILE]``.

Schema 1; every time is in microseconds of CLOCK_MONOTONIC, which starts with the kernel:

``schema``, ``version``, ``kernel``, ``cmdline``
    the number 1; pyinit's version; ``uname -r``; the effective command line, escaped.
``started``, ``imported``
    when the first line of pyinit ran, and when all that it needs for the good way was imported.
``stages``
    ``name``, ``start``, ``end``, ``outcome`` (``done``, the code of the failure, or ``interrupted`` by a
    person who wanted a shell), one for each attempt.
``wants``
    ``name``, ``spec``, ``asked``, ``ended``, ``outcome`` (``satisfied``, ``expired``, ``ambiguous``, or
    ``interrupted`` by a person who wanted a shell), ``by`` (the device) and ``event`` (the udev action that
    brought it, or ``enumerated``).
``modules``
    ``name``, ``start``, ``end``, ``result`` (``loaded``, ``present``, or the error).
``shells``
    ``stage``, ``start``, ``end``: when a person was at work in the rescue shell, or was asked for its
    password; ``end`` is 0 until then. A record of an earlier version has none of these.
``children``
    ``argv``, ``pid``, ``start``, ``end``, ``status`` (exit status, or the signal's negative number).
``mounts``
    ``source``, ``target``, ``type``, ``options``, ``start``, ``end``.
``events``
    how many udev events were read, and how often the monitor had to be opened again.
``messages``
    ``at``, ``level``, ``text``: what was logged.
``handover``
    ``at``, ``init``, ``method`` (``pivot_root`` or ``move``), ``orphans`` (how many processes of others were
    reaped), ``killed`` (leftover processes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

PATH = "/run/pyinit/boot.json"
MAX_MESSAGES = 500


def now() -> int:
    """Microseconds of CLOCK_MONOTONIC."""
    return monotonic_ns() // 1000


def _nothing() -> None:
    pass


class Record:
    """Collects the facts of one boot; :meth:`encode` gives the document."""

    def __init__(self, version: str, kernel: str, started: int | None = None) -> None:
        imported = now()
        self.data: dict[str, Any] = {
            "schema": 1,
            "version": version,
            "kernel": kernel,
            "cmdline": "",
            "started": imported if started is None else started,
            "imported": imported,
            "stages": [],
            "wants": [],
            "modules": [],
            "shells": [],
            "children": [],
            "mounts": [],
            "events": {"read": 0, "reopened": 0},
            "messages": [],
            "handover": None,
        }

        self.progress: Callable[[], None] = _nothing
        """Called whenever something has happened that brings the boot on; messages do not."""

    def add(self, kind: str, **facts: object) -> dict[str, Any]:
        """Append an entry to the list ``kind``; the caller may complete the returned entry later."""
        self.data[kind].append(facts)
        self.progress()
        return facts

    def message(self, level: str, text: str) -> None:
        """Keep a log line, the newest ones when there are too many."""
        messages = self.data["messages"]
        if len(messages) >= MAX_MESSAGES:
            del messages[0]
        messages.append({"at": now(), "level": level, "text": text})

    def encode(self, *, messages: bool = True) -> bytes:
        """The record as JSON in ASCII, without the messages if they are too much."""
        data = self.data if messages else {**self.data, "messages": []}
        return json.dumps(data, separators=(",", ":")).encode("ascii")


# What timeline() and the rescue shell need of each entry; kinds in one tuple are alternatives.
_STEP: dict[str, tuple[type, ...]] = {"start": (int,), "end": (int,)}
_ENTRIES: dict[str, dict[str, tuple[type, ...]]] = {
    "stages": {"name": (str,), "outcome": (str,), **_STEP},
    "modules": {"name": (str,), "result": (str,), **_STEP},
    "shells": {"stage": (str,), **_STEP},
    "children": {"argv": (list,), "start": (int,), "end": (int, type(None))},
    "wants": {
        **dict.fromkeys(("name", "spec", "outcome", "by", "event"), (str,)),
        "asked": (int,),
        "ended": (int,),
    },
    "mounts": {**dict.fromkeys(("source", "target", "type", "options"), (str,)), **_STEP},
    "messages": {"at": (int,), "text": (str,)},
}
_HEAD: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("version", "kernel", "cmdline"), (str,)),
    **dict.fromkeys(("started", "imported"), (int,)),
    "handover": (dict, type(None)),
}
_HANDOVER: dict[str, tuple[type, ...]] = {"at": (int,), "init": (str,), "method": (str,)}


def decode(data: bytes) -> dict[str, Any]:
    """Read an encoded record, whoever sent it: ValueError when it is none or was cut off.

    All its strings are free of control characters afterwards.
    """
    try:
        record = _printable(json.loads(data))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(record, _HEAD, "it")
    record.setdefault("shells", [])
    for kind, fields in _ENTRIES.items():
        if not isinstance(record.get(kind), list):
            raise ValueError(f"it has no list of {kind}")
        for entry in record[kind]:
            _check(entry, fields, f"an entry of {kind}")
            if not all(isinstance(word, str) for word in entry.get("argv", ())):
                raise ValueError("a process has words that are no text")
    if record["handover"] is not None:
        _check(record["handover"], _HANDOVER, "the handover")
    return dict(record)


def _check(value: Any, fields: dict[str, tuple[type, ...]], name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no table")
    for field, kinds in fields.items():
        item = value.get(field)
        # Microseconds that a 64-bit clock cannot count are none; a larger number could not even be divided.
        if field not in value or type(item) not in kinds or (type(item) is int and abs(item) >= 1 << 63):
            raise ValueError(f"{name} has no proper {field}")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        return "".join(char if " " <= char <= "~" else ascii(char)[1:-1] for char in value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in value.items()}
    return value


def timeline(record: dict[str, Any]) -> list[str]:
    """Tell the boot as text, one line for each step, from a decoded record.

    Milliseconds since the kernel started stand on the left, durations in the middle.
    """
    started = int(record["started"])
    rows: list[tuple[int, int | None, str]] = [(started, int(record["imported"]) - started, "/init: imports")]
    for stage in record["stages"]:
        outcome = "" if stage["outcome"] == "done" else f"  {stage['outcome']}"
        rows.append((stage["start"], stage["end"] - stage["start"], f"{stage['name']}{outcome}"))
    for module in record["modules"]:
        if module["result"] != "present":
            result = "" if module["result"] == "loaded" else f"  {module['result']}"
            rows.append(
                (module["start"], module["end"] - module["start"], f"    module {module['name']}{result}")
            )
    for shell in record["shells"]:
        duration = shell["end"] - shell["start"] if shell["end"] else None
        rows.append((shell["start"], duration, f"rescue shell in {shell['stage']}"))
    for child in record["children"]:
        duration = child["end"] - child["start"] if child["end"] else None
        rows.append((child["start"], duration, f"    {_process(child['argv'])}"))
    for want in record["wants"]:
        rows.append((want["asked"], None, f"    wants {want['name']}: {want['spec']}"))
        if want["ended"]:
            by = f" by {want['by']} ({want['event']})" if want["by"] else ""
            rows.append(
                (want["ended"], want["ended"] - want["asked"], f"    {want['name']} {want['outcome']}{by}")
            )
    for mount in record["mounts"]:
        text = f"    mount {mount['source']} on {mount['target']} ({mount['type']}, {mount['options']})"
        rows.append((mount["start"], mount["end"] - mount["start"], text))
    handover = record["handover"]
    # Until it has happened its moment is 0.
    if handover and handover["at"]:
        rows.append((handover["at"], None, f"{handover['init']} (switched by {handover['method']})"))
    rows.sort(key=lambda row: row[0])
    lines = [f"pyinit {record['version']}, Linux {record['kernel']}", "      ms   took"]
    for at, took, text in rows:
        lines.append(f"{at / 1000:8.1f} {'' if took is None else f'{took / 1000:6.1f}':>6}  {text}")
    if handover and handover["at"]:
        people = sum(shell["end"] - shell["start"] for shell in record["shells"] if shell["end"])
        spent = handover["at"] - started - people
        without = f", without {people / 1000:.1f} ms in the rescue shell" if people else ""
        lines.append(f"{spent / 1000:.1f} ms from /init to the real init{without}")
    return lines


def _process(argv: list[str]) -> str:
    """What was started, as a person would call it."""
    if any("pyinit.rescue.relay" in word for word in argv):
        return f"rescue shell {argv[-1]}"
    return f"process {' '.join(argv)}"


def main(arguments: list[str]) -> int:
    """Print the timeline of the record in the file named, or of this boot."""
    path = arguments[0] if arguments else PATH
    try:
        with open(path, "rb") as file:
            lines = timeline(decode(file.read()))
    except (OSError, ValueError) as error:
        print(f"{path} holds no boot record: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
