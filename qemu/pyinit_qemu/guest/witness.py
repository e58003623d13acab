"""The real init of a test root: reports what it was handed, then powers the machine off.

It is started by ``/usr/lib/witness/start`` as

    witness.py UPTIME SIGNALS  ENV... ""  ARGV...

because the interpreter changes signal dispositions when it starts, and reads its environment: a static
program takes environment and argument list, a shell takes the signal state, and both arrive here as
arguments. Files of /proc are sent as they are; ``pyinit_qemu.witness`` on the host reads them. Bytes are sent
as characters U+0000 to U+00FF. A step that fails is reported beside the others.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC, clock_gettime_ns

STARTED = clock_gettime_ns(CLOCK_MONOTONIC) // 1000

import binascii  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import termios  # noqa: E402
import time  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL = "/dev/ttyS1"
MOMENTS = ("Run /", "witness: executed;", "ounted", "Ending", "free space tree", "disk space caching")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def latin(text: str) -> str:
    return os.fsencode(text).decode("latin-1")


def arguments() -> dict[str, object]:
    words = [latin(word) for word in sys.argv[3:]]
    end = words.index("")
    return {"environ": words[:end], "argv": words[end + 1 :]}


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = latin(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # the one that listed the directory
    return found


def identity() -> dict[str, object]:
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "pgid": os.getpgid(0),
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "umask": mask,
        "cwd": latin(os.getcwd()),
    }


def root() -> dict[str, object]:
    device = os.stat("/").st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    facts: dict[str, object] = {
        "dev": number,
        "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "device": "",
        "links": [],
        "udev": "",
    }
    # btrfs has a device number of its own that no block device carries.
    for line in read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if fields[4] == "/":
            source = fields[fields.index("-") + 2]
            if source.startswith("/dev/"):
                block = os.stat(source).st_rdev
                number = f"{os.major(block)}:{os.minor(block)}"
    if os.path.exists(f"/sys/dev/block/{number}"):
        facts["device"] = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
        facts["links"] = [
            path for path in below("/dev/disk") if os.path.basename(os.path.realpath(path)) == facts["device"]
        ]
    if os.path.exists(f"/run/udev/data/b{number}"):
        facts["udev"] = read(f"/run/udev/data/b{number}")
    return facts


def processes() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            text = read(f"/proc/{name}/stat")
            command = read(f"/proc/{name}/cmdline")
        except OSError:
            continue  # it has ended meanwhile
        fields = text[text.rindex(")") + 2 :].split()
        if not int(fields[6]) & _KERNEL_THREAD:
            comm = text[text.index("(") + 1 : text.rindex(")")]
            found.append(
                {"pid": int(name), "ppid": int(fields[1]), "state": fields[0], "comm": comm, "argv": command}
            )
    return found


def leftovers() -> list[dict[str, object]]:
    """What still runs after children were reaped, as every init does, and had two seconds to end."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            break
    return processes()


def below(top: str) -> list[str]:
    found: list[str] = []
    for folder, names, files in os.walk(top):
        found += [latin(os.path.join(folder, name)) for name in names + files]
    return sorted(found)


def dev() -> list[str]:
    plain = ("/dev/char", "/dev/block", "/dev/tty", "/dev/vcs", "/dev/bus", "/dev/input")
    return [path for path in below("/dev") if not path.startswith(plain)]


def kernel_log() -> dict[str, object]:
    """The last lines, each ``priority,sequence,microseconds,flags;text``, when /init was executed, and the
    lines that say when what was reached (``pyinit_qemu.moments``); all lines when initcalls are told."""
    lines: list[str] = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                lines.append(os.read(fd, 8192).decode("latin-1").partition("\n")[0])
            except BrokenPipeError:
                continue  # the oldest record was overwritten; the next read goes on behind it
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    executed = [line for line in lines if line.partition(";")[2].startswith("Run /init as init")]
    told = [line for line in lines if any(word in line for word in MOMENTS)]
    return {
        "run_init": int(executed[0].split(",")[2]) if executed else None,
        "tail": lines[-80:],
        "moments": told[:80],
        "all": lines if "initcall_debug" in read("/proc/cmdline").split() else [],
    }


def trace() -> str:
    """Who had the CPU since PID 1 asked the kernel to say so (``guest/profiled.py``)."""
    tracing = "/sys/kernel/tracing"
    if not os.path.exists(f"{tracing}/trace"):
        return ""
    with open(f"{tracing}/tracing_on", "w") as file:
        file.write("0")
    return read(f"{tracing}/trace")


def boot_record() -> object:
    path = "/run/pyinit/boot.json"
    return json.loads(read(path)) if os.path.exists(path) else None


STEPS: dict[str, Callable[[], object]] = {
    "arguments": arguments,
    "fds": descriptors,
    "identity": identity,
    "stat": lambda: read("/proc/self/stat"),
    "limits": lambda: read("/proc/self/limits"),
    "cmdline": lambda: read("/proc/cmdline"),
    "mountinfo": lambda: read("/proc/self/mountinfo"),
    "processes": processes,
    "leftovers": leftovers,
    "meminfo": lambda: read("/proc/meminfo"),
    "tainted": lambda: int(read("/proc/sys/kernel/tainted")),
    "release": lambda: os.uname().release,
    "root": root,
    "run": lambda: below("/run"),
    "dev": dev,
    "boot": boot_record,
    "trace": trace,
    "kmsg": kernel_log,
}


def testify() -> dict[str, object]:
    facts: dict[str, object] = {"started": STARTED, "uptime": sys.argv[1], "signals": sys.argv[2]}
    errors: dict[str, str] = {}
    for name, step in STEPS.items():
        try:
            facts[name] = step()
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return {"kind": "witness", **facts, "errors": errors}


def send(frames: list[dict[str, object]]) -> None:
    fd = os.open(CHANNEL, os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(fd)
    attributes[1] &= ~termios.OPOST
    attributes[4] = attributes[5] = termios.B115200
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    for frame in frames:
        body = json.dumps(frame, separators=(",", ":")).encode("ascii")
        data = b"%d %08x %s\n" % (len(body), binascii.crc32(body), body)
        while data:
            data = data[os.write(fd, data) :]
    termios.tcdrain(fd)
    os.close(fd)


def main() -> None:
    report = testify()
    try:
        send([report, {"kind": "done"}])
    except Exception as error:
        print(f"witness: nothing sent on {CHANNEL}: {type(error).__name__}: {error}")
    print(f"witness: real init is pid {os.getpid()}, {STARTED / 1e6:.2f} s after the kernel's start")
    print(f"witness: root {report.get('root')}")
    print(f"witness: not read: {report['errors'] or 'nothing'}", flush=True)


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("this powers the machine off: it is only for process 1 of a virtual machine")
    try:
        main()
    finally:
        os.sync()
        with open("/proc/sysrq-trigger", "w") as trigger:
            trigger.write("o")
        while True:
            time.sleep(1000)
