"""The error that readers of files raise, and messages that terminals can show."""


class FileError(ValueError):
    """A file cannot be read or has invalid content. The message names the file and the reason in one line."""


def printable(text: str) -> str:
    """Return a text in which control characters except line ends are escaped: terminals would obey them."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
