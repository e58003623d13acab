"""The pytest plugin: boots virtual machines in tests.

Fixtures:

``probe_kernel`` (session)
    The kernel that the accelerator is proven with. A conftest.py overrides it; by default it is
    ``$PYINIT_TEST_KERNEL``.
``qemu`` (session)
    The accelerator and the time scale of this run.
``boot``, ``boot_module``
    ``boot(kernel=..., initrd=..., ...)`` gives a running :class:`pyinit_qemu.Machine`. Every machine must
    be waited for (``finish``, ``stop``, ``power_cut``). One of ``boot_module`` is for all tests of a module.

What a machine wrote is in ``build/boot/<test>/`` while it runs and stays there if the test fails.

A test:

    def test_it_says_what_it_waits_for(boot, probe_kernel):
        disk = Disk("disk.img", late=True)
        vm = boot(kernel=probe_kernel, initrd="initrd.img", disks=(disk,), append="root=LABEL=x")
        vm.expect("waiting for root: LABEL=x")
        vm.plug(disk)
        vm.finish().check()

Before the first machine of a run the kernel is booted once without anything: when that fails, it is the host
that is broken, and every test that boots is an error with this one reason. JUnit's file has the accelerator
and the seconds of each boot as properties, the end of the run lists the slowest.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyinit_qemu.accel import Accelerator
    from pyinit_qemu.machine import Machine
    from pyinit_qemu.slots import Slots
    from pyinit_qemu.spec import VmSpec
    from pyinit_qemu.timing import Timeout, TimeScale

_POLICIES = ("auto", "kvm", "tcg")

_MARKERS = (
    "boot: boots a virtual machine",
    "slow: takes minutes",
    "faults: makes hardware fail",
    "icount: its guest's clock counts instructions",
    "needs_tool(name, ...): is skipped where one of these programs is not installed",
    "needs_kvm: is skipped where KVM does not work",
)

_SLOWEST = 10
_SECONDS = "pyinit_boot_seconds"
_ACCELERATOR = "pyinit_accelerator"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyinit-qemu", "virtual machines")
    group.addoption(
        "--pyinit-accel", choices=_POLICIES, help="accelerator; default: $PYINIT_QEMU_ACCEL, else auto"
    )
    group.addoption(
        "--pyinit-shell",
        action="store_true",
        help="when a test fails, give this terminal to the console of its machine (needs -n0)",
    )
    group.addoption(
        "--pyinit-keep", action="store_true", help="keep build/boot/<test>/ of tests that pass, too"
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    config.stash[_STATE] = state = _State()
    config.pluginmanager.register(_Times(state.seconds))
    if config.getoption("--pyinit-shell"):
        if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
            raise pytest.UsageError("--pyinit-shell gives a terminal to one machine: use it with -n0")
        with _uncaptured(config):
            terminal = os.isatty(0) and os.isatty(1)
        if not terminal:
            raise pytest.UsageError(
                "--pyinit-shell needs a terminal on standard input and output; without one look at "
                "build/boot/<test>/, cmdline.sh there boots the machine again"
            )


def pytest_report_header(config: pytest.Config) -> str:
    asked = config.getoption("--pyinit-accel") or os.environ.get("PYINIT_QEMU_ACCEL", "auto")
    return f"pyinit-qemu: accelerator {asked}, proven by the first test that boots"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    state = config.stash[_STATE]
    for decision in sorted(state.decisions):
        terminalreporter.write_line(f"pyinit-qemu: {decision}")
    slowest = sorted(state.seconds.items(), key=lambda item: -item[1])[:_SLOWEST]
    if slowest:
        total, count = sum(state.seconds.values()), len(state.seconds)
        terminalreporter.write_line(f"pyinit-qemu: {count} tests booted for {total:.0f} s; the slowest:")
        for nodeid, seconds in slowest:
            terminalreporter.write_line(f"{seconds:9.1f} s  {nodeid}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs_tool"):
        for name in marker.args:
            # Debian installs many where a normal user's search path does not lead.
            if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
                pytest.skip(f"{name} is not installed")


class _Times:
    """Adds up how long the machines of each test ran; under pytest-xdist from the workers' reports."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == _SECONDS:
                    total = self._seconds.get(report.nodeid, 0.0) + float(str(value))
                    self._seconds[report.nodeid] = total


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["pyinit_qemu"] = sorted(session.config.stash[_STATE].decisions)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker of pytest-xdist ended: take over what it decided."""
    output = getattr(node, "workeroutput", None) or {}
    node.config.stash[_STATE].decisions.update(output.get("pyinit_qemu", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for boots in item.config.stash[_STATE].factories:
        if not item.nodeid.startswith(boots.nodeid):
            continue
        if report.failed:
            boots.failed = True
            report.sections += boots.sections(call.excinfo.value if call.excinfo else None)
            if item.config.getoption("--pyinit-shell"):
                _give_terminal(item.config, boots)
        for seconds in boots.ended():
            # The report of the teardown, which JUnit's file takes these from, has them too.
            item.user_properties += [(_ACCELERATOR, boots.qemu.accelerator.name), (_SECONDS, seconds)]
    return report


def _give_terminal(config: pytest.Config, boots: Boots) -> None:
    """Let a person at the terminal work with the machine that failed."""
    from pyinit_qemu.cli import relay

    running = [machine for machine in boots.machines if machine.running]
    if not running:
        return
    with _uncaptured(config):
        print(f"\n{boots.nodeid} failed; the last lines of its machine:\n{running[-1].tail(20)}")
        relay(running[-1])


@contextmanager
def _uncaptured(config: pytest.Config) -> Iterator[None]:
    """Standard input and output as the run was started with."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    capture.suspend_global_capture(in_=True)
    try:
        yield
    finally:
        capture.resume_global_capture()


