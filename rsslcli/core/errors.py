"""The errors that a person sees: one clear line each, with the exit code of the command that meets them."""


class RsslError(Exception):
    """A failure that is not the user's mistake. The message is one line: what is wrong, where, what to do."""

    exit_code = 1


class UserError(RsslError):
    """The user's mistake: a wrong option, missing data, a file of another kind."""

    exit_code = 2
