"""The programs of an image: modprobe for the kernel, and what a person in the rescue shell needs."""

from __future__ import annotations

from pyinit.text import printable

from .access import FALLBACKS
from .errors import BuildError
from .plan import Plan

DIRECTORIES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")
SHELLS = ("/bin/sh", "/bin/bash", "/bin/dash")

#: What the rescue shell offers, as far as the target has it.
TOOLS = {
    "blkid": "file systems on block devices",
    "cat": "show files",
    "chmod": "change modes",
    "cp": "copy files",
    "dd": "copy blocks",
    "dmesg": "messages of the kernel",
    "grep": "search in files",
    "less": "read long output",
    "ln": "make links",
    "ls": "list files",
    "lsblk": "tree of block devices",
    "lsmod": "loaded modules",
    "mkdir": "make directories",
    "mknod": "make device nodes",
    "more": "read long output",
    "mount": "mount file systems",
    "mv": "rename files",
    "rm": "remove files",
    "rmmod": "unload modules",
    "sleep": "wait",
    "stty": "settings of the terminal",
    "sync": "write everything to the disks",
    "umount": "unmount file systems",
    "uname": "release of the kernel",
    "vi": "edit files",
}

#: What it offers besides where busybox has it anyway, so that it costs a link.
APPLETS = (
    *("awk", "basename", "clear", "cmp", "cut", "date", "df", "diff", "dirname", "du", "env", "find", "free"),
    *(
        "head",
        "hexdump",
        "ip",
        "losetup",
        "md5sum",
        "od",
        "ping",
        "readlink",
        "sed",
        "sha256sum",
        "sort",
        "stat",
    ),
    *("strings", "tail", "tar", "tee", "top", "touch", "tr", "tty", "uniq", "wc", "xargs"),
)

#: What the command of the rescue shell is under other names: the target's own would cost more bytes.
OWN = {
    "chroot": "work with the tools of the root on /sysroot",
    "clear": "empty the screen",
    "df": "room on file systems",
    "head": "the first lines",
    "ps": "list processes",
    "touch": "make empty files",
}

#: Words that people type without thinking; they are the command of the rescue shell, too.
ENDINGS = ("reboot", "poweroff", "halt")

#: Descriptions of the terminals that the rescue shell names in $TERM, and where systems keep them.
TERMINALS = ("l/linux", "v/vt220")
TERMINFO = ("/usr/lib/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/etc/terminfo")


#: Where the shell is when its own place is one that the kernel tries.
HIDDEN_SHELL = "/usr/lib/pyinit/sh"


def collect_modprobe(plan: Plan) -> None:
    """Add /sbin/modprobe, which the kernel itself starts: mounting, for example, may ask for a module."""
    plan.source = "modules"
    place = plan.sysroot.find("/sbin/modprobe", "/usr/sbin/modprobe", "/usr/bin/modprobe")
    if place is None:
        raise BuildError(
            f"/sbin/modprobe is missing in {printable(str(plan.sysroot.root))}",
            hint="Install the package kmod in the target system.",
        )
    plan.file(place, "the kernel starts it when it wants a module")
    if plan.canonical("/sbin/modprobe") not in plan.entries:
        plan.link("/sbin/modprobe", place, "where the kernel looks for it (proc_sys_kernel(5), modprobe)")


def collect_rescue(plan: Plan, python: str, policy: str) -> str:
    """Add a shell and the tools for it; return the path of the shell, empty when there is none.

    Behind a password it is nowhere where the kernel would find it without us: see ``access.FALLBACKS``.
    """
    if policy == "none":
        for path in SHELLS:
            plan.leave_out(path, "rescue none: there is no shell in the image")
        return ""
    plan.source = "rescue"
    sysroot = plan.sysroot
    # A "#!" line takes one argument; PYTHONPATH and PYTHONHOME are in the environment of the rescue shell.
    script = f"#!{python} -SsPB\nfrom pyinit.rescue.cli import main\n\nraise SystemExit(main())\n"
    plan.data("/usr/bin/pyinit", script.encode(), "the command of the rescue shell", mode=0o755)
    for name in ENDINGS:
        plan.link(f"/usr/bin/{name}", "/usr/bin/pyinit", "the command of the rescue shell", "/usr/bin/pyinit")
    for name in TERMINALS:
        if entry := sysroot.find(*(f"{directory}/{name}" for directory in TERMINFO)):
            plan.file(entry, "what the terminals of the rescue shell can do")
    busybox = sysroot.find(*(f"{directory}/busybox" for directory in DIRECTORIES))
    applets: frozenset[str] = frozenset()
    if busybox is not None:
        busybox = plan.file(busybox, "small tools for the rescue shell")
        content, _ = plan.walker.content(busybox)
        # The names of the applets are one table of zero-terminated strings in the program.
        applets = frozenset(
            name for name in (*TOOLS, *APPLETS, "ps", "sh") if b"\0" + name.encode() + b"\0" in content
        )
    shell = sysroot.find(*SHELLS)
    if shell is None and not (busybox is not None and "sh" in applets):
        plan.warn(f"no shell in {printable(str(sysroot.root))}: a failed boot can only be explained")
        return ""
    if shell is None:
        assert busybox is not None
        # Busybox does what its name says.
        shell = HIDDEN_SHELL if policy == "password" else "/bin/sh"
        plan.link(shell, busybox, "the rescue shell", busybox)
    elif policy == "password":
        plan.leave_out("/bin/sh", "rescue password: the kernel would start it when it cannot execute /init")
        shell = _hide(plan, shell)
    else:
        plan.file(shell, "the rescue shell")
    for name, reason in TOOLS.items():
        place = sysroot.find(*(f"{directory}/{name}" for directory in DIRECTORIES))
        if busybox is not None and name in applets:
            plan.link(f"/usr/bin/{name}", busybox, f"rescue shell: {reason}", busybox)
        elif place is not None:
            plan.file(place, f"rescue shell: {reason}")
        else:
            plan.leave_out(name, f"the rescue shell would have it ({reason}), the target system has not")
    pager = sysroot.find(*(f"{directory}/more" for directory in DIRECTORIES))
    if pager is not None and "/usr/bin/less" not in plan.entries:
        # A hand that types less wants a pager.
        plan.link("/usr/bin/less", "more", "rescue shell: the target system has no less")
    for name in (*APPLETS, "ps"):
        if busybox is not None and name in applets:
            plan.link(f"/usr/bin/{name}", busybox, "rescue shell: busybox has it", busybox)
    for name, reason in OWN.items():
        if f"/usr/bin/{name}" not in plan.entries:
            plan.link(f"/usr/bin/{name}", "/usr/bin/pyinit", f"rescue shell: {reason}", "/usr/bin/pyinit")
    return shell


def _hide(plan: Plan, shell: str) -> str:
    """Add the program behind ``shell`` without the names it is known by; return where it is."""
    found = plan.sysroot.resolve(shell)
    assert found is not None
    if found.path not in map(plan.canonical, FALLBACKS):
        return plan.file(found.path, "the rescue shell")
    content, _ = plan.walker.content(found.path)
    plan.foreign(HIDDEN_SHELL, content, "the rescue shell")
    return HIDDEN_SHELL
