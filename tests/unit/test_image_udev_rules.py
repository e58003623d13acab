"""Which udev rules an image takes, out of those that a system has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import udev
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot

VENDOR, OWN = "usr/lib/udev/rules.d", "etc/udev/rules.d"
ALLOWED = {name for name, _, _ in udev.ALLOWED}


def collect(top: Path, files: dict[str, str]) -> Plan:
    """The plan for a system with a udev daemon and these files."""
    for path, content in {"usr/lib/systemd/systemd-udevd": "the daemon", **files}.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(content)
    plan = Plan(Sysroot(top))
    udev.collect(plan, frozenset(), "")
    return plan


@pytest.mark.fault("row-21")
def test_rules_of_the_machine_and_of_other_packages_stay_outside(tmp_path: Path) -> None:
    plan = collect(
        tmp_path,
        {
            f"{VENDOR}/60-block.rules": 'RUN+="/usr/bin/known"\n',
            f"{VENDOR}/80-drivers.rules": 'RUN{builtin}+="kmod load"\n',
            f"{VENDOR}/99-systemd.rules": 'RUN+="/usr/bin/other"\n',
            # One of the machine's hides the vendor's of the same name (udev(7)), though not in an image.
            f"{OWN}/60-block.rules": 'RUN+="/usr/local/bin/evil"\n',
            f"{OWN}/10-evil.rules": 'RUN+="/usr/local/bin/evil"\n',
            "usr/bin/known": "#",
            "usr/bin/other": "#",
            "usr/local/bin/evil": "#",
        },
    )
    rules = {path for path in plan.entries if path.endswith(".rules")}
    assert rules == {f"/{VENDOR}/60-block.rules", f"/{VENDOR}/80-drivers.rules"}
    assert plan.entries[f"/{VENDOR}/60-block.rules"].data == b'RUN+="/usr/bin/known"\n'
    assert "/usr/bin/known" in plan.entries
    assert not {"/usr/bin/other", "/usr/local/bin/evil"} & set(plan.entries)
    for name in ("10-evil.rules", "60-block.rules", "99-systemd.rules"):
        assert name in plan.absent


@pytest.mark.fault("row-21")
def test_a_program_that_rules_call_and_that_is_not_there_is_told(tmp_path: Path) -> None:
    rules = 'PROGRAM=="ata_id --export", IMPORT{program}="scsi_id", RUN+="/usr/bin/gone -x", RUN+="$env{X}"\n'
    plan = collect(
        tmp_path, {f"{VENDOR}/60-persistent-storage.rules": rules, "usr/lib/udev/ata_id": "the program"}
    )
    told = [warning for warning in plan.warnings if " calls " in warning]
    assert [warning.split(",")[0] for warning in told] == [
        "60-persistent-storage.rules calls scsi_id",
        "60-persistent-storage.rules calls /usr/bin/gone",
    ]
    assert "/usr/lib/udev/ata_id" in plan.entries


@pytest.mark.fault("row-21")
@given(
    st.dictionaries(
        st.sampled_from([VENDOR, OWN]).flatmap(
            lambda folder: st.one_of(
                st.from_regex(r"[0-9]{2}-[a-z_-]{1,12}\.rules", fullmatch=True),
                st.sampled_from(sorted(ALLOWED)),
            ).map(lambda name: f"{folder}/{name}")
        ),
        st.sampled_from(['RUN+="/usr/bin/tool"\n', 'SUBSYSTEM=="block"\n', ""]),
        max_size=6,
    )
)
def test_no_other_set_of_rules_brings_one_along_that_is_not_listed(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]
) -> None:
    plan = collect(tmp_path_factory.mktemp("system"), files)
    taken = {path for path in plan.entries if path.endswith(".rules")}
    assert taken == {f"/{path}" for path in files if path.startswith(VENDOR) and _listed(path)}


def _listed(path: str) -> bool:
    # Rules about a driver come with it, and there is none here.
    return any(path.endswith(f"/{name}") and not driver for name, _, driver in udev.ALLOWED)
