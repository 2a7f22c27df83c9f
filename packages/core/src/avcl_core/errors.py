"""Errors that a user can act on: each knows its exit code and says file, field, found, expected and what to do in one line."""


class AvclError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = 1


class RunError(AvclError):
    """The run itself failed, for example on a non-finite loss; ``details`` go to the run's events."""

    details: "dict[str, object] | None" = None


class ConfigError(AvclError):
    """Usage or configuration is wrong."""

    exit_code = 2


class IntegrityError(AvclError):
    """Data or weights are missing, malformed or not the ones the run was started with."""

    exit_code = 3


class DataError(IntegrityError):
    """A data file, record or field is not what its format says."""


class Stopped(AvclError):
    """The run was asked to stop, has committed, and can be resumed."""

    exit_code = 75


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or the list of known names when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"