@dataclass(frozen=True)
class Qemu:
    """How this run boots."""

    accelerator: Accelerator

    @property
    def scale(self) -> TimeScale:
        return self.accelerator.scale


@dataclass
class Boots:
    """The machines of one test, or of one module."""

    nodeid: str
    folder: Path
    qemu: Qemu
    slots: Slots
    machines: list[Machine] = field(default_factory=list)
    failed: bool = False
    counted: list[Machine] = field(default_factory=list)

    def __call__(
        self,
        spec: VmSpec | None = None,
        /,
        *,
        paused: bool = False,
        allow: Collection[str] = (),
        unpack: bool = True,
        stall: float | Timeout | None = None,
        **fields: Any,
    ) -> Machine:
        """Start a machine from a specification, from fields of one, or from one with some fields changed.

        Without a specification the accelerator is the run's. ``paused`` leaves the CPUs stopped, to prepare
        the machine before its ``run()``. ``allow`` names failure patterns that are expected. ``unpack=False``
        boots the kernel with its own decompressor. ``stall``: how long the guest may be silent.
        """
        from pyinit_qemu.kernel import unpacked
        from pyinit_qemu.machine import Machine
        from pyinit_qemu.spec import VmSpec
        from pyinit_qemu.timing import Timeout

        if spec is None:
            fields.setdefault("accel", "tcg" if fields.get("icount") else self.qemu.accelerator.name)
            spec = VmSpec(**fields)
        elif fields:
            spec = spec.replace(**fields)
        # A kernel that is not entered through its setup code does not know that there is a screen.
        if unpack and not spec.vga:
            spec = spec.replace(kernel=unpacked(spec.kernel))
        machine = Machine(
            spec,
            artifacts=self._artifacts(),
            scale=self.qemu.scale,
            allow=allow,
            stall=Timeout.STALL if stall is None else stall,
        )
        return self._start(machine, paused=paused)

    def again(self, machine: Machine, *, paused: bool = False) -> Machine:
        """Boot a machine again whose power was cut: with what was written to its disks."""
        return self._start(machine.again(self._artifacts()), paused=paused)

    def _artifacts(self) -> Path:
        number = len(self.machines) + 1
        return self.folder if number == 1 else self.folder / f"machine{number}"

    def _start(self, machine: Machine, *, paused: bool) -> Machine:
        self.slots.acquire()
        self.machines.append(machine)
        machine.start()
        if not paused:
            machine.run()
        return machine

    def sections(self, cause: BaseException | None) -> list[tuple[str, str]]:
        """The consoles for a failure report; one that the exception's own text shows is left out."""
        from pyinit_qemu.verdict import BootFailed

        if isinstance(cause, BootFailed) and len(self.machines) == 1:
            return []
        return [
            (f"console of machine {number}, last lines ({machine.folder})", machine.tail())
            for number, machine in enumerate(self.machines, 1)
        ]

    def ended(self) -> list[str]:
        """Wall time in seconds of each machine that has ended since the last call."""
        gone = [machine for machine in self.machines if machine.finished and machine not in self.counted]
        self.counted += gone
        return [f"{machine.seconds:.1f}" for machine in gone]

    def close(self) -> list[int]:
        """End all machines; return the numbers of those that nobody waited for."""
        forgotten = [number for number, vm in enumerate(self.machines, 1) if not vm.finished]
        for machine in self.machines:
            machine.close()
            self.slots.release()
        return forgotten


