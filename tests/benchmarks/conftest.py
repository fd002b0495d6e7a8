"""Made-up results."""

from collections.abc import Callable

import pytest
from benchmarks.results import Environment, Results, Row, Run, Spread


@pytest.fixture
def environment() -> Environment:
    return Environment(
        device="cpu",
        device_name="Some CPU @ 2.0 GHz",
        cores=4,
        threads=2,
        versions={"python": "3.11.7", "torch": "2.15.0+cu1"},
        commit="abc1234",
        dirty=False,
    )


@pytest.fixture
def make_run(environment) -> Callable[..., Run]:
    given = {"environment": environment, "command": "python -m benchmarks run", "date": "2026-01-02", "seed": 1}
    return lambda **changes: Run(**given | {"cold": False, "complete": True} | changes)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def make(provider: str = "ours", seconds: float | None = 0.25, **changes) -> Row:
        given = {"kind": "matcher", "case": "few_b2", "dtype": "float32", "direction": "forward", "provider": provider}
        time = None if seconds is None else Spread.of([seconds * 0.98, seconds, seconds * 1.02])
        return Row(**given | {"status": "measured", "tolerance": 1e-4, "baseline": "plain", "time": time} | changes)

    return make


@pytest.fixture
def make_results(make_run) -> Callable[..., Results]:
    return lambda *rows: Results(kind="matcher", runs=[make_run()], rows=list(rows))
