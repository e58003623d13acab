"""A boot, from the first line of PID 1 to the real init: read it from top to bottom as the story of one."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Collection
from typing import NoReturn

from pyinit import VERSION, switch_root
from pyinit.config import devspec, sealed
from pyinit.config.cmdline import parse as parse_command_line
from pyinit.config.options import BootConfig, boot_config
from pyinit.devices import udev
from pyinit.devices.udev import Devices, UdevDaemon
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import Waiter, Want, describe
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.filesystems import mount_api_filesystems
from pyinit.kernel.leftovers import end_leftovers
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children
from pyinit.kernel.syscalls import MNT_DETACH, REBOOT_CAD_OFF, REBOOT_CAD_ON, reboot, umount2
from pyinit.record import PATH as RECORD_PATH
from pyinit.record import Record, now
from pyinit.report import Reporter
from pyinit.rescue.explain import FAILURE_PATH, internal_error, render
from pyinit.rescue.shell import OVERRIDES, Policy, end_machine
from pyinit.root.mount import SYSROOT, mount_root, root_mount
from pyinit.text import printable

BLACKLIST_PATH = "/run/modprobe.d/pyinit.conf"
TIMELINE_PATH = "/run/pyinit/timeline.py"
LEFTOVER_TIMEOUT = 5.0
LOOK_AROUND = 3.0
# A shell that ends in less time (microseconds) so often in a row reads from a console that is not there.
IDLE_SHELL = 500_000
MAX_IDLE_SHELLS = 3


class Boot:
    """The state of one boot, and its stages."""

    def __init__(self, kernel_environ: list[bytes], kernel_argv: list[bytes]) -> None:
        self._kernel_environ = kernel_environ
        self._kernel_argv = kernel_argv
        self.record = Record(VERSION, os.uname().release)
        self.console = Console(self.record)
        self.children = Children(self.record)
        self.report: Reporter | None = None
        self.sealed: sealed.SealedConfig | None = None
        self._sources: tuple[bytes, ...] = ()
        self.config: BootConfig = boot_config()
        self.modules = Modules(sealed.EMPTY_INDEX, self.console)
        self.daemon: UdevDaemon | None = None
        self.waiter: Waiter | None = None
        self.spec: devspec.DeviceSpec | None = None
        self.root: DeviceView | None = None
        self._mounted_here = False
        self._breaks_done: set[str] = set()
        self._hooks_done: set[tuple[str, str]] = set()
        self._idle_shells = 0
        self.init: switch_root.InitChoice | None = None

    def run(self) -> NoReturn:
        """Go through the stages; never returns, never raises."""
        self._first_of_all()
        stages: tuple[tuple[str, Callable[[], None]], ...] = (
            ("cmdline", self.read_command_line),
            ("pre-udev", self.start_udev),
            ("pre-trigger", self.trigger),
            ("initqueue", self.wait_for_root),
            ("pre-mount", self.before_mount),
            ("mount", self.mount),
            ("pre-pivot", self.check_root),
            ("cleanup", self.clean_up),
            ("switch-root", self.switch),
        )
        position = 0
        while True:  # The last stage does not return when it succeeds.
            name, stage = stages[position]
            # A person who changed what was asked for starts the story again; what is done already stays.
            if self._go_through(name, stage):
                position += 1
            else:
                position = 0
                self._hooks_done.clear()

    # The stages.

    def read_command_line(self) -> None:
        """What was asked for: the sealed configuration, the command line, what the rescue shell set."""
        if not os.path.exists(sealed.SENTINEL_PATH):
            raise BootError(
                "E-IMAGE",
                "the initramfs is not complete: its last part is missing",
                tried=(f"looked for {sealed.SENTINEL_PATH}, the last entry of every image",),
                advice=(
                    "Build the image again and see that the disk it is written to is not full.",
                    "The kernel's log says what it thought of the image: dmesg | grep -i initramfs",
                ),
            )
        image, config = self._look_at_command_line()
        self.console.verbose = config.debug
        self.console.informative = config.info or config.debug
        release = self.record.data["kernel"]
        if self.report is None:
            self.report = Reporter(config.report)
            self.report.send("hello", {"pid": os.getpid(), "version": VERSION, "kernel": release})
        for warning in config.warnings:
            self.console.warning(warning)
        index = sealed.parse_modules(_read(sealed.MODULES_PATH))
        if image.kernel and image.kernel != release:
            index = sealed.EMPTY_INDEX
            self.console.warning(
                f"this image was built for Linux {printable(image.kernel)}, not {printable(release)}: "
                "its modules cannot be loaded"
            )
        self.modules = Modules(
            index,
            self.console,
            [word for line in self._sources for word in parse_command_line(line).words],
            config.drivers_never,
        )
        self.spec = devspec.parse_spec(config.root) if config.root else None

    def start_udev(self) -> None:
        """udevd is started, and the drivers that are known to be on the way to the root are loaded."""
        if self.daemon is None:
            assert self.sealed is not None
            self.modules.create_static_nodes()
            _write_blacklist(self.config.drivers_never)
            daemon = UdevDaemon(self.sealed.udevd, self.children, self.console)
            daemon.start()
            self.daemon, self.waiter = daemon, None
        self.modules.load_first()
        self.modules.load_all(self.config.drivers_first)
        self.modules.load_all(self.modules.index.preload)
        self.modules.load_for_devices()

    def trigger(self) -> None:
        """The monitor is opened, and the devices that udevd has not seen are announced to it."""
        assert self.daemon is not None and self.sealed is not None
        self.daemon.wait_ready()
        if self.waiter is None:
            devices = Devices(self.sealed.libraries)
            self.waiter = Waiter(devices, self.daemon, self.children, self.console)
        # What appeared before udevd listened has no driver from it: a disk behind a controller, say.
        self.modules.load_for_devices()
        udev.trigger_devices()

    def wait_for_root(self) -> None:
        """The root device is used the moment udevd has processed it."""
        if _is_mounted(SYSROOT):
            return
        assert self.waiter is not None
        self.modules.load_all(self.config.drivers_late)
        spec = self.spec
        if spec is None:
            want = Want("root", "any block device, to name them", lambda known: [], LOOK_AROUND)
        else:
            name = devspec.describe(spec)
            want = Want("root", name, lambda known: devspec.resolve(spec, known), self.config.timeout)
        try:
            self.root = self.waiter.wait(want)
        except BootError as error:
            if error.code != "E-DEV":
                raise
            raise self._explain_missing(error.cause) from None
        self.console.info(f"root is {describe(self.root)}")

    def before_mount(self) -> None:
        """The driver of the root's file system, before the kernel has to ask modprobe for it."""
        if self.root is not None:
            self.modules.load_for_filesystem(self.root.properties.get("ID_FS_TYPE", ""))

    def mount(self) -> None:
        """The root file system is mounted, unless a person did so in the rescue shell."""
        if _is_mounted(SYSROOT):
            return
        if self.root is None:
            self.wait_for_root()
        assert self.root is not None
        found, config = self.root.properties.get("ID_FS_TYPE", ""), self.config
        self._refuse_container(self.root)
        spec = root_mount(self.root.node, found, config.rootflags, not config.read_only)
        mount_root(spec, config.rootfstype, self.modules, self.console)
        self._mounted_here = True

    def check_root(self) -> None:
        """What was mounted is a root file system with an init that can be executed."""
        requested = self.config.init or None
        warnings = switch_root.check_root(SYSROOT, requested)
        self.init = switch_root.resolve_init(SYSROOT, requested)
        for warning in (*warnings, *self.init.warnings):
            self.console.warning(warning)

    def clean_up(self) -> None:
        """udevd and whatever else was started here ends."""
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None
        _write_blacklist(())
        killed = end_leftovers(LEFTOVER_TIMEOUT)
        self.record.data["handover"] = {
            "at": 0,
            "init": "",
            "method": "",
            "killed": [left._asdict() for left in killed],
        }
        for left in killed:
            self.console.warning(f"process {left.pid} ({left.command}) was still there: {left.outcome}")
        udev.clean_database()

    def switch(self) -> None:
        """The point of no return."""
        assert self.init is not None
        timeline = _read_if_there(f"{os.path.dirname(__file__)}/record.py")
        handover = self.record.data["handover"]
        handover["init"] = printable(self.init.path)
        self.console.info(f"switching to {handover['init']}")
        stage = self.record.data["stages"][-1]

        def before_exec(method: str) -> None:
            reboot(REBOOT_CAD_ON)
            self.console.close()
            stage["end"] = handover["at"] = now()
            stage["outcome"] = "done"
            handover["method"] = method
            _write(TIMELINE_PATH, timeline)
            _write(RECORD_PATH, self.record.encode())
            if self.report:
                self.report.send("record", {"record": self.record.data})

        switch_root.switch(
            SYSROOT,
            self.init,
            [*switch_root.real_argv(self.init, self._kernel_argv), *self._arguments_set_here()],
            switch_root.real_environ(self._kernel_environ),
            before_exec=before_exec,
            log=self.console.debug,
            warn=self.console.warning,
        )

    # What holds the stages together.

    def _first_of_all(self) -> None:
        gc.disable()  # A boot makes little garbage, and PID 1 is soon another program.
        while True:
            try:
                try:
                    # Before anything is mounted: what is sealed decides what happens when a mount fails.
                    self._read_sealed()
                finally:
                    mount_api_filesystems(self.console.warning)
                break
            except BaseException as exception:
                # What the kernel's own command line says of failures, when nothing else can be known.
                self.config = boot_config(_read_if_there("/proc/cmdline"))
                self._fail("start", exception)
        self.console.open()
        self.console.open_log()
        self.children.watch()
        # Ctrl-Alt-Del sends SIGINT to PID 1 instead of resetting the machine with unwritten data
        # (reboot(2), LINUX_REBOOT_CMD_CAD_OFF).
        reboot(REBOOT_CAD_OFF)
        signal.signal(signal.SIGINT, lambda number, frame: end_machine("reboot"))
        # What a break point before the first stage needs to be known.
        self._look_at_command_line()

    def _read_sealed(self) -> sealed.SealedConfig:
        if self.sealed is None:
            self.sealed = sealed.parse_config(_read(sealed.CONFIG_PATH))
        return self.sealed

    def _look_at_command_line(self) -> tuple[sealed.SealedConfig, BootConfig]:
        image = self._read_sealed()
        sources = self._command_lines(image)
        if sources != self._sources:
            self._sources = sources
            lines = (printable(line.strip()) for line in sources)
            self.record.data["cmdline"] = " ".join(filter(None, lines))
            self.config = boot_config(*sources)
        return image, self.config

    def _command_lines(self, image: sealed.SealedConfig) -> tuple[bytes, ...]:
        """Those that count, later ones more: sealed, the kernel's, what was set in the rescue shell."""
        return (
            image.cmdline.encode("utf-8", "surrogateescape"),
            _read_if_there("/proc/cmdline"),
            *_read_if_there(OVERRIDES).splitlines(),
        )

    def _arguments_set_here(self) -> list[bytes]:
        """What stands behind `--` in the words that were set in the rescue shell: arguments for init."""
        lines = _read_if_there(OVERRIDES).splitlines()
        return [os.fsencode(word) for word in boot_config(*lines).init_args] if lines else []

    def _go_through(self, name: str, stage: Callable[[], None]) -> bool:
        """Run a stage until it succeeds; False when the boot must start again from the first one.

        Every failure is explained and followed by the rescue policy.
        """
        while True:
            entry = None
            try:
                if name in self.config.breaks and name not in self._breaks_done:
                    self._breaks_done.add(name)
                    self._break(name)
                    if self._must_start_again():
                        return False
                entry = self.record.add("stages", name=name, start=now(), end=now(), outcome="running")
                if name != "cmdline":
                    self._call_hooks(name)
                stage()
                if name == "cmdline":
                    self._call_hooks(name)
            except BaseException as exception:
                if entry:
                    code = exception.code if isinstance(exception, BootError) else "E-INTERNAL"
                    entry.update(end=now(), outcome=code)
                self._fail(name, exception)
                if self._must_start_again():
                    return False
                continue
            entry.update(end=now(), outcome="done")
            return True

    def _call_hooks(self, stage: str) -> None:
        """The hooks that were built into the image for this stage."""
        function = stage.replace("-", "_")
        names = self.sealed.hooks.get(function, ()) if self.sealed else ()
        if not names:
            return
        from pyinit import hooks

        words = parse_command_line(b" ".join(line.strip() for line in self._sources))
        facts = hooks.Facts(
            self.config,
            words,
            tuple(self.waiter.known.values()) if self.waiter else (),
            self.root,
            SYSROOT if _is_mounted(SYSROOT) else "",
        )
        hooks.call(function, names, self._hooks_done, facts, self.children, self.console)

    def _break(self, name: str) -> None:
        """Open the shell that rd.break asks for, if one is allowed."""
        policy = self._policy()
        if not policy.open:
            self.console.warning(f"rd.break={name} is ignored: no shell is allowed here")
            return
        self._write_record()
        _remove(FAILURE_PATH)
        self.console.notice(f"stopped before {name}, as rd.break asks")
        policy.run_shell(name, self.children, self.console)

    def _must_start_again(self) -> bool:
        """After a person was at work: whether what they changed has to be gone through from the beginning."""
        self.modules.forget_failures()
        mounted = _is_mounted(SYSROOT)
        changed = self.sealed is not None and self._command_lines(self.sealed) != self._sources
        if changed and mounted and self._mounted_here:
            # Lazily: somebody may still look at it.
            try:
                umount2(SYSROOT, MNT_DETACH)
            except OSError as error:
                self.console.warning(f"{SYSROOT} stays mounted: {error.strerror}")
            mounted = _is_mounted(SYSROOT)
        if not mounted:
            # The device may have another name by now.
            self.root = None
            self._mounted_here = False
        return changed or (self.init is not None and not mounted)

    def _fail(self, stage: str, exception: BaseException) -> None:
        """Explain a failure, keep it for a report, then let the policy decide; returns to try again."""
        try:
            error = exception if isinstance(exception, BootError) else internal_error(exception)
            lines = render(error, stage)
            for line in lines:
                self.console.error(line)
            self._write_record()
            _write(FAILURE_PATH, "".join(f"{line}\n" for line in lines).encode("ascii", "backslashreplace"))
            if self.report:
                self.report.send("failure", {"code": error.code, "stage": stage, "lines": lines})
            if not isinstance(exception, switch_root.Stranded):
                try:
                    self._write_report(lines)
                except OSError as full:
                    self.console.warning(f"the report cannot be written: {full.strerror}")
        except BaseException as second:
            self.console.write(f"pyinit: E-INTERNAL {type(second).__name__} while explaining a failure\n")
        policy = self._policy()
        if isinstance(exception, switch_root.Stranded):
            policy.give_up("the rescue shell went with the initramfs", self.console)
        if not policy.open:
            policy.give_up("no rescue shell is allowed here", self.console)
        begin = now()
        if not policy.run_shell(stage, self.children, self.console):
            policy.give_up("no rescue shell can be started", self.console)
        self._idle_shells = self._idle_shells + 1 if now() - begin < IDLE_SHELL else 0
        if self._idle_shells == MAX_IDLE_SHELLS:
            policy.give_up("nobody answers: the rescue shell ends at once", self.console)

    def _policy(self) -> Policy:
        config, image = self.config, self.sealed
        return Policy(
            image.rescue if image else "none",
            config.shell,
            image.shell if image else "",
            config.ctty,
            config.emergency,
            config.panic,
        )

    def _refuse_container(self, root: DeviceView) -> None:
        usage, kind = (root.properties.get(name, "") for name in ("ID_FS_USAGE", "ID_FS_TYPE"))
        if usage in ("raid", "crypto") and not self.config.rootfstype:
            raise BootError(
                "E-MOUNT",
                f"{printable(root.node)} is not a file system but a container ({printable(kind)})",
                found=(describe(root),),
                advice=("Open it by hand and mount the root on /sysroot, or set another root=.",),
            )

    def _write_record(self) -> None:
        _write(RECORD_PATH, self.record.encode())

    def _write_report(self, lines: list[str]) -> None:
        import json

        from pyinit.rescue.report import compose, write_report

        known = self.waiter.known.values() if self.waiter else ()
        write_report(compose(lines, json.loads(self.record.encode()), known, self.sealed))

    def _explain_missing(self, cause: str) -> BootError:
        from pyinit.rescue.missing import missing_device, no_root_given

        assert self.waiter is not None
        known = list(self.waiter.known.values())
        if self.spec is None:
            return no_root_given(self.record.data["cmdline"], known)
        return missing_device(cause, self.spec, known, self.modules, self.record.data["events"]["read"])


def _is_mounted(path: str) -> bool:
    try:
        return os.stat(path).st_dev != os.stat("/").st_dev
    except OSError:
        return False


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BootError(
            "E-IMAGE",
            f"{path} cannot be read: {error.strerror}",
            advice=("Build the image again: pyinit-image build -o IMAGE",),
        ) from error


def _read_if_there(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _write(path: str, data: bytes) -> None:
    """Write a file for root's later eyes; a full /run does not stop a boot."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
    except OSError:
        pass


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _write_blacklist(names: Collection[str]) -> None:
    """Tell udevd's module loading, which reads modprobe.d(5), what is not to be loaded in the initramfs."""
    try:
        if names:
            os.makedirs(os.path.dirname(BLACKLIST_PATH), 0o755, exist_ok=True)
            _write(BLACKLIST_PATH, "".join(f"blacklist {name}\n" for name in sorted(names)).encode())
        elif os.path.exists(BLACKLIST_PATH):
            os.unlink(BLACKLIST_PATH)
    except OSError:
        pass
