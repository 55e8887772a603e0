"""The one error that a user is meant to read.

Everything a user can get wrong ends in a :class:`UserError`: one line that says what is wrong, where, what the nearest
valid choice is and what to do next. The command line prints it without a traceback and exits with a non-zero code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input, told in one line.

    Args:
        message: what is wrong and where, then what to do.
        exit_code: the process exit code that the command line uses.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the choice that looks most like ``name``, or None where none is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.55)
    return found[0] if found else None


def did_you_mean(name: str, choices: Iterable[str], *, most: int = 12) -> str:
    """Returns " Did you mean 'x'?" for a near miss, else a list of what there is (at most ``most`` names)."""
    known = sorted(set(choices))
    guess = nearest(name, known)
    if guess is not None:
        return f" Did you mean {guess!r}?"
    if not known:
        return " There are none."
    more = f" (+{len(known) - most} more)" if len(known) > most else ""
    return f" Known: {', '.join(known[:most])}{more}."
