"""The one exception a person is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: what was wrong, where, and what to do.

    The command line prints its text as one line and exits with code 2; nothing
    below the command line catches it.
    """


class CheckFailed(Exception):  # noqa: N818 - it is a finding, not a failure
    """A check that was asked for found something: the command exits with code 3."""
