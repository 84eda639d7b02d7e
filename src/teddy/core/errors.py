"""The one exception a user is meant to read: a clear sentence instead of a traceback."""


class TeddyError(ValueError):
    """A problem the user can mend: names the file or key, what was expected and what came.

    Stage entrypoints print it as a single line and exit with status 1; every other exception is a
    bug of ours and keeps its traceback.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # names of files may have line breaks
