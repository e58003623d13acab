"""The rescue shell, and what happens when there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from pyinit.config.options import BootConfig
from pyinit.config.sealed import CRYPT, SealedConfig, is_password_hash, strictest
from pyinit.kernel.console import Console
from pyinit.kernel.ending import end_machine
from pyinit.kernel.files import remove_if_there
from pyinit.kernel.process import Children

if TYPE_CHECKING:
    from pyinit.rescue.sessions import Ending

# Tells the commands of the shell which stage it was opened for.
STAGE_VARIABLE = "PYINIT_STAGE"
# Left by the commands that go on with the boot.
CONTINUE_PATH = "/run/pyinit/continue"

# Without a shell the explanation must stay readable for a moment before the screen is gone.
_READING_TIME = 10.0


class Policy:
    """What is allowed when the boot cannot go on: the sealed policy, tightened by the command line."""

    def __init__(self, image: SealedConfig | None, config: BootConfig) -> None:
        self.level = strictest(image.rescue, *config.rescue) if image else "none"
        """One of :data:`pyinit.config.sealed.POLICIES`."""
        self.password = image.password if image else ""
        """The hash that a password is compared with."""
        self.library = image.libraries.get(CRYPT, "") if image else ""
        """The file name of the library that does it."""
        self._shell = image.shell if image else ""
        self._ctty = config.ctty
        self._emergency = config.emergency
        self._panic = config.panic

    @property
    def open(self) -> bool:
        """Whether a person may have a shell, after the password if the level says so."""
        if self.level == "password" and not (is_password_hash(self.password) and self.library):
            return False
        return self.level != "none" and bool(self._shell)

    @property
    def patience(self) -> float:
        """Seconds that ``panic=`` gives a person to begin with the password; 0: for ever."""
        return max(0.0, float(self._panic or 0))

    @property
    def ends(self) -> str:
        """What ``rd.emergency`` asks for when a shell is left that was opened after a failure."""
        return self._emergency

    def run_shell(
        self, stage: str, children: Children, console: Console, *, failed: bool, only: str = ""
    ) -> Ending:
        """Let people work until one of them leaves a shell.

        There is one on every console, or, where somebody gave the password, on the terminal ``only``.
        """
        from pyinit.rescue import sessions

        leaving = f"exit or Ctrl-D goes on with {stage}"
        if failed and self._emergency:
            leaving = f"exit: {self._emergency}, as rd.emergency asks; `pyinit retry` goes on with {stage}"
        console.write(f"pyinit: rescue shell: {leaving}, `pyinit` lists its commands\n")
        environment = {
            # The directory is shown when it is not the root, where a shell begins.
            "PS1": f"pyinit:{stage}${{PWD%/}}# ",
            STAGE_VARIABLE: stage,
            "PYTHONHOME": "/usr",
            "PYTHONPATH": "/usr/lib/pyinit",
        }
        remove_if_there(CONTINUE_PATH)
        if only:
            return sessions.run(self._shell, [sessions.device_behind(only)], environment, children, console)
        terminals = sessions.terminals_of_people(self._ctty, console)
        ending = sessions.run(self._shell, terminals, environment, children, console)
        if ending == "failed" and terminals != ["/dev/console"]:
            ending = sessions.run(self._shell, ["/dev/console"], environment, children, console)
        return ending

    def give_up(self, why: str, console: Console, waited: float = 0.0) -> NoReturn:
        """End the machine as the command line asks: ``rd.emergency=``, else ``panic=``, else power off.

        ``waited``: seconds for which the explanation could be read already.
        """
        action, delay = self._emergency or "poweroff", _READING_TIME
        if not self._emergency and self._panic:
            action, delay = "reboot", self.patience
        delay = max(0.0, delay - waited)
        console.error(f"{why}; {action} in {delay:.0f} s")
        time.sleep(delay)
        end_machine(action)


def loosening(sealed: str, asked: Iterable[str]) -> list[str]:
    """A warning, printable, for each policy that the command line asks for in vain."""
    return [
        f"the command line asks for rescue policy {policy}; what is sealed into the image is stricter"
        for policy in dict.fromkeys(asked)
        if strictest(sealed, policy) != policy
    ]
