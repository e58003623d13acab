"""How far two words are apart, to name what a misspelt one was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def distance(left: str, right: str, limit: int) -> int:
    """Count the characters to insert, delete, replace or swap with their neighbour to make the two equal.

    (The optimal string alignment distance.) Above ``limit`` counting stops: the result is ``limit + 1``.
    """
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    start = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        start += 1
    left, right = left[start:], right[start:]
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, one in enumerate(left):
        new = [i + 1]
        for j, other in enumerate(right):
            cost = min(row[j] + (one != other), row[j + 1] + 1, new[j] + 1)
            if i and j and one == right[j - 1] and left[i - 1] == other:
                cost = min(cost, before[j - 1] + 1)
            new.append(cost)
        if min(new) > limit and min(row) > limit:
            return limit + 1
        before, row = row, new
    return min(row[-1], limit + 1)


def closest(word: str, candidates: Iterable[str], limit: int) -> str | None:
    """Return the nearest candidate that is at most ``limit`` away from ``word``, the first of equals."""
    best: str | None = None
    for candidate in candidates:
        apart = distance(word, candidate, limit)
        if apart <= limit:
            best, limit = candidate, apart - 1
    return best
