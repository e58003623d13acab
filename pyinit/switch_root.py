"""The point of no return: the new root becomes /, and the real init is executed.

Everything that can be known beforehand is checked while there is a way back: :func:`check_root` and
:func:`resolve_init` by the caller, the guards and the plan by :func:`switch`. Then, in this order,

1. mounts become private, because shared ones can neither be moved nor pivoted (mount_namespaces(7));
2. /dev, /proc, /sys and /run move into the new root with everything mounted on them. They are moved and not
   bound: to AppArmor the paths of a bind whose origin is gone are disconnected;
3. pivot_root(".", ".") and a lazy umount put the old root away with whatever was left on it. Before Linux
   7.0 the initramfs is the one mount that cannot be pivoted (EINVAL); then the new root is moved over / and
   entered by chroot (Documentation/filesystems/ramfs-rootfs-initramfs.rst), and what was left is unmounted.
   Either way the files of the initramfs are deleted to give their memory back: a detached mount lives as
   long as its last user. That may be a storage daemon, and on Linux 7.2 all of it was seen to stay with no
   process left that could hold it;
4. console, signals, umask and descriptors are put in order, and init is executed.

A failure in 1 to 3 is undone and raised as BootError. After that :class:`Stranded` is all that can be raised.

There is no sync(2): moving mounts writes nothing to any disk, and what was written before stays in the page
cache that the real system goes on with.

Nothing is imported from the moment the root changes, for the files are gone.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from errno import ENOENT, ENOSYS, EXDEV
from typing import NamedTuple, NoReturn

from pyinit.errors import BootError
from pyinit.kernel import mountinfo
from pyinit.kernel.executable import NotExecutable, Program, check_program
from pyinit.kernel.files import names
from pyinit.kernel.mountinfo import Mount
from pyinit.kernel.syscalls import (
    LIBRARY_SIGNALS,
    MNT_DETACH,
    MS,
    RAMFS_MAGIC,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    SIG_DFL,
    TMPFS_MAGIC,
    UMOUNT_NOFOLLOW,
    mount,
    openat2,
    pivot_root,
    set_disposition,
    statfs_type,
    umount2,
)
from pyinit.text import printable

# What the kernel itself tries without an initramfs, in its order (init/main.c).
CANDIDATES = ("/sbin/init", "/etc/init", "/bin/init", "/bin/sh")
# The first and what init= usually names: none of them is a shell.
INITS = (
    *CANDIDATES[:3],
    "/usr/sbin/init",
    "/usr/bin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/lib/sysvinit/init",
    "/usr/lib/sysvinit/init",
    "/sbin/openrc-init",
    "/usr/sbin/openrc-init",
    "/sbin/runit-init",
    "/usr/sbin/runit-init",
)
API = ("dev", "proc", "sys", "run")
MARKERS = ("/etc/initrd-release", "/.pyinit-complete")

_ROOT_NAMES = {"bin", "sbin", "usr", "etc", "lib", "nix", "gnu", "init"}
_LISTED = 16
_OVERLAY_LAYERS = ("lowerdir", "datadir", "upperdir", "workdir")

Say = Callable[[str], None]


class Stranded(BootError):
    """A failure after the root was changed: the initramfs and its rescue shell are gone."""


class InitChoice(NamedTuple):
    """The program that will become PID 1."""

    path: str
    """As it was asked for, seen from the new root; it becomes argv[0]."""
    real: str
    """The file behind it, once all symbolic links are followed inside the new root."""
    warnings: tuple[str, ...]
    others: tuple[str, ...] = CANDIDATES
    """What is executed when it cannot be after all."""


class Private(NamedTuple):
    """Take / and everything below out of propagation."""

    def describe(self) -> str:
        return "make all mounts private"


class Create(NamedTuple):
    """Make a mount point in the new root."""

    root: str
    name: str

    def describe(self) -> str:
        return f"create {self.root}/{self.name}"


class Move(NamedTuple):
    """Move one of the kernel's file systems into the new root."""

    root: str
    name: str
    carried: tuple[str, ...]
    """Mount points below, which come along."""

    def describe(self) -> str:
        carried = f" with {_listing(self.carried)}" if self.carried else ""
        return f"move /{self.name} to {self.root}/{self.name}{carried}"


