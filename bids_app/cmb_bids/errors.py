"""Errors that a user can act on: what is wrong, where, and what to do about it.

Each class carries the exit code that the command line ends with.
"""

from __future__ import annotations

from os import PathLike


class CmbError(Exception):
    """Something a user can mend.

    Parameters
    ----------
    path : path-like or str
        The file, directory, option or label the message is about.
    what : str
        What is wrong with it.
    remedy : str
        What to do.
    """

    exit_code = 1

    def __init__(self, path: str | PathLike[str], what: str, remedy: str) -> None:
        self.path = str(path)
        self.what = what.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(self.path, self.what, self.remedy)

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.remedy}."


class InvalidDataset(CmbError):
    """The input directory is not a BIDS dataset that can be processed."""

    exit_code = 16


class UnknownLevel(CmbError):
    """The analysis level is neither participant nor group."""

    exit_code = 17


class NothingMatched(CmbError):
    """Labels or filters select nothing, or name something that is not there."""

    exit_code = 18


class UsageError(CmbError):
    """The command line is wrong."""

    exit_code = 64


class BadData(CmbError):
    """A file is there but its content cannot be used."""

    exit_code = 65


class InputMissing(CmbError):
    """A file that is needed is not there."""

    exit_code = 66


class CannotCreate(CmbError):
    """An output cannot be created."""

    exit_code = 73


class IOFailure(CmbError):
    """Reading or writing failed part way."""

    exit_code = 74


class Temporary(CmbError):
    """A passing fault: the same command may work later."""

    exit_code = 75