@dataclass
class _State:
    decisions: set[str] = field(default_factory=set)
    factories: list[Boots] = field(default_factory=list)
    slots: Slots | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each test: how long its machines ran."""


_STATE = pytest.StashKey[_State]()


@pytest.fixture(scope="session")
def probe_kernel() -> Path:
    """The kernel that the accelerator is proven with: override this fixture in conftest.py."""
    path = os.environ.get("PYINIT_TEST_KERNEL")
    if not path:
        pytest.fail(
            "no kernel to prove the accelerator with: define a session fixture `probe_kernel` in conftest.py "
            "that returns a kernel's path, or set PYINIT_TEST_KERNEL",
            pytrace=False,
        )
    return Path(path)


@pytest.fixture(scope="session")
def qemu(
    request: pytest.FixtureRequest, probe_kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Qemu:
    """The accelerator of this run, proven; an error here is trouble of the machine, not of an image."""
    from pyinit_qemu.accel import decide, policy_from_environment

    policy = request.config.getoption("--pyinit-accel") or policy_from_environment()
    accelerator = decide(policy, probe_kernel)
    request.config.stash[_STATE].decisions.add(str(accelerator))
    if failure := _canary(accelerator, probe_kernel, tmp_path_factory.getbasetemp()):
        pytest.fail(
            f"infrastructure: this host boots no machine now, whatever is tested: {failure}", pytrace=False
        )
    return Qemu(accelerator)


def _canary(accelerator: Accelerator, kernel: Path, folder: Path) -> str:
    """Boot once in a run, all workers of pytest-xdist together; return why that failed, or nothing."""
    from pyinit_qemu.accel import canary

    # Workers have folders of their own within that of the run.
    shared = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "pyinit-canary"
    with open(shared, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        said = file.read()
        if not said:
            said = f"{canary(accelerator, kernel)}\n"
            file.write(said)
        return said.removesuffix("\n")


@pytest.fixture
def boot(request: pytest.FixtureRequest, qemu: Qemu) -> Iterator[Boots]:
    """Start machines for one test; see :class:`Boots`."""
    yield from _factory(request, qemu)


@pytest.fixture(scope="module")
def boot_module(request: pytest.FixtureRequest, qemu: Qemu) -> Iterator[Boots]:
    """Start machines for all tests of a module; see :class:`Boots`."""
    yield from _factory(request, qemu)


def _factory(request: pytest.FixtureRequest, qemu: Qemu) -> Iterator[Boots]:
    from pyinit_qemu.slots import Slots

    if request.node.get_closest_marker("needs_kvm") and qemu.accelerator.name != "kvm":
        pytest.skip(f"needs KVM: {qemu.accelerator.reason}")
    state = request.config.stash[_STATE]
    state.slots = state.slots or Slots()
    nodeid = request.node.nodeid
    boots = Boots(nodeid, _folder(request), qemu, state.slots)
    shutil.rmtree(boots.folder, ignore_errors=True)
    state.factories.append(boots)
    try:
        yield boots
    finally:
        state.factories.remove(boots)
        forgotten = boots.close()
        if not boots.failed and not forgotten and not request.config.getoption("--pyinit-keep"):
            shutil.rmtree(boots.folder, ignore_errors=True)
    if forgotten and not boots.failed:
        pytest.fail(
            f"the test ended without waiting for machine {', '.join(map(str, forgotten))}: call finish(), "
            f"stop() or power_cut(); what it did is in {boots.folder}",
            pytrace=False,
        )


def _folder(request: pytest.FixtureRequest) -> Path:
    name = re.sub(r"[^\w.=-]+", "_", request.node.nodeid).strip("_")[:150]
    if request.scope != "function":
        # Workers of pytest-xdist may each have a machine for the same module.
        name += "@" + os.environ.get("PYTEST_XDIST_WORKER", "module")
    return Path(request.config.rootpath) / "build" / "boot" / name
