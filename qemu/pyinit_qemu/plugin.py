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
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Generator, Iterator
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


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyinit-qemu", "virtual machines")
    group.addoption(
        "--pyinit-accel", choices=_POLICIES, help="accelerator; default: $PYINIT_QEMU_ACCEL, else auto"
    )
    group.addoption(
        "--pyinit-keep", action="store_true", help="keep build/boot/<test>/ of tests that pass, too"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boot: boots a virtual machine")
    config.stash[_STATE] = _State()


def pytest_report_header(config: pytest.Config) -> str:
    asked = config.getoption("--pyinit-accel") or os.environ.get("PYINIT_QEMU_ACCEL", "auto")
    return f"pyinit-qemu: accelerator {asked}, proven by the first test that boots"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for decision in sorted(config.stash[_STATE].decisions):
        terminalreporter.write_line(f"pyinit-qemu: {decision}")


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
    if report.failed:
        for boots in item.config.stash[_STATE].factories:
            if item.nodeid.startswith(boots.nodeid):
                boots.failed = True
                report.sections += boots.sections(call.excinfo.value if call.excinfo else None)
    return report


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
        if unpack:
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
def qemu(request: pytest.FixtureRequest, probe_kernel: Path) -> Qemu:
    """The accelerator of this run, proven; an error here is trouble of the machine, not of an image."""
    from pyinit_qemu.accel import decide, policy_from_environment

    policy = request.config.getoption("--pyinit-accel") or policy_from_environment()
    accelerator = decide(policy, probe_kernel)
    request.config.stash[_STATE].decisions.add(str(accelerator))
    return Qemu(accelerator)


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
