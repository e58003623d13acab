"""The one error that a build ends with when it is not the builder's fault."""

from __future__ import annotations


class BuildError(Exception):
    """A build cannot go on. ``hint`` says what the reader can do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
