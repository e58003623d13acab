"""Plays QEMU: the same ends on the command line, and a scenario named by ``fake=NAME`` in ``-append``.

Only what crosses those ends is played; no guest runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from itertools import pairwise
from typing import Any

from pyinit_qemu.channel import encode

PANIC = b"[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
FAILURE = {"kind": "failure", "code": "E-DEV", "stage": "mount", "lines": ["E-DEV no device has LABEL=x"]}


class FakeQemu:
    def __init__(self, arguments: list[str]) -> None:
        self.scenario = "pass"
        self.ends: dict[str, socket.socket] = {}
        for option, value in pairwise(arguments):
            if option == "-chardev":
                settings = dict(part.partition("=")[::2] for part in value.split(","))
                self.ends[settings["id"]] = socket.socket(fileno=int(settings["fd"]))
            elif option == "-append":
                found = [word.removeprefix("fake=") for word in value.split() if word.startswith("fake=")]
                self.scenario = found[-1] if found else "pass"

    def say(self, data: bytes) -> None:
        self.ends["console"].sendall(data)

    def frame(self, **frame: Any) -> None:
        self.ends["channel"].sendall(encode(frame))

    def qmp(self, **message: Any) -> None:
        self.ends["qmp"].sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.qmp(event=name, data=data, timestamp={"seconds": 0, "microseconds": 0})

    def shut_down(self, reason: str = "guest-shutdown") -> None:
        self.event("SHUTDOWN", guest=True, reason=reason)
        sys.exit(0)

    def main(self) -> None:
        if self.scenario == "early":
            sys.exit("qemu-system-x86_64: no such device")
        if self.scenario == "mute":
            self.sleep()
        self.qmp(QMP={"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []})
        for line in self.ends["qmp"].makefile("rb"):
            self.command(json.loads(line))

    def command(self, message: dict[str, Any]) -> None:
        answer: Any = {}
        match message["execute"]:
            case "quit":
                if self.scenario == "stubborn":
                    return
                self.qmp(id=message["id"], **{"return": {}})
                self.shut_down("host-qmp-quit")
            case "query-status":
                answer = {"status": "running", "running": True}
            case "human-monitor-command":
                answer = "EAX=00 EIP=0000fff0 EFL=00000246 II=0 A20=1 SMM=0 HLT=1\r\n"
            case "device_del" if not message["arguments"]["id"].startswith("dev"):
                self.qmp(id=message["id"], error={"class": "DeviceNotFound", "desc": "Device not found"})
                return
        self.qmp(id=message["id"], **{"return": answer})
        if message["execute"] == "device_del":
            self.event("DEVICE_DELETED", device=message["arguments"]["id"], path="/")
        elif message["execute"] == "cont":
            self.say(b"[    0.0] Linux version 0.0.0-fake\r\n")
            getattr(self, "play_" + self.scenario.replace("-", "_"))()

    def sleep(self) -> None:
        signal.pause()

    def play_pass(self) -> None:
        self.frame(kind="hello")
        self.say(b"\x1b[0;32m  OK  \x1b[0m Reached target\r\r\nDebian login: ")
        self.frame(kind="witness", pid=1)
        self.frame(kind="done")
        self.shut_down()

    def play_panic(self) -> None:
        self.say(PANIC + b"[    1.1] ---[ end Kernel panic\r\n")
        self.shut_down("guest-reset")

    def play_no_root(self) -> None:
        self.say(
            b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
        )
        self.shut_down("guest-reset")

    def play_panic_stays(self) -> None:
        self.say(PANIC)

    def play_traceback(self) -> None:
        self.say(b"Traceback (most recent call last):\r\n  File x\r\nValueError: no\r\n")

    def play_failure_frame(self) -> None:
        self.frame(kind="hello")
        self.frame(**FAILURE)

    def play_given_up(self) -> None:
        self.frame(**FAILURE)
        self.say(b"E-DEV no device has LABEL=x; poweroff in 10 s\r\n")
        self.shut_down()

    def play_rescued(self) -> None:
        self.frame(**FAILURE)
        self.say(b"E-DEV no device has LABEL=x\r\n# ")
        while b"exit" not in self.ends["console"].recv(1000):
            pass
        self.play_pass()

    def play_hang(self) -> None:
        """Nothing more is said; the control connection answers."""

    def play_stubborn(self) -> None:
        """As above."""

    def play_progress(self) -> None:
        self.say(b"first\r\n")
        if os.fork() == 0:
            while True:
                self.say(b"still here\r\n")
                time.sleep(0.02)

    def play_crash(self) -> None:
        print("qemu-system-x86_64: out of luck", file=sys.stderr)
        sys.exit(1)

    def play_assertion(self) -> None:
        print("qemu: ../kvm.c:1: set: Assertion `ret == n' failed.", file=sys.stderr)
        os.abort()

    def play_signal(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def play_reset(self) -> None:
        self.shut_down("guest-reset")

    def play_truncated(self) -> None:
        self.frame(kind="hello")
        self.ends["channel"].sendall(b'100 00000000 {"kind":"wit')
        self.shut_down()

    def play_damaged(self) -> None:
        self.frame(kind="hello")
        self.ends["channel"].sendall(b'18 00000000 {"kind":"witness"}\n')
        self.frame(kind="done")
        self.shut_down()

    def play_half(self) -> None:
        for part in (b"caf\xc3", b"\xa9 \xff\xfe \x1b[3", b"1mred\x1b[0", b"m end\r", b"\r\n"):
            self.say(part)
        self.shut_down()

    def play_pieces(self) -> None:
        """A word that comes in two pieces; the second when the first was certainly read, and answered."""
        self.say(b"word 6.1.0-50-clou")
        self.ends["console"].recv(1000)
        self.say(b"d-amd64 (gcc)\r\nlogin: ")
        self.sleep()

    def play_closed(self) -> None:
        self.ends["qmp"].shutdown(socket.SHUT_RDWR)
        self.sleep()

    def play_echo(self) -> None:
        self.say(b"ready\r\n")
        while True:
            typed = self.ends["console"].recv(1000)
            self.say(typed.replace(b"\n", b"\r\n"))
            if b"bye" in typed:
                self.shut_down()


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("QEMU emulator version 0.0.0 (fake)")
    else:
        FakeQemu(sys.argv[1:]).main()
