"""The first program: it runs here as it runs as process 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyinit_image import trampoline

pytestmark = pytest.mark.effects

#: What the interpreter is given here instead of PID 1: it tells what it was started with.
REPORT = "import json,os,sys;print(json.dumps([sys.argv[1:],sorted(map(list,os.environ.items()))]))"
HOSTILE = {
    "LD_PRELOAD": "/nonexistent.so",
    "LD_LIBRARY_PATH": "/nonexistent",
    "LD_DEBUG": "help",
    "LD_TRACE_LOADED_OBJECTS": "1",
    "LD_SHOW_AUXV": "1",
    "PYTHONHOME": "/nonexistent",
    "PYTHONPATH": "/nonexistent",
    "PYTHONINSPECT": "1",
    "PYTHONMALLOC": "nonsense",
    "PYTHONHASHSEED": "nonsense",
    "PYTHONIOENCODING": "nonsense",
    "PYTHONPLATLIBDIR": "nonsense",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONVERBOSE": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONDEVMODE": "1",
    "GCONV_PATH": "/nonexistent",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "MALLOC_PERTURB_": "1",
    "PATH": "/nonexistent",
    "HOME": "nonsense",
    "LANG": "xx_XX.nonsense",
    "LC_ALL": "xx_XX.nonsense",
    "TERM": "nonsense",
}
ENVIRONMENT = {**trampoline.ENVIRONMENT, "PYTHONHOME": sys.base_prefix}
WORDS = st.binary(max_size=30).filter(lambda word: b"\0" not in word)
Program = Callable[..., Path]


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trampoline") / "init"
    python = os.path.realpath(sys.executable)
    path.write_bytes(
        trampoline.assemble((python, *trampoline.OPTIONS, "-c", REPORT), ENVIRONMENT, "it failed\n")
    )
    path.chmod(0o755)
    return path


def start(init: Path, arguments: list[bytes], environment: dict[bytes, bytes]) -> tuple[list[str], object]:
    done = subprocess.run(
        arguments,
        executable=init,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    argv, env = json.loads(done.stdout)
    return argv, dict(env)


def test_a_hostile_environment_becomes_arguments(init: Path) -> None:
    hostile = {name.encode(): value.encode() for name, value in HOSTILE.items()}
    argv, environment = start(init, [b"/init", b"splash", b"3"], hostile)
    assert argv == [*(f"{name}={value}" for name, value in HOSTILE.items()), "", "/init", "splash", "3"]
    assert environment == ENVIRONMENT


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arguments=st.lists(WORDS, min_size=1, max_size=40),
    environment=st.dictionaries(WORDS.filter(lambda word: word and b"=" not in word), WORDS, max_size=40),
)
def test_any_words_arrive_as_they_were(
    init: Path, arguments: list[bytes], environment: dict[bytes, bytes]
) -> None:
    argv, seen = start(init, arguments, environment)
    words = [name + b"=" + value for name, value in environment.items()]
    assert [os.fsencode(word) for word in argv] == [*words, b"", *arguments]
    assert seen == ENVIRONMENT


def test_many_words(init: Path) -> None:
    argv, _ = start(init, [b"x"] * 5000, {b"n%d" % number: b"v" for number in range(5000)})
    assert len(argv) == 10001


def test_a_missing_interpreter_is_said(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(trampoline.build("/usr/bin/python3.nowhere"))
    init.chmod(0o755)
    done = subprocess.run([init], capture_output=True, check=False)
    assert done.returncode == 127
    assert done.stderr == b"pyinit: E-IMAGE cannot execute /usr/bin/python3.nowhere; build the image again\n"


def test_it_is_small() -> None:
    assert len(trampoline.build("/usr/bin/python3.11")) < 1024
