"""An exception that lists all problems of a dataset."""

from collections.abc import Sequence

_SHOWN = 20


class DatasetError(ValueError):
    """A dataset has problems. Each names its file and, if there are any, the id and the value.

    Attributes:
        problems: All problems. The message shows the first 20 and the number of others.
    """

    problems: tuple[str, ...]

    # The constructor takes only a message, because DataLoader rebuilds exceptions of its workers from theirs.
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problems = (message,)


def dataset_error(problems: Sequence[str]) -> DatasetError:
    """Combine problems into one exception.

    Raises:
        ValueError: If `problems` is empty.
    """
    if not problems:
        raise ValueError("problems must not be empty")
    if len(problems) == 1:
        return DatasetError(problems[0])
    lines = [f"{len(problems):,} problems in the dataset:", *(f"  {problem}" for problem in problems[:_SHOWN])]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN:,} more")
    error = DatasetError("\n".join(lines))
    error.problems = tuple(problems)
    return error
