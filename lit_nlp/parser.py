"""The command line's parser, and its reports of what was given wrongly, each in one line."""

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import lit_nlp
from lit_nlp.errors import ConfigError, did_you_mean, one_line

_SEE = "see lit-nlp VERB --help"

# How jsonargparse reports, its lines joined: each kind of value that was expected, what came, and other errors.
_EXPECTED = re.compile(r"Expected an? (?!path but )([^:]+?)(?=: |\. Got value: | - Expected | Given value type: |$)")
_GOT = re.compile(r"(?:Got value|Given value): (.*?)(?= - Expected |$)")
_OTHER = re.compile(r"Errors: - (?!Expected )(.+?)(?= - (?:Expected|Option|Problem|Not a) | Given value type: |$)")
# A union within a union.
_WITHIN = re.compile(r"(?<=Errors: )- Does not validate.+? Errors: (?=- )")
_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.]+)")
_NO_CLASS = re.compile(r"module 'lit_nlp' has no attribute '(\w+)'")


class Parser(LightningArgumentParser):
    """Reports mistakes as the rest of the project does, and takes no option by its first letters alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a mistake; where another parser's stands within, as of a class's argument, that one's mend stays.

        Raises:
            ConfigError: Always.
        """
        where, problem = _told(_WITHIN.sub("", one_line(message)))
        mended = problem.endswith((_SEE, "'?"))
        raise ConfigError(problem, where=where, mend=None if mended else self._mend(problem, ex)) from ex

    def _mend(self, problem: str, ex: Exception | None) -> str:
        """Return the option or class that may have been meant; where none is near, where to look."""
        known = [name.lstrip("-") for name in getattr(ex, "subcommand_parser", self)._option_string_actions]
        if unknown := _UNKNOWN.search(problem):
            section = unknown[1].partition(".")[0]
            return did_you_mean(unknown[1] if section in known else section, known) or _SEE
        if unknown := _NO_CLASS.search(problem):
            return did_you_mean(unknown[1], lit_nlp.__all__) or _SEE
        return _SEE


def _told(report: str) -> tuple[str | None, str]:
    """Return the option at fault, where the report names one, and what is wrong."""
    key = re.match(r'Parser key "([^"]+)":? ?', report)
    if key is None:
        return None, report
    other, expected, got = _OTHER.search(report), _EXPECTED.findall(report), _GOT.search(report)
    if other is not None:
        # An argument of a class is told by its name, which stands behind the class's.
        inner = re.match(r"([\w.]+): ", other[1])
        return (f"{key[1]}.{inner[1]}", other[1][inner.end() :]) if inner else (key[1], other[1])
    if not expected or got is None:
        return key[1], report[key.end() :]
    *others, last = dict.fromkeys(kind for each in expected for kind in _kinds(each))
    return key[1], f"expected {', '.join(others)}{' or ' if others else ''}{last}, got {got[1]!r}"


def _kinds(expected: str) -> list[str]:
    """Return what a type stands for: the values of a literal, or its name."""
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return literal[1].split(", ")
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected)
    return [{"NoneType": "null"}.get(name, name)]
