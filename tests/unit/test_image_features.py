"""Which features an image gets, and how those of other packages fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from pyinit_image import features
from pyinit_image.errors import BuildError
from pyinit_image.features import Feature, Need, Target
from pyinit_image.kmods import Kernel, Modprobe, select
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot


class Wanted(Feature):
    name = "wanted"

    def wanted(self, target: Target) -> str:
        return "the mode is list" if target.mode == "list" else ""

    def needs(self, target: Target) -> Iterable[Need]:
        return [Need(("/usr/bin/tool", "/bin/tool"), "tool-package")]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        plan.file("/usr/bin/tool", reason)


class Modest(Feature):
    name = "modest"

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        plan.data("/etc/modest", b"", reason)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(features, "BUILT_IN", (Wanted, Modest))
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/tool").write_bytes(b"tool")
    return Plan(Sysroot(tmp_path / "root"))


def target(plan: Plan, mode: str = "list") -> Target:
    return Target(plan.sysroot, cast(Any, None), mode, "open", "")


def names(plan: Plan, asked: list[str], without: list[str], mode: str = "list") -> dict[str, str]:
    chosen = features.choose(plan, target(plan, mode), asked, without)
    return {feature.name: reason for feature, reason in chosen}


def test_the_manual_has_a_row_for_each() -> None:
    text = (Path(__file__).parents[2] / "docs" / "builder.md").read_text()
    table = text.partition("| feature | comes when | what |")[2].partition("\n\n")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(kind.name for kind in features.BUILT_IN)


def test_asked_for_wanted_and_left_out(plan: Plan) -> None:
    assert names(plan, [], []) == {"wanted": "the mode is list"}
    assert names(plan, [], ["wanted"]) == {}
    assert names(plan, ["modest"], [], "generic") == {"modest": "--feature modest"}
    with pytest.raises(BuildError, match="exclude each other"):
        names(plan, ["modest"], ["modest"])


def test_entries_carry_the_feature_and_its_reason(plan: Plan) -> None:
    features.collect(plan, target(plan), features.choose(plan, target(plan), ["modest"], []))
    entry = plan.entries["/usr/bin/tool"]
    assert (entry.source, entry.reason) == ("feature wanted", "the mode is list")
    assert plan.entries["/etc/modest"].reason == "--feature modest"


def test_an_unknown_name(plan: Plan) -> None:
    with pytest.raises(
        BuildError, match="--feature modst: there is no such .*; did you mean modest"
    ) as caught:
        names(plan, ["modst"], [])
    assert caught.value.hint == "Known: modest, wanted"
    with pytest.raises(BuildError, match=r"--no-feature \\x1b: there is no such feature$"):
        names(plan, [], ["\x1b"])


def test_what_it_needs_is_missing(plan: Plan) -> None:
    plan.sysroot.host("/usr/bin/tool").unlink()
    assert names(plan, [], []) == {}
    assert "feature wanted needs /usr/bin/tool or /bin/tool, missing in" in plan.warnings[0]
    assert plan.warnings[0].endswith("left out although the mode is list")
    with pytest.raises(BuildError, match="feature wanted needs /usr/bin/tool") as caught:
        names(plan, ["wanted"], [])
    assert caught.value.hint == "Install in the target system: tool-package"


def test_modules_carry_the_feature_and_its_reason(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Modest, "modules", lambda self, target: ("loop", "fs-vfat"))
    chosen = features.choose(plan, target(plan), ["modest"], [])
    assert features.modules(target(plan), chosen) == [
        ("loop", "feature modest: --feature modest"),
        ("fs-vfat", "feature modest: --feature modest"),
    ]
    kernel_modules = {
        "loop": ("kernel/loop.ko", ()),
        "vfat": ("kernel/vfat.ko", ("fat",)),
        "fat": ("kernel/fat.ko", ()),
    }
    kernel = Kernel.__new__(Kernel)
    kernel.modules, kernel.builtin, kernel.modprobe = kernel_modules, frozenset(), Modprobe()
    kernel._aliases, kernel._soft = ({"fs_vfat": ["vfat"]}, []), ({}, {})
    selected = select(kernel, "list", ["loop"], features.modules(target(plan), chosen))
    assert selected == {
        "loop": ("--module loop", None),
        "vfat": ("feature modest: --feature modest", None),
        "fat": ("dependency", "vfat"),
    }


def test_a_feature_that_fails_half_way_through_its_modules(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Feature, target: Target) -> Iterable[str]:
        yield "loop"
        raise KeyError("x")

    monkeypatch.setattr(Modest, "modules", fail)
    with pytest.raises(BuildError, match="feature modest failed: KeyError: 'x'"):
        features.modules(target(plan), features.choose(plan, target(plan), ["modest"], []))


Package = Callable[[str, str], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Installs a package with one feature."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(code: str, entry: str) -> None:
        information = tmp_path / "site/other_package-1.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1\n")
        (information / "entry_points.txt").write_text(f"[pyinit_image.features]\n{entry}\n")
        (tmp_path / "site/other_package.py").write_text(
            f"from pyinit_image.features import Feature\n{code}\n"
        )
        monkeypatch.delitem(sys.modules, "other_package", raising=False)

    return install


def test_a_feature_of_another_package(plan: Plan, package: Package) -> None:
    code = "class Other(Feature):\n    name = 'other'\n    def wanted(self, target): return 'always'\n"
    package(code + "    def add(self, plan, target, reason): 1 / 0", "other = other_package:Other")
    chosen = features.choose(plan, target(plan), [], ["wanted"])
    assert [reason for _, reason in chosen] == ["always"]
    with pytest.raises(
        BuildError, match=r"feature other failed: ZeroDivisionError: .*other_package\.py line 5"
    ):
        features.collect(plan, target(plan), chosen)


@pytest.mark.parametrize(
    ("code", "entry", "message"),
    [
        ("1 / 0", "other = other_package:Other", "ZeroDivisionError: .*other_package.py line 2"),
        ("", "other = other_package:Other", "AttributeError"),
        (
            "class Other: pass",
            "other = other_package:Other",
            "TypeError: other_package:Other is not a subclass",
        ),
        (
            "class Other(Feature): name = 'x'",
            "other = other_package:Other",
            "ValueError: its class calls itself",
        ),
        ("class Other(Feature): pass", "modest = other_package:Other", "ValueError: there is another one"),
    ],
)
def test_a_package_that_cannot_be_used(
    plan: Plan, package: Package, code: str, entry: str, message: str
) -> None:
    package(code, entry)
    names(plan, [], [])
    assert len(plan.warnings) == 1 and "of other-package cannot be used: " in plan.warnings[0]
    with pytest.raises(BuildError, match=f"feature .* of other-package cannot be used: {message}"):
        names(plan, [entry.partition(" ")[0]], [])
