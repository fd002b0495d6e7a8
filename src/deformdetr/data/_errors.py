"""Problems of a dataset, collected so that one exception lists them all, by kind."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_SHOWN = 5


class Kind(NamedTuple):
    """A kind of problem: what the entries are, in the plural, and the usual cause, or none."""

    title: str
    cause: str = ""


class Problem(str):
    """One problem: the name of its file, and what is wrong with an entry, with id and value.

    Problems of one kind and `source` are listed together.
    """

    __slots__ = ("kind", "source")
    kind: Kind | None
    source: str

    def __new__(cls, text: str, kind: Kind | None = None, *, source: str = "") -> "Problem":
        """Return the problem with this text, after the name of the file `source`."""
        problem = super().__new__(cls, f"{source}: {text}" if source else text)
        problem.kind = kind
        problem.source = source
        return problem


class DatasetError(ValueError):
    """A dataset has problems. Each names its file and, if there are any, the id and the value.

    Attributes:
        problems: All problems. The message shows the first five of each kind, the number of others, and the usual
            cause.
    """

    problems: tuple[str, ...]

    # The constructor takes only a message, because DataLoader rebuilds exceptions of its workers from theirs.
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problems = (message,)


class Problems(list[str]):
    """Problems found so far.

    Args:
        source: Name of the file that they are in, unless `report` names another.
    """

    def __init__(self, source: str | Path = "") -> None:
        super().__init__()
        self._source = str(source)

    def report(self, text: str, kind: Kind, *, source: str | Path = "") -> None:
        """Add a problem."""
        self.append(Problem(text, kind, source=str(source) or self._source))

    def refuse(self) -> None:
        """Raise an exception with all of them, if there are any.

        Raises:
            DatasetError: If there are.
        """
        if self:
            raise dataset_error(self)


def dataset_error(problems: Sequence[str]) -> DatasetError:
    """Combine problems into one exception.

    Raises:
        ValueError: If `problems` is empty.
    """
    if not problems:
        raise ValueError("problems must not be empty")
    groups: dict[tuple[str, Kind | None], list[str]] = {}
    for problem in problems:
        where = (problem.source, problem.kind) if isinstance(problem, Problem) else ("", None)
        groups.setdefault(where, []).append(problem)
    if len(problems) == 1:
        ((_, kind),) = groups
        message = problems[0] + (f" ({kind.cause})" if kind and kind.cause else "")
    else:
        message = "\n".join([f"{len(problems):,} problems in the dataset:", *_lines(groups)])
    error = DatasetError(message)
    error.problems = tuple(problems)
    return error


def _lines(groups: dict[tuple[str, Kind | None], list[str]]) -> Iterable[str]:
    for (source, kind), found in groups.items():
        indent = "  "
        prefix = ""
        if kind is not None:
            cause = f" ({kind.cause})" if kind.cause else ""
            # The heading has the name of the file, if it is the same for all.
            prefix = f"{source}: " if source else ""
            yield f"  {prefix}{kind.title}: {len(found):,}{cause}"
            indent = "    "
        yield from (f"{indent}{problem.removeprefix(prefix)}" for problem in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"{indent}... and {len(found) - _SHOWN:,} more of this kind"
