"""Runs as PID 1 of new namespaces: builds an initramfs and a root of tmpfs, enters the first, and switches.

argv[1] is JSON: ``directory`` (an empty one for us), ``mode`` (``pivot``: / can be pivoted; ``move``: the
mount that / lies on is shared, and pivot_root refuses with EINVAL as it refuses an initramfs before Linux
7.0), ``scenario`` (a function below), ``socket`` (the descriptor of one, to send the directory / through).
What the scenario has to say goes to ``outcome.json``, what the new init sees to ``report/``.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from errno import EINVAL
from typing import Any

from pyinit import switch_root
from pyinit.errors import BootError
from pyinit.kernel import mountinfo, syscalls
from pyinit.kernel.syscalls import MNT_DETACH, MS, mount, pivot_root, umount2

# A shell as init, told what to do by its arguments, opens nothing of its own.
WITNESS = """
readlink /proc/1/cwd > /report/cwd
cd /report
umask > umask
find /proc/1/fd -type l -fprintf fds '%f %l\\n'
for name in status cmdline environ mountinfo; do cat /proc/1/$name > $name; done
# The old root may still be being emptied; every other command reaps what it can.
while set -- /proc/[0-9]*; [ $# -gt 1 ]; do /usr/bin/true; done
for file in /check/*/file; do [ -e $file ] && echo "$file $(cat $file)"; done > check
echo the witness speaks
echo complete > done
"""
ARGV = [b"/init", b"-c", WITNESS.encode(), b"first", b"two words", b"\xff"]
# Something simpler as init, because a shell has its own mind about signals.
COPY = [b"/init", b"/proc/self/status", b"/etc/done", b"/report"]
ENVIRON = [
    b"HOME=/",
    b"TERM=vt220",
    b"word=a=b",
    b"LD_PRELOAD=/x",
    b"PYTHONHOME=/y",
    b"byte=\xfe",
    b"novalue",
]
FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x40086602, 0x10


class Stage:
    def __init__(self, directory: str, mode: str, channel: int) -> None:
        self.directory = directory
        self.mode = mode
        self.channel = channel
        self.top = f"{directory}/top"
        self.old = self.top if mode == "pivot" else f"{self.top}/initramfs"
        self.new = f"{self.old}/sysroot"
        self.said: list[str] = []
        self.outcome = os.open(f"{directory}/outcome.json", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        self.method = ""

    def build(self) -> None:
        """The initramfs in ``old``, with the kernel's file systems or stand-ins, and a root in ``new``."""
        for name in ("top", "report"):
            os.mkdir(f"{self.directory}/{name}")
        write(f"{self.directory}/console", "")
        mount(None, "/", None, MS.REC | MS.PRIVATE)
        mount("outer", self.top, "tmpfs")
        if self.mode == "move":
            os.mkdir(self.old)
            mount("initramfs", self.old, "tmpfs")
        for name in ("etc", "sysroot", "usr/lib/deep/er", "dev", "proc", "sys", "run"):
            os.makedirs(f"{self.old}/{name}")
        for name in ("etc/initrd-release", ".pyinit-complete", "init", "usr/lib/deep/er/file"):
            write(f"{self.old}/{name}", "of the initramfs")
        os.symlink("/report", f"{self.old}/link-that-leads-out")
        for name in ("dev", "sys", "run"):
            mount(name, f"{self.old}/{name}", "tmpfs")
        mount("proc", f"{self.old}/proc", "proc")
        for name in ("dev/pts", "run/user"):
            os.mkdir(f"{self.old}/{name}")
            mount(name, f"{self.old}/{name}", "tmpfs")
            write(f"{self.old}/{name}/file", "still here")
        self.bind(f"{self.directory}/console", f"{self.old}/dev/console")
        self.bind("/dev/null", f"{self.old}/dev/null")
        mount("root", self.new, "tmpfs")
        for name in ("usr", "sbin", "etc", "report", "check", "dev", "proc"):
            os.mkdir(f"{self.new}/{name}")
        for name in ("bin", "lib", "lib64", "lib32"):
            if os.path.islink(f"/{name}"):
                os.symlink(f"usr/{name}", f"{self.new}/{name}")
        os.symlink("/usr/bin/dash", f"{self.new}/sbin/init")
        mount("/usr", f"{self.new}/usr", None, MS.BIND | MS.REC)
        self.bind(f"{self.directory}/report", f"{self.new}/report")

    def bind(self, source: str, target: str) -> None:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif not os.path.exists(target):
            write(target, "")
        mount(source, target, None, MS.BIND)

    def enter(self) -> None:
        """Leave the host behind; from here on / is the initramfs."""
        os.chdir(self.top)
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
        os.chdir("/")
        if self.mode == "move":
            mount(None, "/", None, MS.SHARED)
            os.chroot("/initramfs")
            os.chdir("/")
        with socket.socket(fileno=os.dup(self.channel)) as channel:
            root = os.open("/", os.O_RDONLY)
            socket.send_fds(channel, [b"/"], [root])
            os.close(root)
        self.top, self.old, self.new = "/nowhere", "", "/sysroot"

    def switch(self, init: switch_root.InitChoice | None = None, argv: Sequence[bytes] = ARGV) -> None:
        forbid_imports(self)
        if init is None:
            switch_root.check_root("/sysroot")
            init = switch_root.resolve_init("/sysroot", None)
        switch_root.switch(
            "/sysroot",
            init,
            switch_root.real_argv(init, argv),
            switch_root.real_environ(ENVIRON),
            before_exec=self.before_exec,
            log=self.said.append,
            warn=lambda text: self.said.append(f"warning: {text}"),
        )

    def before_exec(self, method: str) -> None:
        self.method = method
        self.tell(root=sorted(os.listdir("/")))

    def tell(self, **facts: Any) -> None:
        os.truncate(self.outcome, 0)
        facts = {"method": self.method, "said": self.said, **facts}
        os.pwrite(self.outcome, json.dumps(facts).encode(), 0)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def forbid_imports(stage: Stage) -> None:
    class Forbidden:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            stage.tell(imported=name)
            os._exit(1)

    sys.meta_path.insert(0, Forbidden)  # type: ignore[arg-type]


def table() -> list[list[str]]:
    return sorted([mount.target, mount.source] for mount in mountinfo.read())


# Scenarios. Each gets a stage that is built but not entered.


def good(stage: Stage, *init: Any) -> None:
    stage.enter()
    left_open = os.open("/etc/initrd-release", os.O_RDONLY)
    os.dup2(left_open, 77)  # Inheritable.
    os.chdir("/run")
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGRTMIN, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    stage.switch(*init)


def signals(stage: Stage) -> None:
    write(f"{stage.new}/etc/done", "")
    good(stage, switch_root.InitChoice("/usr/bin/cp", "", ()), COPY)


def extra_mounts(stage: Stage) -> None:
    mount("extra", stage.old + "/usr/lib/deep", "tmpfs")
    write(f"{stage.old}/usr/lib/deep/file", "extra tmpfs")
    os.mkdir(f"{stage.old}/usr/lib/deep/below")
    mount("below", stage.old + "/usr/lib/deep/below", "tmpfs")
    write(f"{stage.old}/usr/lib/deep/below/file", "tmpfs on a tmpfs")
    stage.bind(f"{stage.old}/usr/lib/deep", f"{stage.new}/check/tmpfs")
    stage.bind(f"{stage.old}/usr/lib/deep/below", f"{stage.new}/check/below")
    stage.bind(f"{stage.directory}/report", f"{stage.old}/host")
    write(f"{stage.directory}/report/precious", "of the host")
    os.makedirs(f"{stage.old}/modules/inner")
    write(f"{stage.old}/modules/file", "part of the initramfs")
    write(f"{stage.old}/modules/inner/file", "part of the initramfs")
    stage.bind(f"{stage.old}/modules", f"{stage.new}/check/part")
    stage.enter()
    stage.switch()


def overlay(stage: Stage) -> None:
    for name in ("lower", "upper", "work"):
        os.makedirs(f"{stage.old}/layers/{name}")
    write(f"{stage.old}/layers/lower/file", "lower")
    write(f"{stage.old}/layers/other", "no layer")
    stage.enter()
    os.mkdir("/sysroot/check/overlay")
    layers = "lowerdir=/layers/lower,upperdir=/layers/upper,workdir=/layers/work"
    mount("overlay", "/sysroot/check/overlay", "overlay", 0, layers)
    write("/sysroot/check/overlay/file", "upper")
    stage.switch()


def whole_initramfs_needed(stage: Stage) -> None:
    stage.bind(stage.old, f"{stage.new}/check/all")
    write(f"{stage.old}/file", "part of the initramfs")
    stage.enter()
    stage.switch()


def undeletable(stage: Stage) -> None:
    path = f"{stage.old}/usr/immutable"
    write(path, "")
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", FS_IMMUTABLE_FL))
    except OSError as error:
        stage.tell(skipped=f"a file cannot be made immutable here: {error.strerror}")
        return
    finally:
        os.close(fd)
    stage.enter()
    stage.switch()


def busy_directory(stage: Stage) -> None:
    """What the emptying does by itself when mounts are still in the tree."""
    mount("other", f"{stage.old}/usr/lib/deep", "tmpfs")
    write(f"{stage.old}/usr/lib/deep/file", "on another file system")
    stage.bind(f"{stage.old}/etc", f"{stage.old}/usr/bound")
    stage.bind(f"{stage.old}/init", f"{stage.old}/usr/file-bound")
    fd = os.open(f"{stage.old}/usr", os.O_RDONLY)
    failures = switch_root.empty_directory(fd, os.fstat(fd).st_dev)
    found = sorted(
        os.path.relpath(f"{path}/{name}", stage.old)
        for path, directories, files in os.walk(f"{stage.old}/usr")
        for name in directories + files
    )
    stage.tell(failures=failures, found=found)


def symlink_traps(stage: Stage) -> None:
    os.rmdir(f"{stage.new}/proc")
    os.rmdir(f"{stage.new}/dev")
    os.symlink("/", f"{stage.new}/proc")
    os.symlink("../../run", f"{stage.new}/dev")
    write(f"{stage.new}/run", "a file")
    stage.enter()
    expect_refusal(stage, lambda: stage.switch(switch_root.InitChoice("/sbin/init", "", ())))


def no_marker(stage: Stage) -> None:
    os.unlink(f"{stage.old}/etc/initrd-release")
    mount("etc", f"{stage.old}/etc", "tmpfs")
    write(f"{stage.old}/etc/initrd-release", "on another file system")
    stage.enter()
    expect_refusal(stage, stage.switch)


def not_mounted(stage: Stage) -> None:
    umount2(stage.new, MNT_DETACH)
    os.makedirs(f"{stage.new}/usr")
    stage.enter()
    expect_refusal(stage, lambda: stage.switch(switch_root.InitChoice("/sbin/init", "", ())))


def same_file_system(stage: Stage) -> None:
    umount2(stage.new, MNT_DETACH)
    os.makedirs(f"{stage.old}/elsewhere/usr")
    stage.bind(f"{stage.old}/elsewhere", stage.new)
    stage.enter()
    expect_refusal(stage, lambda: stage.switch(switch_root.InitChoice("/sbin/init", "", ())))


def refused_steps(stage: Stage) -> None:
    """The kernel says no to one mount after the other; each time everything is as it was before."""
    stage.enter()
    before = table()
    results = []
    for refused in range(6):
        calls = []

        def faulty(
            source: str | None,
            target: str,
            fstype: str | None = None,
            flags: int = 0,
            data: str | None = None,
            *,
            refused: int = refused,
            calls: list[str] = calls,
        ) -> None:
            calls.append(target)
            if len(calls) == refused + 1:
                raise OSError(EINVAL, os.strerror(EINVAL), target)
            syscalls.mount(source, target, fstype, flags, data)

        switch_root.mount = faulty
        try:
            stage.switch()
        except BootError as error:
            results.append([error.code, str(error), error.found, table() == before])
    stage.tell(results=results, table=before)


def read_only_root(stage: Stage) -> None:
    mount(None, stage.new, None, MS.REMOUNT | MS.BIND | MS.RDONLY)
    stage.enter()
    stage.switch()


def init_that_cannot_be_executed(stage: Stage) -> None:
    write(f"{stage.new}/etc/broken", "neither program nor script")
    os.chmod(f"{stage.new}/etc/broken", 0o755)
    stage.enter()
    stage.switch(switch_root.InitChoice("/etc/broken", "/etc/broken", ()))


def nothing_to_execute(stage: Stage) -> None:
    umount2(f"{stage.new}/usr", MNT_DETACH)
    stage.enter()
    try:
        stage.switch(switch_root.InitChoice("/sbin/init", "", ()))
    except switch_root.Stranded as error:
        stage.tell(code=error.code, tried=error.tried, found=error.found)


def last_word_fails(stage: Stage) -> None:
    def fail(method: str) -> None:
        stage.before_exec(method)
        raise ValueError("no record")

    stage.before_exec, fail = fail, stage.before_exec  # type: ignore[method-assign]
    stage.enter()
    stage.switch()


def no_console(stage: Stage) -> None:
    umount2(f"{stage.old}/dev/console", MNT_DETACH)
    os.unlink(f"{stage.old}/dev/console")
    stage.enter()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    stage.switch()


def expect_refusal(stage: Stage, act: Callable[[], None]) -> None:
    before = table()
    try:
        act()
    except BootError as error:
        stage.tell(
            code=error.code,
            cause=str(error),
            found=error.found,
            stranded=isinstance(error, switch_root.Stranded),
            unchanged=table() == before,
            files=sorted(os.listdir("/")),
        )


def main() -> None:
    argument = json.loads(sys.argv[1])
    stage = Stage(argument["directory"], argument["mode"], argument["socket"])
    stage.build()
    globals()[argument["scenario"]](stage)


if __name__ == "__main__":
    main()
