"""The one error that is the user's to mend."""


class UserError(Exception):
    """What the user gave can't be used. The message says what is wrong and what to do.

    The command line prints it as one line and exits with 1. Subclass it only where code catches the subclass by name.
    """
