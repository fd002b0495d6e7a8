"""Made-up results."""

from collections.abc import Callable

import pytest
from benchmarks.results import Results, Row, Spread


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def make(provider: str = "ours", seconds: float | None = 0.25, **changes) -> Row:
        given = {"kind": "matcher", "case": "few_b2", "dtype": "float32", "direction": "forward", "provider": provider}
        time = None if seconds is None else Spread.of([seconds * 0.98, seconds, seconds * 1.02])
        return Row(**given | {"status": "measured", "tolerance": 1e-4, "baseline": "plain", "time": time} | changes)

    return make


@pytest.fixture
def make_results() -> Callable[..., Results]:
    environment = {"device": "cpu", "device_name": "Some CPU @ 2.0 GHz", "cores": 4, "threads": 2}
    environment |= {"versions": {"python": "3.11.7", "torch": "2.15.0+cu1"}, "commit": "abc1234", "dirty": False}
    run = {"environment": environment, "command": "python -m benchmarks run", "date": "2026-01-02", "seed": 1}
    run |= {"complete": True}
    return lambda *rows: Results(kind="matcher", runs=[run], rows=list(rows))
