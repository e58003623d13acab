"""What a whole system says of its own boot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.login import Login, LoginError, parse

SAID = """[    3.349160] Run /init as init process
UserspaceTimestampMonotonic=4188521
InitRDTimestampMonotonic=0
ActiveEnterTimestampMonotonic=16020100
"""


def test_the_three_moments_are_read() -> None:
    seen = parse(SAID)
    assert seen == Login(3_349_160, 4_188_521, 16_020_100)
    assert seen.initramfs == 839_361


@pytest.mark.parametrize("word", ["Run /init", "Userspace", "ActiveEnter"])
def test_a_moment_that_is_missing_is_told(word: str) -> None:
    with pytest.raises(LoginError, match="the system does not tell: "):
        parse("\n".join(line for line in SAID.splitlines() if word not in line))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for said in (text, SAID + text):
        try:
            parse(said)
        except LoginError:
            pass
