"""The pytest plugin, in test runs of its own over a QEMU that plays scenarios."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyinit_qemu import MachineError
from pyinit_qemu.slots import Slots

pytest_plugins = ["pytester"]

FAKE = Path(__file__).with_name("fake_qemu.py")


@pytest.fixture
def run_folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test folder in which ``qemu-system-x86_64`` is the fake."""
    qemu = pytester.path / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *earlyprintk*) set -- "$@" -append fake=no-root;; esac\n'
        f'exec {sys.executable} {FAKE} "$@"\n'
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYINIT_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("PYINIT_QEMU_ACCEL", "tcg")
    for name in ("PYTEST_XDIST_WORKER", "PYINIT_TEST_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    (pytester.path / "vmlinuz").write_bytes(b"kernel")
    # A folder with a configuration is the root of its tests, whatever lies above it.
    pytester.makeini("[pytest]")
    pytester.makeconftest(
        """
        import pytest
        from pathlib import Path

        @pytest.fixture(scope="session")
        def probe_kernel():
            return Path("vmlinuz").absolute()
        """
    )
    return pytester


def write(folder: pytest.Pytester, scenario: str, body: str, fixture: str = "boot") -> None:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    folder.makepyfile(
        f"def test_it({fixture}, probe_kernel):\n"
        f"    vm = {fixture}(kernel=probe_kernel, initrd=None, append='fake={scenario}')\n{lines}\n"
    )


def artifacts(folder: pytest.Pytester) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.glob("build/boot/*/*"))


def test_a_boot_that_passes_leaves_nothing(run_folder: pytest.Pytester) -> None:
    write(run_folder, "pass", "assert vm.finish(60).ok")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["pyinit-qemu: accelerator tcg, proven by*"])
    result.stdout.fnmatch_lines(["pyinit-qemu: accelerator tcg, timeouts x*: asked for"])
    assert artifacts(run_folder) == []


def test_artifacts_can_be_kept(run_folder: pytest.Pytester) -> None:
    write(run_folder, "pass", "assert vm.finish(60).ok")
    run_folder.runpytest_subprocess("--pyinit-keep").assert_outcomes(passed=1)
    assert len(artifacts(run_folder)) == 6


def test_a_wait_that_fails_explains_itself_and_keeps_the_artifacts(run_folder: pytest.Pytester) -> None:
    write(run_folder, "panic", "vm.expect('login:', 60)")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*PANIC: the kernel panicked: Kernel panic - not syncing*", "*replay: *"])
    folder = "build/boot/" + "test_a_wait_that_fails_explains_itself_and_keeps_the_artifacts.py_test_it"
    assert f"{folder}/console.log" in artifacts(run_folder)
    assert f"{folder}/verdict.txt" in artifacts(run_folder)


def test_an_assertion_that_fails_shows_the_console(run_folder: pytest.Pytester) -> None:
    write(run_folder, "pass", "vm.finish(60).check()\nassert False")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*console of machine 1*", "*Linux version 0.0.0-fake*", "*Debian login:*"])


def test_a_machine_must_be_waited_for(run_folder: pytest.Pytester) -> None:
    write(run_folder, "hang", "pass")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ended without waiting for machine 1: call finish()*"])


def test_one_machine_for_a_module(run_folder: pytest.Pytester) -> None:
    run_folder.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def seen(boot_module, probe_kernel):
            vm = boot_module(kernel=probe_kernel, initrd=None, append="fake=pass")
            frame = vm.wait_frame("witness", 60)
            vm.finish(60).check()
            return frame

        def test_pid(seen):
            assert seen["pid"] == 1

        def test_fails(seen):
            assert seen["pid"] == 2
        """
    )
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*console of machine 1*"])
    assert any("@module/console.log" in name for name in artifacts(run_folder))


def test_paused_machines_and_specifications(run_folder: pytest.Pytester) -> None:
    run_folder.makepyfile(
        """
        from pyinit_qemu import VmSpec

        def test_it(boot, probe_kernel):
            spec = VmSpec(probe_kernel, None, append="fake=pass")
            vm = boot(spec, paused=True, memory=256 << 20)
            assert vm.console == ""
            assert vm.spec.memory == 256 << 20
            vm.run()
            assert vm.finish(60).ok
            second = boot(spec)
            assert second.finish(60).ok
            assert second.folder.name == "machine2"
        """
    )
    run_folder.runpytest_subprocess().assert_outcomes(passed=1)


def test_under_xdist(run_folder: pytest.Pytester) -> None:
    run_folder.makepyfile(
        """
        import pytest

        @pytest.mark.boot
        @pytest.mark.parametrize("number", range(4))
        def test_it(boot, probe_kernel, number):
            assert boot(kernel=probe_kernel, initrd=None, append="fake=pass").finish(60).ok
        """
    )
    result = run_folder.runpytest_subprocess("-n2")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["pyinit-qemu: accelerator tcg, timeouts x*: asked for"])
    assert artifacts(run_folder) == []


def test_a_broken_host_is_an_error_that_says_so(run_folder: pytest.Pytester) -> None:
    write(run_folder, "pass", "assert vm.finish(60).ok")
    (run_folder.path / "bin" / "qemu-system-x86_64").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*AcceleratorError: not even TCG boots*broken*"])


def test_a_host_that_broke_since_it_was_proven_is_one_reason_for_all(run_folder: pytest.Pytester) -> None:
    write(run_folder, "pass", "assert vm.finish(60).ok")
    run_folder.runpytest_subprocess().assert_outcomes(passed=1)
    run_folder.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_it(boot, probe_kernel, number):
            boot(kernel=probe_kernel, initrd=None, append="fake=pass").finish(60).check()
        """
    )
    (run_folder.path / "bin" / "qemu-system-x86_64").write_text(
        "#!/bin/sh\ncase $1 in --version) exec cat version;; esac\necho no room >&2; exit 1\n"
    )
    version = subprocess.run([sys.executable, FAKE, "--version"], capture_output=True, text=True).stdout
    (run_folder.path / "version").write_text(version)
    for words in ([], ["-n2"]):
        result = run_folder.runpytest_subprocess(*words)
        result.assert_outcomes(errors=3)
        result.stdout.fnmatch_lines(["infrastructure: this host boots no machine now*no room*"])
        result.stdout.no_fnmatch_line("*Traceback*")


