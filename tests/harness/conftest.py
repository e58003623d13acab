from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyinit_qemu import Machine, VmSpec, deb
from pyinit_qemu.kernels import KernelFetchError, fetch_package

FAKE = (sys.executable, str(Path(__file__).with_name("fake_qemu.py")))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Make a machine whose QEMU plays a scenario; started and running unless ``run=False``."""
    made: list[Machine] = []

    def start(scenario: str, *, run: bool = True, disks: Any = (), **options: Any) -> Machine:
        spec = VmSpec("/fake/vmlinuz", "/fake/initrd", append=f"fake={scenario}", disks=disks)
        machine = Machine(spec, program=FAKE, artifacts=tmp_path / f"machine{len(made)}", **options)
        made.append(machine)
        machine.start()
        if run:
            machine.run()
        return machine

    yield start
    for machine in made:
        machine.close()


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static busybox of Debian 12, as it is in many an initramfs."""
    try:
        package = fetch_package("busybox-static", "bookworm")
    except KernelFetchError as error:
        pytest.skip(f"infrastructure: {error}")
    data = next(
        data for parts, data in deb.files(package.path.read_bytes()) if parts[-2:] == ("bin", "busybox")
    )
    path = tmp_path_factory.mktemp("busybox") / "busybox"
    path.write_bytes(data)
    path.chmod(0o755)
    return path
