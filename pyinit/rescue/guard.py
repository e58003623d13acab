"""What stands between a failure and the end of PID 1: it is explained, kept, and the policy decides."""

from __future__ import annotations

import os
from math import inf
from typing import TYPE_CHECKING, Any

from pyinit import switch_root
from pyinit.context import Context
from pyinit.errors import BootError
from pyinit.kernel.files import is_mounted, remove_if_there, write_if_possible
from pyinit.record import PATH as RECORD_PATH
from pyinit.record import now
from pyinit.rescue.explain import FAILURE_PATH, internal_error, render
from pyinit.rescue.shell import CONTINUE_PATH, Policy
from pyinit.root.mount import SYSROOT
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.rescue.password import Password, Verdict
    from pyinit.rescue.sessions import Ending

# Seconds that setting the layout of the keyboard may take.
KEYMAP_PATIENCE = 5.0
# So often in a row a failure may find no console with somebody at it.
MAX_NOBODY_THERE = 3


class Guard:
    """Deals with failures and break points."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._nobody_there = 0
        self._password: Password | None = None

    def stop_before(self, stage: str) -> None:
        """Open the shell that rd.break asks for, if one is allowed."""
        if not self.policy().open:
            self._context.console.warning(f"rd.break={stage} is ignored: no shell is allowed here")
            return
        self._stop(stage, f"stopped before {stage}, as rd.break asks")

    def stop_in(self, stage: str) -> None:
        """Open the shell that a key asked for while the boot waited, if one is allowed."""
        if self.policy().open:
            self._stop(stage, f"stopped in {stage}, as a key asked for it")

    def _stop(self, stage: str, why: str) -> None:
        context = self._context
        context.console.notice(why)
        self.write_record()
        remove_if_there(FAILURE_PATH)
        self._open_shell(stage, asked_for=True)

    def fail(self, stage: str, exception: BaseException, entry: dict[str, Any] | None = None) -> None:
        """Explain a failure, keep it for a report, then let the policy decide; returns to try again.

        ``entry`` is the stage's in the boot record, which ends here.
        """
        context = self._context
        console = context.console
        try:
            if entry:
                entry["end"] = now()
            error = exception if isinstance(exception, BootError) else internal_error(exception)
            lines = render(error, stage)
            for line in lines:
                console.error(line)
            self.write_record()
            text = "".join(f"{line}\n" for line in lines).encode("ascii", "backslashreplace")
            write_if_possible(FAILURE_PATH, text)
            if context.report:
                context.report.send("failure", {"code": error.code, "stage": stage, "lines": lines})
            if not isinstance(exception, switch_root.Stranded):
                try:
                    self.write_report(lines)
                except OSError as full:
                    console.warning(f"the report cannot be written: {full.strerror}")
        except BaseException as second:
            try:
                console.write(f"pyinit: E-INTERNAL {type(second).__name__} while explaining a failure\n")
            except BaseException:
                pass  # It may be the console that failed.
        policy = self.policy()
        if isinstance(exception, switch_root.Stranded):
            policy.give_up("the rescue shell went with the initramfs", console)
        if not policy.open:
            self._close_volumes(policy)
            policy.give_up("no rescue shell is allowed here", console)
        ending = self._open_shell(stage, asked_for=False)
        if ending == "failed":
            policy.give_up("no rescue shell can be started", console)
        self._nobody_there = self._nobody_there + 1 if ending == "nobody" else 0
        if self._nobody_there == MAX_NOBODY_THERE:
            policy.give_up("nobody answers: the rescue shell ends at once", console)
        if ending == "left" and policy.ends and not self._goes_on():
            policy.give_up("the rescue shell was left", console)

    def _goes_on(self) -> bool:
        """Whether a person did something for the boot to go on with."""
        by_hand = is_mounted(SYSROOT) and not self._context.mounted_here
        return os.path.exists(CONTINUE_PATH) or self._context.changed_command_line() or by_hand

    def _open_shell(self, stage: str, *, asked_for: bool) -> Ending:
        """The one way to a shell.

        First what was opened with a secret is closed, then whoever is there shows that they may have it, and
        has it alone: who sits at another console has shown nothing. A shell that a person ``asked_for`` can
        be done without.
        """
        entry: dict[str, object] = {}
        try:
            entry = self._context.record.add("shells", stage=stage, start=now(), end=0)
        except BaseException:
            pass  # Who needs a shell can do without its line in the timeline.
        try:
            return self._let_people_work(stage, asked_for=asked_for)
        finally:
            try:
                entry["end"] = now()
            except BaseException:
                pass

    def _let_people_work(self, stage: str, *, asked_for: bool) -> Ending:
        context, policy = self._context, self.policy()
        console = context.console
        self._close_volumes(policy)
        try:
            context.keymap.load(KEYMAP_PATIENCE)
        except BaseException:
            pass  # A shell with another layout is better than none.
        only = ""
        if policy.level == "password":
            verdict, only = self._ask_password(policy, asked_for)
            if verdict == "left" or (verdict == "nobody" and asked_for):
                console.notice("no shell is opened; the boot goes on")
                return "left"
            if verdict == "nobody":
                why = f"nobody has pressed a key for {policy.patience:.0f} s, which panic= asks for"
                policy.give_up(why, console, policy.patience)
            if verdict != "right":
                policy.give_up("the password of the rescue shell was not given", console)
        # The shells have the terminals for themselves.
        context.keyboard.close()
        ending = self._run_shell(policy, stage, failed=not asked_for, only=only)
        context.keyboard.reopen()
        return ending

    def _close_volumes(self, policy: Policy) -> None:
        """Leave no volume open and no secret in memory; what cannot be closed allows no shell."""
        try:
            self._context.close_volumes()
        except BaseException as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            policy.give_up(
                f"what was opened with a secret stays open ({printable(why)})", self._context.console
            )

    def _ask_password(self, policy: Policy, asked_for: bool) -> tuple[Verdict, str]:
        context = self._context
        if self._password is None:
            from pyinit.rescue.password import Password

            self._password = Password(context.prompt, context.keyboard, context.children, context.console)
        limit = policy.patience or inf
        return self._password.ask(policy.password, policy.library, may_leave=asked_for, limit=limit)

    def _run_shell(self, policy: Policy, stage: str, *, failed: bool, only: str) -> Ending:
        context = self._context
        end = None
        if context.watchdog:
            from pyinit.rescue.sessions import terminals_of_people

            terminals = terminals_of_people(context.config.ctty, context.console)
            end = context.watchdog.attend(terminals, context.console.notice)
        try:
            return policy.run_shell(stage, context.children, context.console, failed=failed, only=only)
        except BootError as error:  # There is no room for another process.
            context.console.error(f"{error.code} {error.cause}")
            return "failed"
        finally:
            if end:
                end()

    def policy(self) -> Policy:
        """What is allowed here: the sealed policy and the command line together."""
        return Policy(self._context.sealed, self._context.config)

    def write_record(self) -> None:
        """Keep the boot record as it is now; when there is no room, it is worth more than the log."""
        record = self._context.record
        if not write_if_possible(RECORD_PATH, record.encode()):
            self._context.console.empty_log()
            if not write_if_possible(RECORD_PATH, record.encode()):
                write_if_possible(RECORD_PATH, record.encode(messages=False))

    def write_report(self, lines: list[str]) -> None:
        """Write the report of a failure; OSError when there is no room for it."""
        import json

        from pyinit.rescue.report import compose, write_report

        context = self._context
        write_report(compose(lines, json.loads(context.record.encode()), context.known(), context.sealed))
