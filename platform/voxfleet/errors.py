"""Exceptions that a user may see: one clear line, with a remedy, and an exit code.

Each is made from one string, so that it survives pickling: Ray carries errors between processes.
"""


class VoxfleetError(Exception):
    """Base of the errors that end a job with one line instead of a traceback."""

    exit_code = 1


class UserError(VoxfleetError, ValueError):
    """The input is at fault: what, where, and what to do about it."""

    exit_code = 2


class NoAnswerError(UserError):
    """A server that should answer does not, or not as it should: it may do so later."""


class UnfitError(UserError):
    """The configuration itself cannot be trained: memory does not hold it, or its loss is not finite."""


class WorkMissingError(VoxfleetError):
    """The job ended with part of its work missing: the same command continues."""

    exit_code = 4


class WorkersLostError(WorkMissingError):
    """The workers of a training were lost again and again."""


class GateError(VoxfleetError):
    """What was made is not what is allowed."""

    exit_code = 3


class EndedError(VoxfleetError):
    """What we looked at ended, or we stopped looking, with this exit code."""

    INTERRUPTED = 130

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])
