"""The configuration of a build: which file wins, and errors that name file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import cli, configuration
from pyinit_image.configuration import OPTIONS, parse
from pyinit_image.errors import BuildError
from pyinit_image.sysroot import Sysroot


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/usr/lib below /etc below the command line; lists add up; a drop-in hides its namesake."""
    write(
        tmp_path,
        {
            "usr/lib/pyinit/image.toml": 'mode = "list"\nmodule = ["a"]\ncompress = "xz"\n',
            "usr/lib/pyinit/image.toml.d/10-x.toml": 'module = ["hidden"]\n',
            "usr/lib/pyinit/image.toml.d/20-y.toml": 'module = ["b"]\n',
            "etc/pyinit/image.toml": 'compress = "gzip"\nrescue = "none"\n',
            "etc/pyinit/image.toml.d/10-x.toml": '\nmodule = ["c"]\n',
            "etc/pyinit/image.toml.d/notes.txt": "not read",
        },
    )
    assert (
        cli.main(["config", "--json", "--sysroot", str(tmp_path), "--rescue", "open", "--module", "d"]) == 0
    )
    table = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in table["module"]] == ["a", "b", "c", "d"]
    assert table["module"][2]["from"] == f"{tmp_path}/etc/pyinit/image.toml.d/10-x.toml line 2"
    assert table["compress"] == {"value": "gzip", "from": f"{tmp_path}/etc/pyinit/image.toml line 1"}
    assert table["rescue"] == {"value": "open", "from": "--rescue"}
    assert table["mode"]["value"] == "list"
    assert table["cmdline"] == {"value": "", "from": "default"}
    assert cli.main(["config", "--sysroot", str(tmp_path)]) == 0
    assert f'rescue = "none"  # {tmp_path}/etc/pyinit/image.toml line 2\n' in capsys.readouterr().out


def test_one_file_instead_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"etc/pyinit/image.toml": "broken", "mine.toml": 'mode = "list"\n'})
    assert cli.main(["config", "--sysroot", str(tmp_path), "--config", str(tmp_path / "mine.toml")]) == 0
    assert 'mode = "list"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            'cmdline = """\nmod = 1\n"""\nmodul = ["x"]\n',
            "f line 4: the key modul is not known; did you mean " "module?",
            "Known: kernel-version",
        ),
        ('sysroot = "/x"\n', "f line 1: the key sysroot is not known", "Known: "),
        ('\nmode = "lst"\n', "f line 2: mode cannot be lst", "Known: generic"),
        ('module = "ext4"\n', "f line 1: module is a list of strings", 'Write: module = ["..."]'),
        ("compress = 1\n", "f line 1: compress is a string", 'Write: compress = "..."'),
        ("quiet = 1\n", "f line 1: quiet is true or false", "Write: quiet = true"),
        ('include = ["x"]\n', "f line 1: include: x is not an absolute path", "from the top"),
        ("[build]\nmode = 1\n", "f line 1: the key build is not known", "Known: "),
        ("a = \n", "f: not TOML: Invalid value (at line 1", "Lines look like this"),
        ('cmdline = "\\u0000"\n', "f line 1: cmdline has a zero byte", "Remove it."),
        ("[" * 5000, "f: not TOML", "Lines look like this"),
    ],
)
def test_errors(text: str, message: str, hint: str) -> None:
    with pytest.raises(BuildError) as caught:
        parse(text.encode(), "f")
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(BuildError, match="f line 2: not UTF-8"):
        parse(b'mode = "list"\n\xff', "f")
    with pytest.raises(BuildError, match="no configuration file"):
        parse(b"#" * (configuration.MAX_SIZE + 1), "f")


def test_files_that_a_target_names_are_files_of_the_target(tmp_path: Path) -> None:
    write(tmp_path, {"etc/key": "k", "etc/pyinit/image.toml": 'include = ["/etc/key", "/etc/key:/k"]\n'})
    (layer,) = configuration.read(Sysroot(tmp_path))
    values = [setting.value for setting in layer["include"]]
    assert values == [f"{tmp_path}/etc/key:/etc/key", f"{tmp_path}/etc/key:/k"]
    (tmp_path / "etc/key").unlink()
    with pytest.raises(BuildError, match="include: /etc/key is missing in"):
        configuration.read(Sysroot(tmp_path))


KEYS = st.sampled_from([option.name for option in OPTIONS]) | st.text(max_size=8)


@given(st.dictionaries(KEYS, st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=4))
def test_any_document_is_a_configuration_or_one_error(document: dict[str, object]) -> None:
    # JSON strings, numbers, booleans and lists are TOML, but for the escapes of characters beyond U+FFFF.
    lines = [
        f"{json.dumps(key, ensure_ascii=False)} = {json.dumps(value)}" for key, value in document.items()
    ]
    _parse("\n".join(lines).encode("utf-8", "replace"))


@given(st.binary(max_size=60) | st.text(alphabet="[]{}=.\"'#\\\n amode1", max_size=60).map(str.encode))
def test_any_bytes_are_a_configuration_or_one_error(data: bytes) -> None:
    _parse(data)


def _parse(data: bytes) -> None:
    try:
        configuration.merge([parse(data, "f")])
    except BuildError as error:
        assert str(error).isprintable() and error.hint.isprintable()


def test_the_reference_is_that_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs/builder.md").read_text()
    assert configuration.reference() in text
