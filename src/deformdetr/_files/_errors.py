"""The error that readers of files raise, and messages that terminals can show."""


class FileError(ValueError):
    """A file cannot be read or has invalid content. The message names the file and the reason in one line."""


def printable(text: str, width: int = 2000) -> str:
    """Return a text that a terminal can show.

    Control characters except line ends are escaped, because terminals would obey them. The middle of lines longer than
    `width` is left out: they repeat an input that is as long.
    """
    escaped = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
    return "\n".join(_without_middle(line, width) for line in escaped.split("\n"))


def _without_middle(line: str, width: int) -> str:
    kept = (width - 5) // 2
    return line if len(line) <= width else f"{line[:kept]} ... {line[-kept:]}"
