"""What all tests share: Debian systems, disks, and the rule that nothing is skipped in silence."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Generator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

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
