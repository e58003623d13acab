"""The one error type that people see, and its stable codes."""

from __future__ import annotations

CODES: dict[str, str] = {
    "E-IMAGE": "the initramfs itself is incomplete or its configuration cannot be read",
    "E-NOROOT": "no root= was given",
    "E-CMDLINE": "a kernel command line word that the boot depends on cannot be understood",
    "E-UDEV": "udevd cannot be started or does not stay alive",
    "E-DEV": "a device that the boot needs did not appear",
    "E-AMBIG": "several devices match one specification",
    "E-LVM": "logical volumes cannot be activated",
    "E-MD": "an array cannot be assembled",
    "E-FSCK": "a file system has errors, or its check did not come to an end",
    "E-UNLOCK": "an encrypted volume could not be unlocked",
    "E-LUKS": "an encrypted volume cannot be opened for another reason than its key",
    "E-LUKS-CIPHER": "the header of an encrypted volume says that it is not encrypted",
    "E-OOM-KDF": "there is not enough memory to derive the key of an encrypted volume",
    "E-VERITY": "the root that is to be checked against a hash cannot be opened, or is another one",
    "E-RESUME": "a hibernated system cannot be resumed any more without destroying what was changed since",
    "E-MOUNT": "a file system cannot be mounted",
    "E-IO": "the root file system was mounted, and now its device does not answer",
    "E-USR": "/usr, which is a file system of its own, cannot be mounted",
    "E-ROOTFS": "what was mounted does not look like a root file system",
    "E-INIT": "the new root has no init that can be executed",
    "E-HOOK": "a boot hook of the machine's owner failed",
    "E-SWITCH": "the switch to the new root failed",
    "E-HANG": "the kernel does not come back from a call, because a device does not answer",
    "E-FORK": "no process can be started",
    "E-MEM": "there is too little memory",
    "E-INTERNAL": "a defect of pyinit itself",
}


class BootError(Exception):
    """A failure explained: what failed, what was tried, what is there instead, what to do.

    ``code`` is a key of :data:`CODES`; ``cause`` one sentence; the other three are lines of text, each
    already free of control characters (:func:`pyinit.text.printable`).
    """

    def __init__(
        self,
        code: str,
        cause: str,
        *,
        tried: tuple[str, ...] = (),
        found: tuple[str, ...] = (),
        advice: tuple[str, ...] = (),
    ) -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code}")
        super().__init__(f"{code} {cause}")
        self.code = code
        self.cause = cause
        self.tried = tried
        self.found = found
        self.advice = advice
