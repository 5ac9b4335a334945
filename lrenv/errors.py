"""Errors of the package; each message says what was expected, what came, and the cure."""


class LrenvError(Exception):
    """Base of every error raised on purpose by the package."""


class InputError(LrenvError, ValueError):
    """Input that cannot be used: an unknown name, an impossible value, an unwritable folder."""


class PolicyFileError(InputError):
    """A policy file that is missing, damaged, altered, or does not fit."""


class ResourceError(LrenvError, RuntimeError):
    """A run that failed for want of something outside the program, such as a data set."""
