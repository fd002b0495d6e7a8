"""What a check found, as rows of data, text, Markdown and JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias

from deformdetr._text import table

Status: TypeAlias = Literal["passed", "failed", "refused", "inapplicable"]

_HEADS = ("case", "dtype", "output", "grad value", "grad locations", "grad weights", "tolerance")
_DIRECTIONS = ("output", "grad_value", "grad_locations", "grad_weights")


class ConformanceError(AssertionError):
    """An implementation does not do what the operator does."""


@dataclass(frozen=True)
class Row:
    """The result of one case in one dtype and one direction.

    Attributes:
        case: Name of the case.
        dtype: Dtype of the value, such as `float32`.
        direction: `output`, `grad_value`, `grad_locations` or `grad_weights`.
        status: `passed`; `failed`, with a wrong result; `refused`, by an exception; or `inapplicable`, if the
            implementation has no argument for it.
        error: Largest error relative to the largest exact number; None without a result, or where it is infinite.
        tolerance: Largest error that passes.
        reason: Why it did not pass; empty if it did.
    """

    case: str
    dtype: str
    direction: str
    status: Status
    error: float | None
    tolerance: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the result is right."""
        return self.status == "passed"


@dataclass(frozen=True)
class Report:
    """The result of a check, which prints as a table.

    Attributes:
        implementation: Name of the function.
        device: Where it ran.
        seed: Number that all inputs follow from; the same one repeats them. None if they were given.
        versions: Releases of Python, PyTorch and this library.
        rows: All results.
    """

    implementation: str
    device: str
    seed: int | None
    versions: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def failures(self) -> list[Row]:
        """Rows that are wrong or were refused."""
        return [row for row in self.rows if row.status in ("failed", "refused")]

    def raise_for_failures(self) -> None:
        """Raise if a result is wrong or a call was refused.

        Check the cases and dtypes that an implementation claims to support, so that it refuses none.

        Raises:
            ConformanceError: With the table of the failures.
        """
        if self.failures:
            failed = Report(self.implementation, self.device, self.seed, self.versions, self.failures)
            raise ConformanceError(f"{self.summary()}\n\n{failed}")

    def summary(self) -> str:
        """Return a sentence with the number of results of each status, and how to repeat them."""
        statuses = [row.status for row in self.rows]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        seed = "" if self.seed is None else f" (seed={self.seed})"
        return f"{self.implementation} on {self.device}: {counts or 'nothing checked'}{seed}"

    def __str__(self) -> str:
        """Return a table with one line for each case and dtype, and the reasons of the failures."""
        cells = table(_HEADS, [*map(_cells, _by_case(self.rows))], texts=len(_HEADS))
        return "\n".join([cells, "", *map(str.rstrip, self._reasons()), self.summary()])

    def markdown(self) -> str:
        """Return the table of `str` in Markdown."""
        rule = ["---", "---", *["---:"] * 5]
        return "\n".join(f"| {' | '.join(line)} |" for line in [_HEADS, rule, *map(_cells, _by_case(self.rows))])

    def json(self) -> str:
        """Return everything as a JSON document, which `Report.from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return the report that `json` has written.

        Examples:
            >>> report = Report("f", "cpu", 1, {}, [Row("edges", "float32", "output", "passed", 1e-7, 5e-6)])
            >>> Report.from_json(report.json()) == report
            True
        """
        content: dict[str, Any] = json.loads(text)
        return cls(**content | {"rows": [Row(**row) for row in content["rows"]]})

    def _reasons(self) -> list[str]:
        """Return every reason once, with the cases and dtypes that it stands for."""
        where: dict[str, list[str]] = {}
        for row in self.rows:
            if row.reason:
                where.setdefault(f"{row.status}: {row.reason}", []).append(f"{row.case} {row.dtype}")
        return [f"{', '.join(dict.fromkeys(cases))}: {reason}" for reason, cases in where.items()]


def _by_case(rows: Iterable[Row]) -> list[list[Row]]:
    return [list(group) for _, group in groupby(rows, lambda row: (row.case, row.dtype))]


def _cells(rows: Sequence[Row]) -> list[str]:
    """Return the line of one case in one dtype."""
    by_direction = {row.direction: row for row in rows}
    tolerances = dict.fromkeys(f"{row.tolerance:.1e}" for row in rows)
    cells = [_cell(by_direction.get(direction)) for direction in _DIRECTIONS]
    return [rows[0].case, rows[0].dtype, *cells, " ".join(tolerances)]


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.status in ("refused", "inapplicable"):
        return row.status
    error = "not finite" if row.error is None else f"{row.error:.1e}"
    return error if row.passed else f"{error} FAILED"
