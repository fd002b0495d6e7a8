"""The one exception of this package: it lists everything found wrong with a dataset, not only the first thing."""

from collections.abc import Sequence

_SHOWN = 20


class DatasetError(ValueError):
    """Say what is wrong with a dataset; every problem names its file, and the id and value where there is one.

    Attributes:
        problems: All problems. The message shows the first 20 and counts the rest.
    """

    problems: tuple[str, ...]

    # One string must be enough to build it: a data loader rebuilds its workers' exceptions from their message.
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problems = (message,)


def dataset_error(problems: Sequence[str]) -> DatasetError:
    """Gather problems into one exception.

    Raises:
        ValueError: If there is no problem to report.
    """
    if not problems:
        raise ValueError("an error needs at least one problem, got none")
    if len(problems) == 1:
        return DatasetError(problems[0])
    lines = [f"{len(problems):,} problems in the dataset:", *(f"  {problem}" for problem in problems[:_SHOWN])]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN:,} more")
    error = DatasetError("\n".join(lines))
    error.problems = tuple(problems)
    return error
