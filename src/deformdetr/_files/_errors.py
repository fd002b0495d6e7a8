"""The error that readers of files raise."""


class FileError(ValueError):
    """A file cannot be read or has invalid content. The message names the file and the reason in one line."""
