"""The errors that a person meets: one line that says what was wrong, what came and what to do."""


class SslfastError(Exception):
    """Something that the caller can mend; the command line prints its one line and exits with 1."""

    exit_code = 1


class UsageError(SslfastError):
    """An option that makes no sense; the command line exits with 2."""

    exit_code = 2


class DataError(SslfastError):
    """A data set that is missing, damaged or unlike what was asked for."""


class DivergedError(SslfastError):
    """A training whose loss, or a weight, is no number any more; the state saved last stays."""


class IntegrityError(SslfastError):
    """A file whose content is not what was written: a flipped bit, a truncation, a foreign file."""


def first_line(error: BaseException) -> str:
    """Give the first line of another library's error, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
