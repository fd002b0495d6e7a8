"""What readers of files raise."""


class FileError(ValueError):
    """A file cannot be read, or is not what it should be; the message names it and the reason in one line."""