def test_the_slowest_boots_are_listed_and_are_in_junits_file(run_folder: pytest.Pytester) -> None:
    run_folder.makepyfile(
        """
        import pytest

        @pytest.mark.boot
        @pytest.mark.parametrize("number", range(12))
        def test_it(boot, probe_kernel, number):
            assert boot(kernel=probe_kernel, initrd=None, append="fake=pass").finish(60).ok

        def test_without_a_machine():
            pass
        """
    )
    for words in ([], ["-n2"]):
        result = run_folder.runpytest_subprocess("--junitxml=junit.xml", *words)
        result.assert_outcomes(passed=13)
        result.stdout.fnmatch_lines(["pyinit-qemu: 12 tests booted for * s; the slowest:"])
        listed = [line for line in result.outlines if line.endswith("]") and " s  test_" in line]
        times = [float(line.split()[0]) for line in listed]
        assert len(listed) == 10 and times == sorted(times, reverse=True)
        properties = (run_folder.path / "junit.xml").read_text()
        assert properties.count('<property name="pyinit_accelerator" value="tcg"') == 12
        assert properties.count('<property name="pyinit_boot_seconds" value="') == 12


def test_what_a_test_needs_is_a_skip_that_names_it(run_folder: pytest.Pytester) -> None:
    run_folder.makepyfile(
        """
        import pytest

        @pytest.mark.needs_tool("sh", "no-such-tool")
        def test_tool(boot): pass

        @pytest.mark.needs_tool("sh")
        def test_shell(): pass

        @pytest.mark.needs_kvm
        def test_kvm(boot): pass
        """
    )
    result = run_folder.runpytest_subprocess("-rs", "--strict-markers")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*no-such-tool is not installed", "*needs KVM: asked for"])


@pytest.mark.parametrize(("words", "reason"), [(["-n2"], "use it with -n0"), ([], "needs a terminal")])
def test_a_shell_needs_a_terminal_for_itself(
    run_folder: pytest.Pytester, words: list[str], reason: str
) -> None:
    write(run_folder, "pass", "pass")
    result = run_folder.runpytest_subprocess("--pyinit-shell", *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --pyinit-shell*{reason}*"])


def test_the_terminal_is_given_to_the_machine_that_failed(run_folder: pytest.Pytester) -> None:
    write(run_folder, "echo", "vm.expect('ready', 60)\nassert False")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "--pyinit-shell", "-p", "no:cacheprovider"])
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 65536)

    until(b"Ctrl-A X ends the machine, Ctrl-A Ctrl-A types a Ctrl-A.")
    os.write(terminal, b"Ada\r")
    until(b"\nAda")
    os.write(terminal, b"\x01x")
    until(b"1 failed")
    # What is still written must be read, or the run could not end.
    while select.select([terminal], [], [], 60)[0]:
        try:
            os.read(terminal, 65536)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert b"test_it failed; the last lines of its machine:" in seen


def test_without_a_probe_kernel(run_folder: pytest.Pytester) -> None:
    run_folder.makeconftest("")
    run_folder.makepyfile("def test_it(boot): pass")
    result = run_folder.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a session fixture `probe_kernel` in conftest.py*"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["plain", "xdist"])
def test_killing_the_test_run_leaves_no_qemu(
    run_folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, workers: list[str]
) -> None:
    scratch = run_folder.mkdir("scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    pid_file = run_folder.path / "pid"
    write(
        run_folder,
        "stubborn",
        f"import os, pathlib\npathlib.Path({str(pid_file)!r} + '.new').write_text(str(vm.pid))\n"
        f"os.rename({str(pid_file)!r} + '.new', {str(pid_file)!r})\nvm.expect('never', 600)",
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell starts what runs in its background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        _until(pid_file.exists)
        qemu = os.pidfd_open(int(pid_file.read_text()))
    finally:
        run.send_signal(how)
    run.wait(60)
    assert select.select([qemu], [], [], 60)[0], "QEMU runs on"
    os.close(qemu)
    # The temporary folder of a killed run goes when the next machine starts.
    write(run_folder, "pass", "assert vm.finish(60).ok")
    run_folder.runpytest_subprocess().assert_outcomes(passed=1)
    assert list(scratch.iterdir()) == []


def _until(true: object) -> None:
    deadline = time.monotonic() + 60
    assert callable(true)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_places_are_shared_by_processes_and_freed_by_their_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pyinit_qemu.slots import Slots\n"
        "Slots(1, Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    slots = Slots(1, tmp_path)
    with pytest.raises(MachineError, match=f"all 1 places .* by processes {holder.pid}"):
        slots.acquire(timeout=0.0)
    holder.kill()
    holder.communicate()
    slots.acquire(timeout=60)
    slots.acquire(timeout=0)
    slots.release()
    with pytest.raises(MachineError):
        Slots(1, tmp_path).acquire(timeout=0)
    slots.release()
    Slots(1, tmp_path).acquire(timeout=60)
