"""The layout every image has: directories, links of the merged /usr, device nodes, who it is."""

from __future__ import annotations

from . import trampoline
from .errors import BuildError
from .plan import Plan
from .sysroot import Sysroot

DIRECTORIES = {
    "/dev": 0o755,
    "/etc": 0o755,
    "/proc": 0o555,
    "/root": 0o700,
    "/run": 0o755,
    "/sys": 0o555,
    "/sysroot": 0o755,
    "/tmp": 0o1777,
    "/usr/bin": 0o755,
    "/usr/lib": 0o755,
    "/usr/sbin": 0o755,
    "/var": 0o755,
}

#: Nodes that must exist before devtmpfs is mounted: the kernel opens the console before it starts /init, and
#: the interpreter may read random numbers. Numbers from Documentation/admin-guide/devices.txt.
DEVICES = (
    ("/dev/console", 5, 1, 0o600, "the kernel opens it as standard input and output of /init"),
    ("/dev/kmsg", 1, 11, 0o644, "messages before devtmpfs is mounted"),
    ("/dev/null", 1, 3, 0o666, "standard input when there is no console"),
    ("/dev/random", 1, 8, 0o666, "random numbers before devtmpfs is mounted"),
    ("/dev/urandom", 1, 9, 0o666, "random numbers before devtmpfs is mounted"),
)


def collect(plan: Plan, python: str) -> None:
    """Add the layout; ``python`` is the interpreter that ``/init`` executes."""
    plan.source = "base"
    binary = plan.walker.object(python)
    if binary is None or binary.machine != "EM_X86_64":
        raise BuildError(f"{python} is for another machine than x86-64; /init can be made for that one only")
    for path, target in merged(plan.sysroot):
        plan.link(path, target, "merged directories, as in the target system")
    for path, mode in DIRECTORIES.items():
        if path not in plan.entries:
            plan.directory(path, "layout", mode=mode)
    for path, major, minor, mode, reason in DEVICES:
        plan.device(path, major, minor, mode, reason)
    plan.data("/init", trampoline.build(python), "the kernel starts it as process 1", mode=0o755)
    plan.data("/etc/initrd-release", release(plan), "tells udev and systemd's tools that this is an initrd")
    plan.link("/etc/os-release", "initrd-release", "for tools that ask which system this is")
    plan.link("/var/run", "../run", "old name of /run")


def merged(sysroot: Sysroot) -> list[tuple[str, str]]:
    """The links of directories that a system with a merged /usr has, and their targets."""
    result = []
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr/sbin", "/usr/lib64"):
        found = sysroot.resolve(path)
        if found is not None and found.links and found.links[0][0] == path:
            result.append((path, found.links[0][1]))
    return result


def release(plan: Plan) -> bytes:
    """The os-release(5) file of the image: that of the target, marked as an initrd."""
    wanted = ("NAME", "PRETTY_NAME", "ID", "ID_LIKE", "VERSION_ID", "VERSION_CODENAME")
    lines = [
        line
        for line in plan.sysroot.read_text("/etc/os-release").splitlines()
        if line.partition("=")[0] in wanted
    ]
    text = "\n".join([*lines, "VARIANT=initrd", "VARIANT_ID=initrd", ""])
    return text.encode("utf-8", "surrogateescape")
