"""Runs as PID 1 of new namespaces: listens for udev's events as a boot does, while others forge some.

argv[1]: where to tell what came of it. A network namespace of its own keeps all of it from the host's udev.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import struct
import sys

from pyinit.devices.udev import Devices
from pyinit.kernel.syscalls import MS, mount

NOBODY = 65534
NETLINK_KOBJECT_UEVENT = 15
FROM_KERNEL, FROM_UDEV = 1, 2
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_KEEPCAPS, CAP_NET_ADMIN = 8, 12
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def murmur(data: bytes) -> int:
    """MurmurHash2 with seed 0, by which udev's messages name their subsystem."""
    mix, mask = 0x5BD1E995, 0xFFFFFFFF
    result = len(data)
    for at in range(0, len(data) - 3, 4):
        word = int.from_bytes(data[at : at + 4], "little") * mix & mask
        result = result * mix & mask ^ ((word ^ word >> 24) * mix & mask)
    rest = data[len(data) & ~3 :]
    if rest:
        result = (result ^ int.from_bytes(rest, "little")) * mix & mask
    result = (result ^ result >> 13) * mix & mask
    return result ^ result >> 15


def properties(name: str) -> bytes:
    words = {
        "ACTION": "add",
        "DEVPATH": f"/devices/virtual/block/{name}",
        "SUBSYSTEM": "block",
        "DEVNAME": f"/dev/{name}",
        "DEVTYPE": "disk",
        "MAJOR": "7",
        "MINOR": "200",
        "SEQNUM": "1",
        "USEC_INITIALIZED": "1",
        "ID_FS_UUID": "11111111-1111-1111-1111-111111111111",
    }
    return b"".join(f"{key}={value}\0".encode() for key, value in words.items())


def as_udev(name: str) -> bytes:
    """As udevd sends it to its listeners (systemd, src/libsystemd/sd-device/device-monitor.c)."""
    words = properties(name)
    head = struct.pack(">8sI", b"libudev", 0xFEEDCAFE) + struct.pack("=III", 40, 40, len(words))
    return head + struct.pack(">IIII", murmur(b"block"), murmur(b"disk"), 0, 0) + words


def as_kernel(name: str) -> bytes:
    return f"add@/devices/virtual/block/{name}\0".encode() + properties(name)


def send(message: bytes, group: int, port: int = 0) -> str:
    """``sent``, or the name of the error."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as sender:
            sender.sendto(message, (port, group))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "sent"


def as_other(become: str, message: bytes, group: int) -> str:
    """Send from a child that has become somebody else."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if become == "namespace":
                call(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
            else:
                call(libc.prctl(PR_SET_KEEPCAPS, int(become == "capable"), 0, 0, 0))
                os.setuid(NOBODY)
            if become == "capable":
                head = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
                mask = 1 << CAP_NET_ADMIN
                call(libc.capset(head, struct.pack("=6I", mask, mask, 0, 0, 0, 0)))
            outcome = send(message, group)
        except OSError as error:
            outcome = f"cannot become {become}: {error}"
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    outcome = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return outcome


def main() -> None:
    directory = json.loads(sys.argv[1])
    mount(None, "/", None, MS.REC | MS.PRIVATE)
    mount("tmpfs", "/run", "tmpfs")
    # Without it libudev thinks that there is no udev, and its monitor stays silent for ever.
    os.mkdir("/run/udev")
    with open("/run/udev/control", "wb"):
        pass
    call(libc.unshare(CLONE_NEWNET))
    devices = Devices({"udev": "libudev.so.1", "c": "libc.so.6"})
    port = socket.socket(fileno=os.dup(devices.fileno())).getsockname()[0]

    outcomes = {
        "first": send(as_udev("first"), FROM_UDEV),
        "user": as_other("user", as_udev("user"), FROM_UDEV),
        "capable": as_other("capable", as_udev("capable"), FROM_UDEV),
        "namespace": as_other("namespace", as_udev("namespace"), FROM_UDEV),
        "unicast": send(as_udev("unicast"), 0, port),
        "kernel": send(as_kernel("kernel"), FROM_KERNEL),
        "long": send(as_udev("long")[:60], FROM_UDEV),
        "empty": send(as_udev("empty")[:40], FROM_UDEV),
        "offset": send(
            as_udev("offset").replace(struct.pack("=II", 40, 40), struct.pack("=II", 40, 1 << 31)), FROM_UDEV
        ),
        "last": send(as_udev("last"), FROM_UDEV),
    }
    seen: list[list[str]] = []
    poll = select.poll()
    poll.register(devices.fileno(), select.POLLIN)
    while not seen or seen[-1][1] != "last":
        poll.poll()
        seen += [[action, view.name, view.node] for action, view in devices.events()]
    with open(f"{directory}/facts.json", "w") as file:
        json.dump({"outcomes": outcomes, "seen": seen}, file)


if __name__ == "__main__":
    main()
