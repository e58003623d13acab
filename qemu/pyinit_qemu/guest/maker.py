"""The real init of the machine that makes disks: does what its plan says, reports, powers off.

The plan is JSON on the disk with the serial ``plan``: a list of steps, each an object with one of

``run``    an argument list; ``stdin`` is what it reads
``write``  the name of a file to make, mode 0600; ``hex`` is its content
``copy``   a block device, copied ``to`` another; with ``sparse`` blocks of zeros are left out

``@NAME`` at the start of a word is the device of the disk with the serial NAME. The first step that fails
ends the work: its words and its output are reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

sys.path.insert(0, "/usr/lib/witness")
from witness import send  # type: ignore[import-not-found]

# Nobody listens to uevents here: the tools make the device nodes themselves, and wait for nobody.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin",
    "LC_ALL": "C",
    "DM_DISABLE_UDEV": "1",
    "MDADM_NO_UDEV": "1",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}
_BLOCK = 1 << 20
_SILENCE = 600


class StepFailed(Exception):
    pass


def disks() -> dict[str, str]:
    found = {}
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/serial") as file:
                found[file.read().strip()] = f"/dev/{name}"
        except OSError:
            continue
    return found


def copy(source: str, target: str, sparse: bool) -> None:
    zeros = bytes(_BLOCK)
    with open(source, "rb", buffering=0) as reader, open(target, "r+b", buffering=0) as writer:
        position = 0
        while data := reader.read(_BLOCK):
            if not sparse or data != zeros[: len(data)]:
                writer.seek(position)
                view = memoryview(data)
                while view:
                    view = view[writer.write(view) :]
            position += len(data)
        os.fsync(writer.fileno())


def run(words: list[str], text: str) -> None:
    result = subprocess.run(
        words,
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        timeout=_SILENCE,
        check=False,
    )
    if result.returncode != 0:
        raise StepFailed(f"status {result.returncode}\n{result.stdout[-4000:].decode('utf-8', 'replace')}")


def do(step: dict[str, object], devices: dict[str, str]) -> None:
    def resolve(word: object) -> str:
        text = str(word)
        return devices[text[1:]] if text.startswith("@") else text

    if "run" in step:
        words = step["run"]
        assert isinstance(words, list)
        run([resolve(word) for word in words], str(step.get("stdin", "")))
    elif "write" in step:
        descriptor = os.open(str(step["write"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(bytes.fromhex(str(step["hex"])))
    else:
        copy(resolve(step["copy"]), resolve(step["to"]), bool(step.get("sparse")))


def main() -> dict[str, object]:
    devices = disks()
    with open(devices["plan"], "rb") as file:
        steps = json.loads(file.read().rstrip(b"\0"))
    for number, step in enumerate(steps):
        print(f"maker: {number + 1} of {len(steps)}: {next(iter(step))}", flush=True)
        try:
            do(step, devices)
        except Exception as error:
            return {
                "kind": "made",
                "ok": False,
                "step": number,
                "error": str(error) if isinstance(error, StepFailed) else f"{type(error).__name__}: {error}",
            }
    os.sync()
    return {"kind": "made", "ok": True}


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("this powers the machine off: it is only for process 1 of a virtual machine")
    try:
        send([main(), {"kind": "done"}])
    finally:
        os.sync()
        with open("/proc/sysrq-trigger", "w") as trigger:
            trigger.write("o")
        while True:
            time.sleep(1000)
