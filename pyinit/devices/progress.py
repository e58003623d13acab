"""What a person is told while the boot waits, and the keys that they have meanwhile.

After five seconds one line says what is awaited and what is missing. Then the time that is left is counted
down: in place on a terminal that somebody looks at, the virtual one or one where a key was pressed, and as a
line every ten seconds on all others, which may be logged.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyinit.kernel.console import Console
from pyinit.kernel.countdown import Countdown, KernelMessages
from pyinit.kernel.keyboard import Keyboard

FIRST_NOTICE = 5.0
NEXT_LINE = 10.0
_TICK = 1.0
_VIRTUAL = "/dev/tty"
_SHELL, _LONGER = b"s", b"w"


class Progress:
    """Tells of one wait and listens to the keys; made when the wait has become long."""

    def __init__(self, console: Console, keyboard: Keyboard, longer: float | None, *, shell: bool) -> None:
        """``longer``: the seconds that a key adds, None where there is no deadline.

        ``shell``: a person may have one, so keys are read.
        """
        self._console = console
        self._keyboard = keyboard
        self._longer = longer
        self._messages = KernelMessages()
        self._countdown = Countdown(console, self._messages)
        self._watched = {path for path in console.screens() if _is_virtual(path)}
        self._told = False
        self._next_line = 0.0
        self.due = 0.0
        """The moment (``time.monotonic``) at which :meth:`tell` has something to say."""
        self.shell_wanted = False
        self.seconds_wanted = 0.0
        """Asked for on top of the deadline, not granted yet."""
        if shell:
            # Who asks a question gets the keys first.
            keyboard.listen(self, behind=True)

    def end(self) -> None:
        """The wait is over: the countdown goes, the keys are the terminals' again."""
        self._countdown.clear()
        self._messages.close()
        self._keyboard.leave(self)

    def tell(
        self, moment: float, what: str, waited: float, left: float | None, missing: Sequence[str]
    ) -> None:
        """Say how it stands; ``what`` and ``missing`` are printable."""
        text = state(what, waited, left, missing)
        if not self._told:
            self._told = True
            self._console.notice(f"{text}{self._hint()}")
            self._next_line = moment + NEXT_LINE
        elif moment >= self._next_line:
            self._next_line = moment + NEXT_LINE
            if self._console.last_line in (None, self._countdown):
                for path in self._console.screens():
                    if path not in self._watched:
                        self._console.write_to(path, f"pyinit: {text}\n".encode("ascii", "backslashreplace"))
        self.due = self._next_line
        if self._watched:
            # The whole second is what is shown, so the next one is when it changes.
            self._countdown.show(countdown(what, waited, left, self._hint()), tuple(sorted(self._watched)))
            self.due = min(self.due, moment + _TICK - waited % _TICK)

    def typed(self, terminal: str, data: bytes | bytearray) -> None:
        """Take a key. Several bytes at once are no key that a person pressed, but noise of a line."""
        self._watched.add(terminal)
        self.due = 0.0
        if len(data) != 1:
            return  # A passphrase that is typed ahead is not copied.
        key = bytes(data).lower()
        if key == _SHELL:
            self.shell_wanted = True
        elif key == _LONGER and self._longer is not None:
            self.seconds_wanted += self._longer

    def _hint(self) -> str:
        if not self._keyboard.hears(self):
            return ""  # No shell is allowed, or keys are parts of an answer.
        longer = "" if self._longer is None else f", w waits {self._longer:.0f} s longer"
        return f"; keys: s opens a shell{longer}"


def state(what: str, waited: float, left: float | None, missing: Sequence[str]) -> str:
    """The line that says what is awaited."""
    limit = "for ever (rootwait)" if left is None else f"{left:.0f} s more"
    return "; ".join((f"waiting for {what} since {int(waited)} s, {limit}", *missing))


def countdown(what: str, waited: float, left: float | None, hint: str) -> str:
    """The line that is counted down: what must be seen comes first, for a long one is cut."""
    limit = f"{int(waited)} s" if left is None else f"{left:.0f} s left"
    return f"pyinit: {limit}{hint}; {what}"


def _is_virtual(path: str) -> bool:
    return path.removeprefix(_VIRTUAL).isdigit()
