"""A root that is checked against a hash: the words for it, and what is done when devices appear."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.options import boot_config
from pyinit.config.verity import VerityWords, halves, normal_hash
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.storage.verity import Verity
from pyinit_image import features
from pyinit_image.features.base import Target

HASH = "00112233445566778899aabbccddeeff" + "ffeeddccbbaa99887766554433221100"


def test_words() -> None:
    line = (
        f"roothash={HASH} systemd.verity_root_data=LABEL=a systemd.verity_root_hash=/dev/b "
        "systemd.verity_root_options=check-at-most-once,hash-offset=4096"
    )
    config = boot_config(line.encode())
    assert config.verity == VerityWords(HASH, "LABEL=a", "/dev/b", ("check-at-most-once", "hash-offset=4096"))
    assert config.warnings == ()


def test_it_can_be_switched_off() -> None:
    for word in ("systemd.verity=0", "rd.systemd.verity=no"):
        assert boot_config(f"roothash={HASH} {word}".encode()).verity is None


def test_the_halves_name_the_partitions() -> None:
    data, hashes = halves(HASH)
    assert data == "00112233-4455-6677-8899-aabbccddeeff"
    assert hashes == "ffeeddcc-bbaa-9988-7766-554433221100"


@given(st.text())
def test_any_text_is_a_hash_or_refused(text: str) -> None:
    found = normal_hash(text)
    assert found in ("", text.lower())
    if not found:
        with pytest.raises(BootError) as caught:
            Verity(VerityWords(text), cast(Any, None), cast(Any, None), cast(Any, None))
        assert caught.value.code == "E-CMDLINE"
        assert caught.value.cause.isprintable() and caught.value.cause.isascii()


@given(st.text(st.characters(exclude_characters="\0\n")))
def test_any_options_are_taken_or_warned_about(text: str) -> None:
    line = f'roothash={HASH} "systemd.verity_root_options={text}"'.encode("utf-8", "surrogatepass")
    config = boot_config(line)
    assert config.verity is not None
    assert all(not option.startswith("-") for option in config.verity.options)
    assert all(warning.isascii() and warning.isprintable() for warning in config.warnings)


def view(name: str, uuid: str) -> DeviceView:
    properties = {"ID_PART_ENTRY_UUID": uuid}
    return DeviceView(
        f"/sys/{name}", name, "block", "partition", f"/dev/{name}", (8, 1), (), properties, True
    )


def test_what_is_missing_is_told() -> None:
    data, hashes = halves(HASH)
    verity = Verity(VerityWords(HASH), cast(Any, None), cast(Any, None), cast(Any, None))
    verity.react([view("sda1", data)])
    assert verity.waits_for() == (f"no device with the hashes of the root, PARTUUID={hashes}",)


def test_a_copy_is_not_guessed_about() -> None:
    data, _ = halves(HASH)
    verity = Verity(VerityWords(HASH), cast(Any, None), cast(Any, None), cast(Any, None))
    with pytest.raises(BootError) as caught:
        verity.react([view("sda1", data), view("sdb1", data)])
    assert caught.value.code == "E-AMBIG"
    assert len(caught.value.found) == 2


@pytest.mark.parametrize(("line", "wanted"), [(f"roothash={HASH}", True), ("quiet", False)])
def test_an_image_has_the_program_when_its_own_line_asks_for_it(line: str, wanted: bool) -> None:
    target = Target(cast(Any, None), cast(Any, None), "generic", "open", line)
    assert bool(features.Verity().wanted(target)) == wanted
