"""One family for users' mistakes: what was expected, what came, where, and how to mend it.

Every error that a user can cause is a `UserError`. The command line prints it as one line and
exits with status 2; a script that uses the parts can catch the whole family by its base.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave, told in one line: ``where: problem; mend``.

    Args:
        problem: What was expected and what came instead.
        where: File and line, column, option or checkpoint at fault.
        mend: What to do about it, as an imperative.
    """

    def __init__(self, problem: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.problem, self.where, self.mend = problem, where, mend
        super().__init__(problem, where, mend)

    def __str__(self) -> str:
        located = f"{self.where}: {self.problem}" if self.where else self.problem
        whole = f"{located}; {self.mend}" if self.mend else located
        return one_line(whole)


class DataError(UserError):
    """A source, row, column or label that can't be read as what it should be."""


class BackboneError(UserError):
    """A backbone that can't be found, loaded or used for the task."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign, or in conflict with what was asked for."""


class ConfigError(UserError):
    """Arguments that are wrong by themselves or don't go together."""


class TargetError(ConfigError):
    """A target that none of the texts has, though others may: a word that isn't written, the class that is said."""


class NonFiniteError(UserError):
    """A loss or gradient that is not finite; training stopped before the update.

    Args:
        rows: The rows of the training split (counted from 0) that the batch held.
    """

    def __init__(self, problem: str, *, rows: list[int], where: str | None = None, mend: str | None = None) -> None:
        super().__init__(problem, where=where, mend=mend)
        self.rows = rows


def one_line(text: str) -> str:
    """Return a text with its lines joined, and one blank between words."""
    return " ".join(text.split())


def first_line(error: BaseException) -> str:
    """Return what an error says, of several lines the first."""
    return str(error).strip().partition("\n")[0]


def half_character(where: str) -> DataError:
    """Return the error for a text that isn't whole Unicode."""
    return DataError("a lone surrogate, half of a character", where=where, mend="write the whole character")


def did_you_mean(got: str, known: Iterable[str]) -> str | None:
    """Return the question that points to the known word nearest to `got`, if one is near."""
    near = get_close_matches(str(got), list(map(str, known)), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def known_name(name: str, names: Iterable[str], where: str) -> str:
    """Return a name that is one of those known.

    Raises:
        ConfigError: It is none of them.
    """
    known = list(names)
    if name not in known:
        raise ConfigError(f"{name!r} is not one of {', '.join(known)}", where=where, mend=did_you_mean(name, known))
    return name


def require(holds: bool, problem: str, where: str, mend: str | None = None) -> None:
    """Raise a ConfigError where a condition doesn't hold."""
    if not holds:
        raise ConfigError(problem, where=where, mend=mend)


def require_list(given: object, name: str) -> None:
    """Raise a ConfigError where one thing stands in place of a list, or what has no order or no length.

    Args:
        given: What came.
        name: What the list should hold, in the plural.
    """
    one = name.removesuffix("s")
    if isinstance(given, str | bytes):
        raise ConfigError(f"expected a list of {name}, got one {one}", where=name, mend=f"write [{one}]")
    if not isinstance(given, Sequence):
        mend = f"write list({name})" if isinstance(given, Iterable) else f"write [{one}]"
        raise ConfigError(f"expected a list of {name}, got {type(given).__name__}", where=name, mend=mend)
