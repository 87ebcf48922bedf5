"""The one exception whose text is meant for the person who runs the workflow."""


class UserError(Exception):
    """Something the user can mend: says which key or file, what was found, what was expected, and what to do."""
