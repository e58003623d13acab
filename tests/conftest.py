"""What all tests share: Debian systems, disks, and the rule that nothing is skipped in silence."""

from __future__ import annotations

import datetime
import os
import subprocess
import tomllib
from collections.abc import Callable, Generator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import fault_matrix
import pytest
from hypothesis import HealthCheck, settings

from pyinit_qemu import images
from pyinit_qemu.debian import ArchiveError, DebianRoot, Suite, provision
from pyinit_qemu.disks.filesystems import Ext4, Filesystem, Tree
from pyinit_qemu.smallroot import LABEL, small_image

# No verdict depends on how fast this machine is at the moment.
settings.register_profile("pyinit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pyinit")

ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips.toml")


@pytest.fixture(scope="session")
def debian() -> Callable[[Suite], DebianRoot]:
    """``debian("bookworm")``: an installed Debian. What the archive breaks is a skip, not a failure."""

    @cache
    def get(suite: Suite = "bookworm") -> DebianRoot:
        try:
            return provision(suite)
        except ArchiveError as error:
            pytest.skip(f"infrastructure: {error}")

    return get


@pytest.fixture(scope="session")
def bookworm(debian: Callable[[Suite], DebianRoot]) -> DebianRoot:
    """Debian 12, for tests that need any one Debian."""
    return debian("bookworm")


@pytest.fixture(scope="session")
def probe_kernel(bookworm: DebianRoot) -> Path:
    """The kernel that the accelerator is proven with."""
    return bookworm.kernel


@pytest.fixture(scope="session")
def small_disk(bookworm: DebianRoot) -> Callable[..., Path]:
    """``small_disk(lambda tree: Xfs(tree, label="a"))``: a GPT disk with the small root; by default ext4."""

    def make(
        filesystem: Callable[[Tree], Filesystem] = lambda tree: Ext4(tree, label=LABEL),
        *,
        debian: DebianRoot = bookworm,
        name: str = LABEL,
        partuuid: str = "",
    ) -> Path:
        return small_image(debian, filesystem, name=name, partuuid=partuuid).build()

    return make


@pytest.fixture(scope="session")
def initramfs(bookworm: DebianRoot) -> Callable[..., Path]:
    """``initramfs(mode="list", modules=("virtio_blk",))``: our image, for Debian 12 if no other is given."""

    def make(debian: DebianRoot = bookworm, **options: Any) -> Path:
        return images.initramfs(debian, **options)

    return make


@cache
def _allowed_skips() -> tuple[str, ...]:
    table = tomllib.loads(ALLOWED_SKIPS.read_text())
    return tuple(entry["test"] for entry in table.get("skip", ()) if entry["reason"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _fail_unless_allowed(report)
    return report


def _fail_unless_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a test that cannot run has failed, unless the list names it with a reason."""
    if os.environ.get("CI") != "true":
        return
    if any(fnmatchcase(report.nodeid, pattern) for pattern in _allowed_skips()):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = (
        f"{reason}\n\nSkipped, which CI does not accept unless {ALLOWED_SKIPS.name} has the test."
    )


class _FaultResults:
    """Keeps what the tests of the fault matrix came to, for ``scripts/faults``."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if fault_matrix.MARKER in report.keywords and (report.when == "call" or not report.passed):
            self._outcomes.setdefault(report.nodeid.partition("[")[0], []).append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        if not self._outcomes:
            return
        known = fault_matrix.read_results(fault_matrix.LAST_RUN)
        commit, today = _commit(), datetime.date.today().isoformat()
        for test, outcomes in self._outcomes.items():
            known[test] = fault_matrix.Result(fault_matrix.worst(outcomes), commit, today)
        fault_matrix.write_results(fault_matrix.LAST_RUN, known)


def _commit() -> str:
    """The commit that is tested, with a ``+`` when files differ from it; ``unknown`` outside a repository."""
    said = subprocess.run(
        ("git", "describe", "--always", "--dirty=+"),
        cwd=fault_matrix.REPOSITORY,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "unknown"


def pytest_configure(config: pytest.Config) -> None:
    # Under pytest-xdist all reports come to the process that has no workerinput.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_FaultResults())
