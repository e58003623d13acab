"""A boot, from the first line of PID 1 to the real init: read it from top to bottom as the story of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NoReturn

from pyinit import VERSION, switch_root
from pyinit.config import devspec, sealed
from pyinit.config.cmdline import OVERRIDES
from pyinit.config.cmdline import parse as parse_command_line
from pyinit.config.fstab import parse as parse_fstab
from pyinit.config.options import boot_config
from pyinit.context import Context, read
from pyinit.devices import udev
from pyinit.devices.udev import Devices, UdevDaemon
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import ShellWanted, Waiter, Want, describe
from pyinit.errors import BootError
from pyinit.kernel import memory, mountinfo
from pyinit.kernel.console import LOG_PATH
from pyinit.kernel.ending import end_machine
from pyinit.kernel.files import is_mounted, link_if_possible, read_if_there, write_if_possible
from pyinit.kernel.filesystems import mount_api_filesystems, read_only_data
from pyinit.kernel.leftovers import end_leftovers
from pyinit.kernel.modules import Modules
from pyinit.kernel.syscalls import MNT_DETACH, MS, REBOOT_CAD_OFF, REBOOT_CAD_ON, mount, reboot
from pyinit.record import now
from pyinit.report import Reporter
from pyinit.rescue.guard import Guard
from pyinit.rescue.shell import loosening
from pyinit.root import belongs, fsck
from pyinit.root.mount import (
    BACKING,
    CONTENT,
    LOWER,
    MEDIUM,
    SYSROOT,
    MountSpec,
    mount_filesystem,
    mount_one,
    parse_options,
    root_mount,
    unmount_root,
)
from pyinit.storage import assemblers
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.config.image import ImageFile
    from pyinit.config.overlay import Overlay
    from pyinit.root.discover import Discovery

BLACKLIST_PATH = "/run/modprobe.d/pyinit.conf"
# Where people of dracut look for what rd.debug says.
DEBUG_LOG_PATH = "/run/initramfs/init.log"
TIMELINE_PATH = "/run/pyinit/timeline.py"
LEFTOVER_TIMEOUT = 5.0
LOOK_AROUND = 3.0
# Seconds that programs have to end before the kernel stops everything to resume.
SETTLE_TIMEOUT = 10.0
# Values of root= that leave it to us to find the root, as to systemd-gpt-auto-generator(8).
DISCOVERED = ("gpt-auto", "gpt-auto-force")
# What the boot can do without (nofail) gets so long to appear.
OPTIONAL_TIMEOUT = 5.0


class Boot(Context):
    """The stages of one boot, over its state."""

    def __init__(
        self, kernel_environ: list[bytes], kernel_argv: list[bytes], started: int | None = None
    ) -> None:
        super().__init__(kernel_environ, kernel_argv, started)
        self.guard = Guard(self)
        self.discovery: Discovery | None = None
        """How the root was found that root= does not name."""
        self._breaks_done: set[str] = set()
        self._hooks_done: set[tuple[str, str]] = set()

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
        memory.check()
        if not os.path.exists(sealed.SENTINEL_PATH):
            memory.check_unpacked()
            raise BootError(
                "E-IMAGE",
                "the initramfs is not complete: its last part is missing",
                tried=(f"looked for {sealed.SENTINEL_PATH}, the last entry of every image",),
                advice=(
                    "Build the image again and see that the disk it is written to is not full.",
                    "The kernel's log says what it thought of the image: dmesg | grep -i initramfs",
                ),
            )
        image, config = self.look_at_command_line()
        self.console.verbose, self.console.quiet = config.debug, config.quiet
        self.console.informative = config.info or (config.debug and not config.quiet)
        if config.debug:
            link_if_possible(LOG_PATH, DEBUG_LOG_PATH)
        release = self.record.data["kernel"]
        if self.report is None:
            self.report = Reporter(config.report)
            self.report.send("hello", {"pid": os.getpid(), "version": VERSION, "kernel": release})
        for warning in (*config.warnings, *loosening(image.rescue, config.rescue)):
            self.console.warning(warning)
        index = sealed.parse_modules(read(sealed.MODULES_PATH))
        if image.kernel and image.kernel != release:
            index = sealed.EMPTY_INDEX
            self.console.warning(
                f"this image was built for Linux {printable(image.kernel)}, not {printable(release)}: "
                "its modules cannot be loaded"
            )
        self.modules = Modules(
            index,
            self.console,
            [word for line in self.sources for word in parse_command_line(line).words],
            config.drivers_never,
            patience=self.patience,
        )
        self.patience.limit = self.drivers.limit = config.timeout
        root = "" if config.root in DISCOVERED else config.root
        if config.verity and not root:
            from pyinit.config.verity import DEVICE as root
        self.spec = devspec.parse_spec(root) if root else None
        self.discovery, self.degraded = None, False
        self.assemblers[:] = assemblers(self)

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
        self.drivers.look(self.modules)

    def trigger(self) -> None:
        """The monitor is opened, and the devices that udevd has not seen are announced to it."""
        assert self.daemon is not None and self.sealed is not None
        self.daemon.wait_ready()
        if self.waiter is None:
            devices = Devices(self.sealed.libraries)
            self.waiter = Waiter(
                devices,
                self.daemon,
                self.children,
                self.console,
                self.assemblers,
                self.keyboard,
                may_open_shell=lambda: self.guard.policy().open,
                drivers=self.drivers,
            )
        # What appeared before udevd listened has no driver from it: a disk behind a controller, say.
        self.drivers.look(self.modules)
        udev.trigger_devices()

    def wait_for_root(self) -> None:
        """The root device is used the moment udevd has processed it."""
        if is_mounted(SYSROOT):
            return
        assert self.waiter is not None
        self.modules.load_all(self.config.drivers_late)
        if self.spec is None:
            self._discover_root()
        # First: what the root lies on may be written to when it is assembled.
        if self.config.resume:
            self._resume()
        if self.spec is not None:
            self.root = self._wait_for("root", self.spec, self.config.timeout)
            self.console.info(f"root is {describe(self.root)}")

    def before_mount(self) -> None:
        """The driver of the root's file system, before the kernel has to ask modprobe for it."""
        if any(view.properties.get("ID_FS_TYPE") == "swsuspend" for view in self.known()):
            self._warn_of_hibernated()
        if self.root is not None:
            self._load_filesystem(self.root)

    def mount(self) -> None:
        """The root file system is mounted, unless a person did so in the shell, and what belongs to it."""
        self.touched = True
        if not is_mounted(SYSROOT):
            self._mount_root()
        fstab = parse_fstab(self.patience.call(f"reading {SYSROOT}", belongs.read_fstab, SYSROOT))
        others, warnings = belongs.wanted(fstab, self.config)
        for warning in warnings:
            self.console.warning(warning)
        if self.discovery and not any(one.target == "/usr" for one in others):
            others = [*self.discovery.usr(list(self.known()), SYSROOT), *others]
        for one in others:
            try:
                self._mount_other(one)
            except BootError as error:
                explained = belongs.explain(one, error, SYSROOT)
                if not one.optional:
                    raise explained from error
                self.console.warning(f"{explained.cause}; it is nofail")

    def check_root(self) -> None:
        """What was mounted is a root file system with an init that can be executed."""
        requested, candidates = self._permitted_init()
        look = self.patience.call
        warnings = look(f"reading {SYSROOT}", switch_root.check_root, SYSROOT, requested)
        self.init = look(f"reading {SYSROOT}", switch_root.resolve_init, SYSROOT, requested, candidates)
        for warning in (*warnings, *self.init.warnings):
            self.console.warning(warning)

    def clean_up(self) -> None:
        """udevd and whatever else was started here ends."""
        for stack in self.assemblers:
            stack.forget()
        self.drivers.finish()
        self.patience.finish()
        self.children.end_reserve()
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None
        _write_blacklist(())
        self._leave_way_back()
        self.record.data["handover"] = {"at": 0, "init": "", "method": "", "orphans": 0, "killed": []}
        self._end_leftovers()
        udev.clean_database()

    def switch(self) -> None:
        """The point of no return."""
        assert self.init is not None
        # Those of a person who looked at the root before it is entered.
        self._end_leftovers()
        timeline = read_if_there(f"{os.path.dirname(__file__)}/record.py")
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
            write_if_possible(TIMELINE_PATH, timeline)
            self.guard.write_record()
            if self.watchdog:
                self.watchdog.feed()
            if self.report:
                self.report.send("record", {"record": self.record.data})

        switch_root.switch(
            SYSROOT,
            self.init,
            [*switch_root.real_argv(self.init, self.kernel_argv), *self._arguments_set_here()],
            switch_root.real_environ(self.kernel_environ),
            before_exec=before_exec,
            log=self.console.debug,
            warn=self.console.warning,
        )

    # What holds the stages together.

    def _first_of_all(self) -> None:
        while True:
            try:
                try:
                    # Before anything is mounted: what is sealed decides what happens when a mount fails.
                    self.read_sealed()
                finally:
                    mount_api_filesystems(self.console.warning)
                break
            except BaseException as exception:
                # What the kernel's own command line says of failures, when nothing else can be known.
                image = self.sealed.cmdline.encode("utf-8", "surrogateescape") if self.sealed else b""
                self.config = boot_config(image, read_if_there("/proc/cmdline"))
                self.guard.fail("start", exception)
        self.console.open()
        self.console.open_log()
        self.children.watch()
        # Ctrl-Alt-Del sends SIGINT to PID 1 instead of resetting the machine with unwritten data
        # (reboot(2), LINUX_REBOOT_CMD_CAD_OFF).
        reboot(REBOOT_CAD_OFF)
        signal.signal(signal.SIGINT, lambda number, frame: end_machine("reboot"))
        # What a break point before the first stage needs to be known.
        self.look_at_command_line()

    def _permitted_init(self) -> tuple[str | None, tuple[str, ...]]:
        """What init= asks for, and the programs to choose from without it.

        Where not everybody may have a shell, the boot loader's line cannot make one the real init, and
        neither can a root without an init. The image's own line can, and who was let into the rescue shell.
        """
        requested = self.config.init
        candidates: tuple[str, ...] = switch_root.CANDIDATES
        if self.guard.policy().level != "open":
            candidates = tuple(path for path in candidates if path in switch_root.INITS)
            own, _, *set_here = self.sources
            trusted = boot_config(own, *set_here).init
            if requested not in ("", trusted, *switch_root.INITS):
                self.console.warning(
                    f"init={printable(requested)} is ignored: it may be a shell, which not everybody may have"
                )
                requested = trusted
        return requested or None, candidates

    def _end_leftovers(self) -> None:
        killed = end_leftovers(LEFTOVER_TIMEOUT)
        handover = self.record.data["handover"]
        handover["orphans"] = self.children.orphans
        handover["killed"] += [left._asdict() for left in killed]
        for left in killed:
            self.console.warning(f"process {left.pid} ({left.command}) was still there: {left.outcome}")

    def _arguments_set_here(self) -> list[bytes]:
        """What stands behind `--` in the words that were set in the rescue shell: arguments for init."""
        lines = read_if_there(OVERRIDES).splitlines()
        return [os.fsencode(word) for word in boot_config(*lines).init_args] if lines else []

    def _go_through(self, name: str, stage: Callable[[], None]) -> bool:
        """Run a stage until it succeeds; False when the boot must start again from the first one.

        Every failure is explained and followed by the rescue policy.
        """
        stopped = broken = False
        while True:
            entry = None
            try:
                if stopped and self._must_start_again(broken):
                    return False
                if name in self.config.breaks and name not in self._breaks_done:
                    self._breaks_done.add(name)
                    self.guard.stop_before(name)
                    if self._must_start_again():
                        return False
                if self.config.memdebug:
                    from pyinit import memdebug

                    self.console.notice(f"before {name}: {memdebug.write(name, self.config.memdebug)}")
                entry = self.record.add("stages", name=name, start=now(), end=now(), outcome="running")
                if self.report:
                    self.report.send("stage", {"name": name})
                if name != "cmdline":
                    self._call_hooks(name)
                if name not in ("cleanup", "switch-root"):
                    self.children.reserve.keep()
                self._find_watchdog(name)
                stage()
                self.children.reap()
                self.children.check_memory()
                if name == "cmdline":
                    self._call_hooks(name)
                entry.update(end=now(), outcome="done")
                return True
            except ShellWanted:
                if entry:
                    entry.update(end=now(), outcome="interrupted")
                self.guard.stop_in(name)
                stopped = True
            except BaseException as caught:
                exception = self._explain_silence(caught)
                if isinstance(exception, BootError):
                    code = exception.code
                else:
                    code = "E-MEM" if isinstance(exception, MemoryError) else "E-INTERNAL"
                broken = code == "E-IO"
                if entry:
                    entry["outcome"] = code
                self.guard.fail(name, exception, entry)
                stopped = True

    def _call_hooks(self, stage: str) -> None:
        """The hooks that were built into the image for this stage."""
        function = stage.replace("-", "_")
        names = self.sealed.hooks.get(function, ()) if self.sealed else ()
        if not names:
            return
        from pyinit import hooks

        words = parse_command_line(b" ".join(line.strip() for line in self.sources))
        facts = hooks.Facts(
            self.config,
            words,
            tuple(self.known()),
            self.root,
            SYSROOT if is_mounted(SYSROOT) else "",
        )
        hooks.call(function, names, self._hooks_done, facts, self.children, self.console)

    def _find_watchdog(self, stage: str) -> None:
        """Start the watchdog that was asked for, once its driver is there."""
        seconds = self.config.watchdog
        if not seconds:
            return
        if self.watchdog is None:
            from pyinit.kernel.watchdog import Watchdog

            self.watchdog = Watchdog()
            self.record.progress = self.watchdog.feed
        if self.watchdog.running:
            return
        if self.watchdog.start(seconds):
            limit = self.watchdog.seconds
            self.console.info(f"the watchdog resets this machine after {limit} s without progress")
            if limit != seconds:
                self.console.warning(f"the watchdog counts to {limit} s, not to {seconds} s")
        elif stage == "pre-mount":
            self.console.warning("rd.pyinit.watchdog: this machine has no watchdog, or the image no driver")

    def _explain_silence(self, exception: BaseException) -> BaseException:
        """``E-IO`` in place of what failed because the device of the mounted root no longer answers."""
        try:
            if isinstance(exception, switch_root.Stranded) or not is_mounted(SYSROOT):
                return exception
            from pyinit.rescue.missing import silent_root

            return silent_root(exception, self.root) or exception
        except BaseException:
            return exception  # No memory, perhaps: the first failure is what counts.

    def _must_start_again(self, broken: bool = False) -> bool:
        """After a person was at work: whether what they changed has to be gone through from the beginning.

        ``broken``: the root that is mounted cannot be used any more.
        """
        self.modules.forget_failures()
        if self.daemon is not None:
            self.drivers.look(self.modules)
            self.patience.call("looking for partitions", udev.reread_partitions)
        mounted = is_mounted(SYSROOT)
        changed = self.changed_command_line()
        if (changed or broken) and mounted and self.mounted_here:
            # Lazily: somebody may still look at it.
            try:
                unmount_root(MNT_DETACH)
            except OSError as error:
                self.console.warning(f"{SYSROOT} stays mounted: {error.strerror}")
            mounted = is_mounted(SYSROOT)
        if not mounted:
            # The device may have another name by now.
            self.root = None
            self.mounted_here = False
        closed, self.closed = self.closed, False
        return changed or broken or (not mounted and (closed or self.init is not None))

    def _wait_for(self, name: str, spec: devspec.DeviceSpec, timeout: float | None) -> DeviceView:
        """Wait for the device that ``name`` needs; an ``E-DEV`` says all that is known of its absence."""
        assert self.waiter is not None
        want = Want(
            name,
            devspec.describe(spec),
            lambda known: devspec.resolve(spec, known, degraded=self.degraded),
            timeout,
            self._load_filesystem,
        )
        try:
            return self.waiter.wait(want)
        except BootError as error:
            raise self._explain_missing(error, name, spec) from None

    def _discover_root(self) -> None:
        """Find the root by the type of its partition; :attr:`spec` is what an encrypted one becomes."""
        from pyinit.root.discover import Discovery, booted_partition

        assert self.waiter is not None
        discovery = Discovery(booted_partition(self.modules))
        # Somebody who relies on it waits for it; else devices get a moment to appear, so as to be named.
        patient = self.config.root or discovery.booted
        limit = self.config.timeout if patient else LOOK_AROUND
        find = discovery.root if self.config.gpt_auto or self.config.root else lambda known: []
        try:
            root = self.waiter.wait(
                Want("root", discovery.describe(), find, limit, self._load_filesystem, grace=discovery.grace)
            )
        except BootError as error:
            if error.code != "E-DEV":
                raise
            from pyinit.rescue.missing import no_root_given, present

            known = list(self.known())
            if patient:
                raise discovery.missing(error.cause, known, present(known)) from None
            remarks = discovery.remarks(known)
            raise no_root_given(self.record.data["cmdline"], known, self.modules, remarks) from None
        self.discovery = discovery
        discovery.choose(root)
        self.console.info(f"root is {describe(root)}: {discovery.reason(list(self.known()))}")
        if root.properties.get("ID_FS_TYPE") == "crypto_LUKS":
            self.spec = devspec.parse_spec(f"/dev/mapper/luks-{root.properties.get('ID_FS_UUID', '')}")
            # The one that opens encrypted volumes learns of this one; the others go on with their work.
            kept = {stack.name: stack for stack in self.assemblers}
            if (before := kept.pop("luks", None)) is not None:
                before.forget()
            self.assemblers[:] = [kept.get(stack.name, stack) for stack in assemblers(self)]
        else:
            self.root = root

    def _resume(self) -> None:
        """Go on with a hibernated system, if there is one: what was asked for is tried once."""
        if not self.may_resume():
            return
        asked = (self.config.resume, self.config.resume_offset)
        from pyinit.root.resume import Resume

        assert self.waiter is not None
        resume = Resume(*asked, self.console, self.patience)
        self.resume_device = resume.find(self.waiter.wait, self.config.timeout)

        def come_to_rest() -> None:
            # The kernel cannot stop a thread that waits for a device in finit_module(2), and would give up;
            # nor a program that is within such a call, one that makes a volume, say.
            self.drivers.finish()
            self.patience.finish()
            self.children.settle(SETTLE_TIMEOUT, {self.daemon.pid} if self.daemon else ())
            if self.watchdog:
                self.watchdog.feed()

        if self.resume_device is not None:
            resume.go(self.resume_device, come_to_rest, touched=self.touched)
        # Not before: what has failed is tried again, and is not forgotten.
        self.resume_tried = asked

    def _warn_of_hibernated(self) -> None:
        from pyinit.root.resume import warn_of_others

        tried = self.resume_device.sys_path if self.resume_device and self.resume_tried else ""
        others = [view for view in self.known() if view.sys_path != tried]
        warn_of_others(others, self.config.resume, self.config.noresume, self.console)

    def _leave_way_back(self) -> None:
        """What takes the storage of the root apart at shutdown, where a root lies on several layers."""
        if self.root is None or not self.root.name.startswith(("dm-", "md")):
            return
        from pyinit import shutdown

        try:
            shutdown.leave(SYSROOT, os.path.dirname(__file__))
        except OSError as error:
            self.console.warning(f"the storage of the root will not be taken apart at shutdown: {error}")

    def _load_filesystem(self, device: DeviceView) -> None:
        self.modules.load_for_filesystem(device.properties.get("ID_FS_TYPE", ""))

    def _mount_root(self) -> None:
        if self.root is None:
            self.wait_for_root()
        if self.config.overlay is None and self.config.image is None:
            self._mount_root_device(SYSROOT, self._may_write())
        else:
            self._mount_layers(self.config.image, self.config.overlay)
        self.mounted_here = True

    def _may_write(self) -> bool:
        """Whether the root may be mounted writable."""
        return not self.config.read_only and not (self.discovery and self.discovery.read_only)

    def _mount_root_device(self, target: str, writable: bool) -> None:
        """The file system on the root's device."""
        assert self.root is not None
        found, config = self.root.properties.get("ID_FS_TYPE", ""), self.config
        self._refuse_container(self.root)
        try:
            verdict = self._check_filesystem("medium" if target == MEDIUM else "root", self.root.node, found)
            spec = root_mount(self.root.path, found, config.rootflags, verdict.writable and writable)
            spec = spec._replace(target=target)
            if not verdict.writable:
                spec = spec.adding(read_only_data(found))
            mount_filesystem(spec, config.rootfstype, self.modules, self.console, self.patience)
        except BootError as error:
            if not config.verity:
                raise
            from pyinit.storage.verity import explain_damage

            raise explain_damage(error, config.verity.roothash) from None

    def _mount_layers(self, image: ImageFile | None, overlay: Overlay | None) -> None:
        """Device, file on it, changes laid over that: all of them or, after a failure, nothing."""
        from pyinit.root import layers

        unmount_root()
        root = LOWER if overlay else SYSROOT
        writable = overlay is None and self._may_write()
        try:
            if overlay and overlay.device:
                overlay = self._mount_changes(overlay)
            elif overlay:
                self._mount_one(layers.memory_mount(overlay))
            self._mount_root_device(MEDIUM if image else root, writable)
            if image:
                self._mount_image(image, root, writable)
            if overlay:
                what = "laying changes over the root"
                self.patience.call(what, layers.lay_over, overlay, self._mount_one, self.console.warning)
        except BaseException:
            try:
                unmount_root()
            except OSError as error:
                self.console.warning(f"{error.filename} stays mounted: {error.strerror}")
            raise

    def _mount_image(self, image: ImageFile, target: str, writable: bool) -> None:
        """The file system in a file on the medium; in a live image another file may hold the root."""
        from pyinit.config.image import LIVE_INSIDE
        from pyinit.root import imagefile

        if not image.live:
            self._mount_file(MEDIUM, image, target, writable)
            return
        self._mount_file(MEDIUM, image, CONTENT, writable)
        if imagefile.exists(CONTENT, LIVE_INSIDE):
            self._mount_file(CONTENT, image._replace(path=LIVE_INSIDE), target, False)
        else:
            os.makedirs(target, 0o755, exist_ok=True)
            mount(CONTENT, target, None, MS.MOVE)

    def _mount_file(self, top: str, image: ImageFile, target: str, writable: bool) -> None:
        from pyinit.root import imagefile

        with imagefile.attached(top, image, writable, self.modules, self.patience) as (node, found):
            checked = self._check_filesystem("root", node, found)
            spec = root_mount(node, found, image.flags, writable and checked.writable)
            spec = spec._replace(target=target)
            if not checked.writable:
                spec = spec.adding(read_only_data(found))
            what = f"the root file system in {printable(image.path)}"
            mount_filesystem(spec, (), self.modules, self.console, self.patience, what)

    def _mount_changes(self, overlay: Overlay) -> Overlay:
        """The file system that keeps the changes; the overlay is read-only when that must be."""
        try:
            spec = devspec.parse_spec(overlay.device)
        except BootError as error:
            raise BootError(
                "E-CMDLINE",
                f"rd.overlay={printable(overlay.device)[:120]} names neither a device nor tmpfs",
                advice=("pyinit set rd.overlay=tmpfs keeps changes in memory.", *error.advice[-1:]),
            ) from error
        device = self._wait_for("overlay", spec, self.config.timeout)
        self._refuse_container(device)
        found = device.properties.get("ID_FS_TYPE", "")
        if not self._check_filesystem("overlay", device.node, found).writable:
            self.console.warning(f"no changes can be kept on {printable(device.node)}")
            overlay = overlay._replace(readonly=True)
        flags = MS.NODEV | (MS.RDONLY if overlay.readonly else 0)
        place = MountSpec(device.path, BACKING, found, flags, "")
        mount_filesystem(place, (), self.modules, self.console, self.patience, "the changes to the root")
        return overlay

    def _mount_one(self, spec: MountSpec) -> None:
        mount_one(spec, self.modules, self.console, self.patience)

    def _mount_other(self, one: belongs.Wanted) -> None:
        """Mount something inside the new root, unless it is there already."""
        try:
            place = belongs.place_inside(SYSROOT, one.target)
            source = belongs.place_inside(SYSROOT, one.source) if one.is_bind else one.source
        except OSError as error:
            raise BootError("E-MOUNT", f"{error.filename or one.target}: {error.strerror}") from error
        if mountinfo.topmost(mountinfo.read(), place) is not None:
            return
        found, writable = one.fstype, True
        if one.on_device:
            limit = OPTIONAL_TIMEOUT if one.optional else self.config.timeout
            device = self._wait_for(one.target, devspec.parse_spec(one.source), limit)
            source, found = device.path, device.properties.get("ID_FS_TYPE", "")
            self._refuse_container(device)
            if one.checked:
                writable = self._check_filesystem(one.target, device.node, found).writable
        flags, data = parse_options(one.options)
        if not writable:
            flags |= MS.RDONLY
        spec = MountSpec(source, place, found, flags, data)
        if not writable:
            spec = spec.adding(read_only_data(found))
        named = () if one.fstype in ("auto", "", found) else (one.fstype,)
        mount_filesystem(spec, named, self.modules, self.console, self.patience, printable(one.target))

    def _check_filesystem(self, name: str, node: str, fstype: str) -> fsck.Verdict:
        checker = fsck.Checker(self.config, self.children, self.console, self.keyboard, self.patience)
        verdict = checker.check(name, node, fstype, interruptible=self.guard.policy().open)
        if verdict.checked:
            fsck.remember(name)
        return verdict

    def _refuse_container(self, device: DeviceView) -> None:
        usage, kind = (device.properties.get(name, "") for name in ("ID_FS_USAGE", "ID_FS_TYPE"))
        if usage in ("raid", "crypto") and not self.config.rootfstype:
            raise BootError(
                "E-MOUNT",
                f"{printable(device.node)} is not a file system but a container ({printable(kind)})",
                found=(describe(device),),
                advice=("Open it by hand and mount the root on /sysroot, or set another root=.",),
            )

    def _explain_missing(self, error: BootError, name: str, spec: devspec.DeviceSpec) -> BootError:
        """What stands behind an ``E-DEV``: what is there, and what is not; another error as it is."""
        if error.code != "E-DEV":
            return error
        from pyinit.rescue.missing import missing_device

        known = list(self.known())
        waiting = [f"{stack.name}: {line}" for stack in self.assemblers for line in stack.waits_for()]
        return missing_device(
            error.cause, name, spec, known, self.modules, self.record.data, waiting, self.root
        )


def _write_blacklist(names: Collection[str]) -> None:
    """Tell udevd's module loading, which reads modprobe.d(5), what is not to be loaded in the initramfs."""
    try:
        if names:
            os.makedirs(os.path.dirname(BLACKLIST_PATH), 0o755, exist_ok=True)
            lines = (f"blacklist {name}\n" for name in sorted(names))
            write_if_possible(BLACKLIST_PATH, "".join(lines).encode())
        elif os.path.exists(BLACKLIST_PATH):
            os.unlink(BLACKLIST_PATH)
    except OSError:
        pass
