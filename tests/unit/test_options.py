"""What the words of the kernel command line come to, and what is said about those that come to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config import options
from pyinit.config.distance import closest, distance
from pyinit.config.options import BREAK_POINTS, OPTIONS, boot_config, document, help_text
from pyinit.config.sealed import strictest

REPOSITORY = Path(__file__).parents[2]

_KEYS = st.sampled_from(
    [option.name for option in OPTIONS] + ["rd.luks.uuid", "rd.brake", "rdbreak", "--", "x"]
)
_VALUES = st.one_of(
    st.text(),
    st.sampled_from(
        ["-1", "0", "1e999", "nan", "9" * 400, "\x1b[31m", "mount,cleanup", "/dev/../x", "٣", "halt"]
    ),
)
_WORDS = st.builds(lambda key, value: f"{key}={value}", _KEYS, _VALUES) | _KEYS
LINES = st.one_of(st.binary(), st.lists(_WORDS).map(lambda words: " ".join(words).encode()))


def only_warning(line: bytes) -> str:
    (warning,) = boot_config(line).warnings
    return warning


def test_nothing_given() -> None:
    config = boot_config(b"\n")
    assert config.root == config.init == config.rootflags == config.emergency == config.ctty == ""
    assert config.read_only and config.rescue == ()
    assert config.timeout == 180
    assert not (config.quiet or config.debug or config.info or config.breaks or config.warnings)


def test_a_debian_command_line() -> None:
    config = boot_config(
        b"BOOT_IMAGE=/vmlinuz-6.1.0-50-amd64 root=UUID=0a3407de-014b-458b-b5c1-848e92a327a3 ro quiet "
        b"console=ttyS0,115200 systemd.unit=x.target crashkernel=256M init=/usr/bin/init single -- a 'b'\n"
    )
    assert config.root == "UUID=0a3407de-014b-458b-b5c1-848e92a327a3"
    assert config.init == "/usr/bin/init"
    assert config.init_args == ("a", "'b'")
    assert config.quiet and config.read_only
    assert config.warnings == ()


def test_a_fedora_command_line_that_switches_stacks_off() -> None:
    assert boot_config(b"root=/dev/vda1 rw rd.luks=0 rd.lvm=0 rd.md=0 rd.dm=0 rhgb").warnings == ()


@pytest.mark.parametrize(
    ("line", "read_only"),
    [(b"ro rw", False), (b"rw ro", True), (b"rw", False), (b"ro", True), (b"rw -- ro", False)],
)
def test_the_last_of_ro_and_rw_counts(line: bytes, read_only: bool) -> None:
    config = boot_config(line)
    assert config.read_only is read_only
    assert config.warnings == ()


def test_later_command_lines_override_earlier_ones_without_a_word() -> None:
    config = boot_config(
        b"root=a rw rootflags=x -- sealed", b"root=b ro -- typed", b"root=c rd.break=mount\n"
    )
    assert (config.root, config.rootflags, config.read_only) == ("c", "x", True)
    assert config.init_args == ("typed",)
    assert config.breaks == {"mount"}
    assert config.warnings == ()


def test_one_word_twice_on_a_line_is_worth_a_warning() -> None:
    config = boot_config(b'root=/dev/vda1 "root=LABEL=a b"')
    assert config.root == "LABEL=a b"
    assert "root" in config.warnings[0] and "LABEL=a b" in config.warnings[0]
    assert boot_config(b"root=/dev/vda1 root=/dev/vda1").warnings == ()


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (b"rd.timeout=30", 30),
        (b"rd.timeout=0", None),
        (b"rd.retry=30", 30),
        (b"rd.retry=0", None),
        (b"rd.timeout=20 rd.retry=30", 20),
        (b"rd.retry=30 rd.timeout=0", None),
        (b"rootwait", None),
        (b"rootwait=40", 40),
        (b"rootwait rd.timeout=30", 30),
        (b"rootwait rd.retry=30", None),
        (b"rootdelay=10", 190),
        (b"rootdelay=10 rd.timeout=5", 15),
        (b"rootdelay=10 rootwait", None),
        (b"rd.timeout=0010", 10),
    ],
)
def test_how_long_to_wait(line: bytes, seconds: int | None) -> None:
    config = boot_config(line)
    assert config.timeout == seconds
    assert config.warnings == ()


@pytest.mark.parametrize(
    "value", [b"abc", b"-1", b"1e999", b"nan", b"inf", b"", b"9" * 400, b"1_0", b"\xd9\xa3", b"0x10"]
)
@pytest.mark.fault("K6")
@pytest.mark.parametrize("name", [b"rd.timeout", b"rd.retry", b"rootdelay", b"rootwait"])
@pytest.mark.fault("K6")
def test_a_time_that_is_none_gives_the_default_and_a_warning(name: bytes, value: bytes) -> None:
    config = boot_config(name + b"=" + value)
    assert config.timeout == 180
    (warning,) = config.warnings
    assert warning.startswith(name.decode() + "=")
    assert "not understood" in warning and len(warning) < 250


@pytest.mark.parametrize(
    ("line", "quiet", "level"),
    [
        (b"quiet", True, 4),
        (b"loglevel=3", True, 3),
        (b"loglevel=7", False, 7),
        (b"quiet loglevel=7", False, 7),
        (b"loglevel=7 quiet", True, 4),
        (b"debug quiet", True, 4),
        (b"quiet debug", False, 10),
        (b"", False, None),
    ],
)
def test_console_level_as_the_kernel_takes_it(line: bytes, quiet: bool, level: int | None) -> None:
    config = boot_config(line)
    assert (config.quiet, config.loglevel) == (quiet, level)


def test_a_log_level_that_is_none() -> None:
    config = boot_config(b"quiet loglevel=loud")
    assert config.quiet
    assert len(config.warnings) == 1


def test_break_points() -> None:
    assert boot_config(b"rd.break").breaks == {"switch-root"}
    assert boot_config(b"rd.break=cmdline rd.break=mount,cleanup").breaks == {"cmdline", "mount", "cleanup"}
    assert boot_config(("rd.break=" + ",".join(BREAK_POINTS)).encode()).breaks == set(BREAK_POINTS)
    config = boot_config(b"rd.break=premount")
    assert not config.breaks
    assert "did you mean pre-mount?" in config.warnings[0]
    assert "initqueue" in only_warning(b"rd.break=xyzzy")


def test_a_break_does_not_bring_back_a_shell_that_was_refused() -> None:
    for line in (b"rd.shell=0", b"rd.shell=0 rd.break=mount", b"rd.shell=0 rd.shell=1"):
        assert strictest("open", *boot_config(line).rescue) == "none"


def test_every_policy_that_is_asked_for_is_kept() -> None:
    assert boot_config(b"rd.pyinit.rescue=password rd.shell").rescue == ("password", "open")
    assert boot_config(b"rd.pyinit.rescue=none", b"rd.pyinit.rescue=open").rescue == ("none", "open")
    assert not boot_config(b"rd.pyinit.rescue=none rd.pyinit.rescue=open").warnings
    assert "none, password, open" in only_warning(b"rd.pyinit.rescue=never")
    assert boot_config(b"rd.pyinit.rescue=never rd.pyinit.rescue").rescue == ()


def test_emergency_action() -> None:
    assert boot_config(b"rd.emergency=reboot").emergency == "reboot"
    assert boot_config(b"rd.emergency=explode").emergency == ""
    assert "poweroff" in only_warning(b"rd.emergency=explode")


def test_drivers() -> None:
    config = boot_config(
        b"rd.driver.pre=virtio-blk,ext4 rd.driver.pre=ext4 rd.driver.post=dummy "
        b"rd.driver.blacklist=nouveau modprobe.blacklist=floppy,pcspkr"
    )
    assert config.drivers_first == ("virtio_blk", "ext4")
    assert config.drivers_late == ("dummy",)
    assert config.drivers_never == {"nouveau", "floppy", "pcspkr"}
    assert config.warnings == ()
    config = boot_config(b"rd.driver.pre=../../evil,ext4")
    assert config.drivers_first == ("ext4",)
    assert "../../evil" in config.warnings[0]


@pytest.mark.parametrize(
    ("value", "node"),
    [(b"ttyS0", "/dev/ttyS0"), (b"/dev/ttyS1", "/dev/ttyS1"), (b"/dev/pts/0", "/dev/pts/0")],
)
def test_device_nodes(value: bytes, node: str) -> None:
    config = boot_config(b"rd.ctty=" + value + b" rd.pyinit.report=" + value)
    assert (config.ctty, config.report) == (node, node)


@pytest.mark.parametrize(
    "value", [b"/etc/passwd", b"../etc/passwd", b"/dev/../etc/passwd", b"/dev/", b"a\x1bb", b"/dev//x"]
)
def test_no_other_file_passes_for_a_terminal(value: bytes) -> None:
    config = boot_config(b"rd.ctty=" + value)
    assert config.ctty == ""
    assert len(config.warnings) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rd.brake", "rd.break"),
        ("rd.braek=mount", "rd.break"),
        ("rd.shel", "rd.shell"),
        ("rd.timeuot=5", "rd.timeout"),
        ("rd.driver.blaklist=x", "rd.driver.blacklist"),
        ("rd.drivers.pre=x", "rd.driver.pre"),
        ("rd.udev.loglevel=debug", "rd.udev.log_level"),
        ("rd.udev.log-level=debug", "rd.udev.log_level"),
        ("rd.pyinit.raport=/dev/ttyS1", "rd.pyinit.report"),
        ("rd.lusk.uuid=1", "rd.luks.uuid"),
        ("rdbreak=mount", "rd.break"),
        ("break=premount", "rd.break"),
    ],
)
def test_a_misspelt_word_gets_one_warning_with_the_right_one(typed: str, meant: str) -> None:
    warning = only_warning(f"root=/dev/vda {typed} {typed} quiet".encode())
    assert warning.startswith(typed.partition("=")[0] + " ")
    assert meant in warning


def test_what_dracut_would_do_and_this_does_not() -> None:
    warning = only_warning(b"rd.iscsi.param=1 rd.iscsi.mp=1 rd.iscsi.param=2")
    assert warning.startswith("rd.iscsi.param, rd.iscsi.mp: ")
    assert "iSCSI" in warning


@pytest.mark.parametrize(
    "word", ["rd.systemd.unit=x", "rd.plymouth=0", "rd.udev.children_max=1", "systemd.x", "ip=dhcp"]
)
def test_words_of_others_are_left_alone(word: str) -> None:
    assert boot_config(word.encode()).warnings == ()


def test_a_line_full_of_nonsense_gets_few_warnings() -> None:
    warnings = boot_config(b" ".join(b"rd.%d" % number for number in range(400))).warnings
    assert len(warnings) < 20
    assert "more" in warnings[-1]


@given(st.lists(LINES, max_size=3))
def test_any_command_lines_are_understood_or_warned_about(lines: list[bytes]) -> None:
    config = boot_config(*lines)
    for warning in config.warnings:
        assert warning.isascii() and warning.isprintable()
    assert config.timeout is None or 0 < config.timeout <= 4_000_000
    assert config.breaks <= set(BREAK_POINTS)
    assert config.ctty == "" or config.ctty.startswith("/dev/")


def test_the_table_has_no_name_twice() -> None:
    names = [name for option in OPTIONS for name in (option.name, *option.other_names)]
    assert len(names) == len(set(names))
    assert not set(names) & set(options._PURPOSE)


def test_every_word_of_the_table_has_an_effect() -> None:
    values = {
        "text": "a",
        "word": None,
        "switch": {"rd.shell": "0", "rd.fstab": "0"},
        "number": "9",
        "list": "a",
        "device": "a",
        "break": "mount",
        "choice": {"rd.emergency": "halt"},
        "policy": "none",
    }
    nothing = boot_config(b"")
    for option in OPTIONS:
        value = values[option.kind]
        if isinstance(value, dict):
            value = value.get(option.name, "1")
        line = option.name if value is None else f"{option.name}={value}"
        changed = boot_config(line.encode()) != nothing
        # The default, what udevd reads by itself, and what says more of another word.
        idle = "ro rd.udev.log_level rd.overlay.reset rd.overlay.readonly loopfstype loopflags".split()
        idle += ["rd.live.dir", "rd.live.squashimg"]
        idle += [f"systemd.verity_root_{name}" for name in ("data", "hash", "options")]
        assert changed == (option.name not in idle), line


def test_the_committed_documentation_is_the_table() -> None:
    assert (
        REPOSITORY / "docs" / "options.md"
    ).read_text() == document(), "run: python3 -m pyinit.config.options > docs/options.md"


@given(st.integers(40, 200))
def test_help_fits_the_terminal(width: int) -> None:
    text = help_text(width)
    assert all(option.name in text and option.default in " ".join(text.split()) for option in OPTIONS)
    assert max(len(line) for line in text.splitlines()) <= width


_SHORT = st.text("abc", max_size=8)


def _plain_distance(left: str, right: str) -> int:
    table = [[i + j for j in range(len(right) + 1)] for i in range(len(left) + 1)]
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (one != other))
            if i > 1 and j > 1 and one == right[j - 2] and left[i - 2] == other:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


@given(_SHORT, _SHORT, st.integers(0, 10))
def test_distance_is_the_textbook_one(left: str, right: str, limit: int) -> None:
    assert distance(left, right, limit) == min(_plain_distance(left, right), limit + 1)


def test_the_closest_is_chosen() -> None:
    assert closest("rd.brake", ["rd.shell", "rd.break", "rd.bread"], 3) == "rd.break"
    assert closest("zzz", ["rd.shell"], 3) is None