class Enter(NamedTuple):
    """Make the new root the root."""

    root: str
    left: tuple[str, ...]
    """Mount points of the initramfs that are unmounted, what lies on others first."""

    def describe(self) -> str:
        left = f", leaving behind {_listing(self.left)}" if self.left else ""
        return f"make {self.root} the root{left}"


Step = Private | Create | Move | Enter


class Plan(NamedTuple):
    """What :func:`switch` does to the mounts."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    survivors: tuple[Mount, ...]
    """Every mount that is there afterwards."""


# Checks, while everything can still be repaired.


def check_root(root: str, requested: str | None = None) -> tuple[str, ...]:
    """Check that ``root`` looks like a root file system and has places for /dev, /proc, /sys and /run.

    ``requested`` is init=, whose presence is enough to believe an unusual root. Returns warnings; raises
    BootError E-ROOTFS.
    """
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise BootError("E-ROOTFS", f"{root} cannot be read: {error.strerror}") from error
    if not _ROOT_NAMES.intersection(names) and not _exists_inside(root, requested):
        contents = f"it holds {_listing(names)}" if names else "it is empty"
        raise BootError(
            "E-ROOTFS",
            "what was mounted does not look like a root file system",
            tried=(f"looked in {root} for {', '.join(sorted(_ROOT_NAMES))}",),
            found=(contents,),
            advice=(
                "Check that root= names the right device; /proc/mounts shows which one was mounted.",
                "If the system lives in a subvolume or needs other options, give them with rootflags=.",
            ),
        )
    _check_usr(root)
    states = survey_targets(root, _read_mounts())
    return tuple(
        f"the new root is read-only and has no /{name}; what init finds there will be missing"
        for name, state in states.items()
        if state == "absent"
    )


def resolve_init(root: str, requested: str | None, candidates: Sequence[str] = CANDIDATES) -> InitChoice:
    """Choose the real init, ``requested`` or the first of ``candidates``, and prove that it can be executed
    inside ``root``.

    An init= that cannot be executed is an error and not a reason to start something else: the person who
    wrote it wants to know. BootError E-INIT lists every candidate with the reason.
    """
    refused: list[str] = []
    reason: NotExecutable | None = None
    wanted = [requested] if requested else list(candidates)
    for path in wanted:
        try:
            program = _check_init(root, path)
        except NotExecutable as error:
            refused.append(f"{printable(path)} {error}")
            reason = reason or error
        else:
            passed = tuple(f"{why}; {printable(path)} is used instead" for why in refused)
            return InitChoice(path, program.path, passed + program.warnings, tuple(candidates))
    others = [path for path in candidates if path != requested and requested and _can_be_init(root, path)]
    if others:
        found = f"could be executed instead: {', '.join(others)}"
        advice: tuple[str, ...] = (
            f"Boot with init={others[0]}, or repair {printable(requested or '')} in {root}.",
        )
    else:
        found = f"{root} holds {_listing(names(root)) or 'nothing'}"
        advice = (
            f"Check in the rescue shell that {root} is the root of the system and that its /usr is mounted.",
            "Another program can be named with init=.",
        )
    cause = (
        "init= names a program that cannot be executed"
        if requested
        else "the new root has no init that can be executed"
    )
    raise BootError("E-INIT", cause, tried=tuple(refused), found=(found,), advice=advice) from reason


def check_guards(root: str, mounts: Iterable[Mount]) -> None:
    """Refuse to switch unless this is PID 1 of an initramfs and ``root`` is another file system.

    The switch may end with deleting all that / holds. So / must be what the kernel unpacks an initramfs into,
    bear the marks of this one, and not be the file system that is meant to stay.
    """
    objections = []
    failure: OSError | None = None
    if os.getpid() != 1:
        objections.append(f"this process is {os.getpid()} and not 1, so it cannot become init")
    try:
        old, new = os.stat("/"), os.stat(root)
        if statfs_type("/") not in (RAMFS_MAGIC, TMPFS_MAGIC):
            objections.append("/ is neither ramfs nor tmpfs, so it is no initramfs")
        for marker in MARKERS:
            if _device_of(marker) != old.st_dev:
                objections.append(f"{marker} is not on the file system of /")
        if mountinfo.topmost(mounts, root) is None:
            objections.append(f"nothing is mounted on {root}")
        if old.st_dev == new.st_dev:
            objections.append(f"{root} is part of the file system of /")
    except OSError as error:
        objections.append(f"{error.filename} cannot be examined: {error.strerror}")
        failure = error
    if objections:
        raise BootError(
            "E-SWITCH",
            f"it is not safe to switch to {root}",
            found=tuple(objections),
            advice=(f"Mount the root file system on {root} and leave the rescue shell to try again.",),
        ) from failure


def survey_targets(root: str, mounts: Iterable[Mount]) -> dict[str, str]:
    """What there is in ``root`` to move /dev, /proc, /sys and /run to.

    ``ready`` is a directory, ``create`` can be made one, ``absent`` cannot (read-only), ``mounted`` has a
    mount of its own. A symbolic link could lead a mount anywhere, over / itself too: BootError E-ROOTFS.
    """
    mounts = tuple(mounts)
    states: dict[str, str] = {}
    wrong: list[str] = []
    failure: OSError | None = None
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        writable = not os.fstatvfs(top).f_flag & os.ST_RDONLY
        for name in API:
            try:
                mode = os.stat(name, dir_fd=top, follow_symlinks=False).st_mode
            except FileNotFoundError:
                states[name] = "create" if writable else "absent"
                continue
            if stat.S_ISLNK(mode):
                target = printable(os.readlink(name, dir_fd=top))
                wrong.append(f"{root}/{name} is a symbolic link to {target}")
            elif not stat.S_ISDIR(mode):
                wrong.append(f"{root}/{name} is not a directory")
            else:
                here = mountinfo.topmost(mounts, f"{root}/{name}")
                states[name] = "mounted" if here is not None else "ready"
    except OSError as error:
        wrong.append(f"{root} cannot be examined: {error.strerror}")
        failure = error
    finally:
        os.close(top)
    if wrong:
        raise BootError(
            "E-ROOTFS",
            "/dev, /proc, /sys and /run of the new root must be directories",
            found=tuple(wrong),
            advice=(f"Replace them by empty directories: mount -o remount,rw {root}, rm, mkdir.",),
        ) from failure
    return states


def make_plan(mounts: Iterable[Mount], root: str, targets: Mapping[str, str]) -> Plan:
    """Decide what is moved, made and left behind, from the mount table and :func:`survey_targets`."""
    mounts = tuple(mounts)
    create: list[Step] = []
    move: list[Step] = []
    warnings: list[str] = []
    top = mountinfo.topmost(mounts, root)
    survivors = list(mountinfo.subtree(mounts, top)) if top is not None else []
    for name in API:
        source = mountinfo.topmost(mounts, f"/{name}")
        if source is None:
            continue
        if targets[name] == "absent":
            warnings.append(f"/{name} is left behind: the new root is read-only and has no /{name}")
        elif targets[name] == "mounted":
            warnings.append(f"/{name} is left behind: the new root has something mounted on its /{name}")
        else:
            if targets[name] == "create":
                create.append(Create(root, name))
            carried = mountinfo.subtree(mounts, source)
            move.append(Move(root, name, tuple(mount.target for mount in carried[1:])))
            survivors += carried
    kept = {mount.id for mount in survivors}
    parents = {mount.id: mount.parent for mount in mounts}
    left = sorted(
        (mount for mount in mounts if mount.id not in kept and mount.target != "/"),
        key=lambda mount: _depth(mount.id, parents),
        reverse=True,
    )
    enter = Enter(root, tuple(mount.target for mount in left))
    return Plan((Private(), *create, *move, enter), tuple(warnings), tuple(survivors))


# What the real init is given.


def real_argv(init: InitChoice, kernel_argv: Sequence[bytes]) -> list[bytes]:
    """The arguments the kernel would have given init: its path, and the words meant for it."""
    return [os.fsencode(init.path), *kernel_argv[1:]]


def real_environ(words: Iterable[bytes]) -> dict[bytes, bytes]:
    """The environment the kernel would have given init (init/main.c, envp_init), with ``words`` of its own.

    Words that steer an interpreter or the dynamic loader are left out: they were never meant for init, and
    LC_CTYPE is what Python itself sets (PEP 538).
    """
    environ = {b"HOME": b"/", b"TERM": b"linux"}
    for word in words:
        name, equals, value = word.partition(b"=")
        if equals and name and not name.startswith((b"PYTHON", b"LD_")) and name != b"LC_CTYPE":
            environ[name] = value
    return environ


# The switch itself.


def switch(
    root: str,
    init: InitChoice,
    argv: Sequence[bytes],
    environ: Mapping[bytes, bytes],
    *,
    console: str = "/dev/console",
    before_exec: Callable[[str], None] = lambda method: None,
    log: Say = lambda text: None,
    warn: Say = lambda text: None,
) -> NoReturn:
    """Make ``root`` the root and execute ``init``; never returns.

    ``before_exec`` is called in the new root with ``pivot_root`` or ``move``, right before the initramfs is
    given up; an exception of it is a warning. ``log`` gets every step, ``warn`` what went wrong without
    stopping the boot; both are used after the root changed, so they must not import anything either.

    BootError: nothing has changed. Stranded: the root has changed and nothing could be executed.
    """
    root = os.path.normpath(root)
    mounts = _read_mounts()
    check_guards(root, mounts)
    plan = make_plan(mounts, root, survey_targets(root, mounts))
    for step in plan.steps:
        log(step.describe())
    for warning in plan.warnings:
        warn(warning)
    device = os.stat("/").st_dev
    needed = needed_inodes(plan.survivors, device)
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        method = _change_root(plan, root, warn)
    except BaseException:
        os.close(old)
        raise
    try:
        if method == "move":
            _unmount_left(old, plan, warn)
        try:
            before_exec(method)
        except Exception as error:
            warn(f"the last word of the initramfs failed: {printable(f'{type(error).__name__}: {error}')}")
        _prepare_process(console, warn)
        if needed is None:
            warn("the initramfs stays in memory: it cannot be told which of its files are still needed")
        else:
            _empty_in_child(old, device, needed)
        _execute((init.path, *init.others), argv, environ, warn)
    except Stranded:
        raise
    except Exception as error:
        raise Stranded(
            "E-SWITCH", f"the switch broke off halfway: {printable(f'{type(error).__name__}: {error}')}"
        ) from error


def needed_inodes(survivors: Iterable[Mount], device: int) -> frozenset[int] | None:
    """Files and directories of the old root that mounts of the new one are made of.

    These are binds of parts of the initramfs, and layers of overlays. None when a layer cannot be found, so
    that nothing may be deleted at all.
    """
    needed = set()
    for survivor in survivors:
        paths = [survivor.target] if os.makedev(*survivor.device) == device else []
        if survivor.fstype == "overlay":
            for option in survivor.super_options:
                name, _, value = option.partition("=")
                if name.rstrip("+") in _OVERLAY_LAYERS:
                    paths += [path for path in value.split(":") if path]
        for path in paths:
            try:
                info = os.stat(path) if path.startswith("/") else None
            except OSError:
                info = None
            if info is None:
                return None
            if info.st_dev == device:
                needed.add(info.st_ino)
    return frozenset(needed)


def empty_directory(fd: int, device: int, needed: Collection[int] = ()) -> list[str]:
    """Delete everything below an open directory as far as its file system reaches; returns what failed.

    It goes by descriptors from directory to directory, follows no link, enters no mount, and leaves the
    inodes in ``needed`` with all they hold. A failure costs only the entry that it concerns.
    """
    failures: list[str] = []
    if os.fstat(fd).st_ino not in needed:
        _empty(fd, device, needed, "", failures)
    return failures


def _change_root(plan: Plan, root: str, warn: Say) -> str:
    """Do the plan, or undo what was done of it and raise BootError; returns the method."""
    moved: list[Move] = []
    step: Step = plan.steps[0]
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in plan.steps:
            if isinstance(step, Private):
                mount(None, "/", None, MS.REC | MS.PRIVATE)
            elif isinstance(step, Create):
                os.mkdir(step.name, 0o755, dir_fd=top)
            elif isinstance(step, Move):
                _move(step, top)
                moved.append(step)
            else:
                os.fchdir(top)
                return _enter(warn)
        raise AssertionError("a plan ends with entering the new root")
    except BaseException as error:
        undone = [_move_back(done) for done in reversed(moved)]
        os.chdir("/")
        if not isinstance(error, OSError):
            raise  # A defect, or no memory: but a rescue shell needs its /dev all the same.
        raise BootError(
            "E-SWITCH",
            f"the switch to {root} failed: {step.describe()}: {error.strerror}",
            tried=tuple(done.describe() for done in plan.steps[: plan.steps.index(step) + 1]),
            found=tuple(
                f"/{done.name} could not be moved back: {why}"
                for done, why in zip(reversed(moved), undone, strict=True)
                if why
            )
            or ("everything that had been moved is back in its place",),
            advice=("The mount table in /proc/self/mountinfo shows what is in the way.",),
        ) from error
    finally:
        os.close(top)


def _move(step: Move, top: int) -> None:
    # One component below a directory that is held open, and no link: this cannot end up anywhere else.
    target = os.open(step.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        os.fchdir(target)
    finally:
        os.close(target)
    mount(f"/{step.name}", ".", None, MS.MOVE)


def _move_back(step: Move) -> str:
    try:
        mount(f"{step.root}/{step.name}", f"/{step.name}", None, MS.MOVE)
    except OSError as error:
        return str(error.strerror)
    return ""


def _enter(warn: Say) -> str:
    """Make the working directory the root (pivot_root(2), "pivot_root(".", ".")")."""
    try:
        pivot_root(".", ".")
    except OSError:
        # EINVAL from an initramfs before Linux 7.0; whatever else it is, nothing has changed by it.
        mount(".", "/", None, MS.MOVE)
        os.chroot(".")
        method = "move"
    else:
        try:
            umount2(".", MNT_DETACH)
        except OSError as error:
            warn(f"the initramfs stays mounted beneath /: {error.strerror}")
        method = "pivot_root"
    os.chdir("/")
    return method


def _unmount_left(old: int, plan: Plan, warn: Say) -> None:
    """Unmount what was left in the old root, which is reachable only from a directory held open."""
    os.fchdir(old)
    for step in plan.steps:
        for target in step.left if isinstance(step, Enter) else ():
            try:
                umount2(target.lstrip("/"), MNT_DETACH | UMOUNT_NOFOLLOW)
            except OSError as error:
                warn(f"{printable(target)} of the initramfs stays mounted: {error.strerror}")
    os.chdir("/")


def _prepare_process(console: str, warn: Say) -> None:
    """Descriptors, signals and umask as the kernel gives them to init."""
    _open_console(console, warn)
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    # Ignored signals stay ignored across execve(2), and Python ignores SIGPIPE and SIGXFSZ.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    for internal in LIBRARY_SIGNALS:
        set_disposition(internal, SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    # Left open until exec succeeds, so that its failure can still be told.
    for fd in _open_descriptors():
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                pass


def _open_console(path: str, warn: Say) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # The kernel gives an init without a console no descriptors; what is open here is no worse.
        warn(f"{path} cannot be opened for init: {error.strerror}")
        return
    for standard in (0, 1, 2):
        if fd != standard:
            os.dup2(fd, standard)
    if fd > 2:
        os.close(fd)
    else:
        os.set_inheritable(fd, True)


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return list(range(3, 256))


def _execute(
    paths: Sequence[str], argv: Sequence[bytes], environ: Mapping[bytes, bytes], warn: Say
) -> NoReturn:
    failed: list[str] = []
    for candidate in dict.fromkeys(paths):
        if failed:
            warn(f"{failed[-1]}; trying {candidate}")
        try:
            os.execve(candidate, [os.fsencode(candidate), *argv[1:]], environ)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            failed.append(f"{printable(candidate)} cannot be executed: {why}")
    raise Stranded(
        "E-INIT",
        "no init could be executed in the new root, and the initramfs is gone",
        tried=tuple(failed),
        found=(f"/ holds {_listing(names('/'))}",),
        advice=("Boot again with rd.break=pre-pivot to look at the root before it is entered.",),
    )


def _empty_in_child(old: int, device: int, needed: Collection[int]) -> None:
    """Delete the initramfs while init already starts.

    A real init knows children that it did not start, because every orphan becomes one, and reaps them. This
    one is called ``pyinit-empty``, holds no terminal and no file but the old root, and ends by itself.
    """
    try:
        child = os.fork()
    except OSError:
        empty_directory(old, device, needed)
        return
    if child:
        os.close(old)
        return
    try:
        os.closerange(0, old)
        os.closerange(old + 1, old + 1024)
        try:
            _write("/proc/self/comm", b"pyinit-empty")
        except OSError:
            pass
        failures = empty_directory(old, device, needed)
        if failures:
            text = f"<4>pyinit: {len(failures)} entries of the initramfs stay in memory: {failures[0]}"
            _write("/dev/kmsg", text[:900].encode("ascii", "backslashreplace"))
    finally:
        os._exit(0)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _empty(fd: int, device: int, needed: Collection[int], path: str, failures: list[str]) -> bool:
    """Returns whether the directory is empty now and can be removed itself."""
    try:
        with os.scandir(fd) as iterator:
            entries = list(iterator)
    except OSError as error:
        failures.append(f"{path or '/'}: {error.strerror}")
        return False
    empty = True
    for entry in entries:
        name = f"{path}/{printable(entry.name)}"
        try:
            if entry.inode() in needed:
                empty = False
            elif not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=fd)
            elif _empty_below(fd, entry.name, device, needed, name, failures):
                os.rmdir(entry.name, dir_fd=fd)
            else:
                empty = False
        except (OSError, RecursionError) as error:
            failures.append(f"{name}: {error.strerror if isinstance(error, OSError) else 'too deep'}")
            empty = False
    return empty


def _empty_below(
    fd: int, name: str, device: int, needed: Collection[int], path: str, failures: list[str]
) -> bool:
    child = _open_directory(fd, name)
    try:
        if os.fstat(child).st_dev != device:
            raise OSError(EXDEV, "something else is mounted there")
        return _empty(child, device, needed, path, failures)
    finally:
        os.close(child)


def _open_directory(parent: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Stops at binds of the same file system too, which st_dev does not tell apart.
        return openat2(parent, name, flags, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno != ENOSYS:
            raise
    return os.open(name, flags, dir_fd=parent)


def _check_init(root: str, path: str) -> Program:
    if not path.startswith("/"):
        raise NotExecutable("is not an absolute path")
    program = check_program(root, path)
    if program.path.split("/")[1] in API:
        raise NotExecutable(f"lies in {printable(program.path)}, where another file system will be mounted")
    return program


def _can_be_init(root: str, path: str) -> bool:
    try:
        _check_init(root, path)
    except NotExecutable:
        return False
    return True


def _check_usr(root: str) -> None:
    """A /usr that is empty although the root needs it is one that was not mounted."""
    links = [
        f"/{name}"
        for name in ("bin", "sbin", "lib")
        if os.path.islink(f"{root}/{name}") and os.readlink(f"{root}/{name}").lstrip("/").startswith("usr/")
    ]
    if links and not names(f"{root}/usr"):
        raise BootError(
            "E-ROOTFS",
            "/usr of the new root is empty, and the system needs it to start",
            found=(f"{_listing(links)} lead into /usr", f"{root}/usr is empty"),
            advice=("If /usr is a file system of its own, name it with mount.usr=.",),
        )


def _exists_inside(root: str, path: str | None) -> bool:
    return bool(path) and os.path.lexists(f"{root}/{path}")


def _read_mounts() -> tuple[Mount, ...]:
    try:
        return mountinfo.read()
    except OSError as error:
        raise BootError("E-SWITCH", f"the mount table cannot be read: {error.strerror}") from error


def _device_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_dev
    except OSError as error:
        if error.errno != ENOENT:
            raise
        return None


def _depth(mount_id: int, parents: Mapping[int, int]) -> int:
    # The topmost mount names itself as its parent (mnt_parent of rootfs).
    seen: set[int] = set()
    while mount_id in parents and mount_id not in seen:
        seen.add(mount_id)
        mount_id = parents[mount_id]
    return len(seen)


def _listing(names: Collection[str]) -> str:
    shown = ", ".join(printable(name) for name in list(names)[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
