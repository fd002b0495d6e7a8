"""The search for launch parameters, and the table that it writes."""

import itertools
import json

import pytest
from benchmarks import tune

from deformdetr.kernels._triton import _launch_table as _launch

DIRECTIONS = ("forward", "backward")
CLASSES = [*itertools.product(DIRECTIONS, tune.DTYPES, tune.SIZES)]
ARCHITECTURE = _launch.Architecture("any", 32, predicates_loads=True)


def test_the_fastest_launch_of_every_class_is_found_and_added_to_the_table():
    chosen = set()

    def calls(size, precision):
        def call(direction):
            rows = _launch.MANY_ROWS if size == "many" else 1
            options = {"precision": precision, "row_words": 32, "word_size": 4, "rows": rows}
            launch = _launch.choose(direction, ARCHITECTURE, **options)
            chosen.add(launch)
            # Two warps and two chunks are fastest.
            return abs(launch.warps - 2) + (2 - launch.chunks) + 0.1 * launch.tiled

        return {direction: lambda direction=direction: call(direction) for direction in DIRECTIONS}

    entries = tune.tune(lambda call: call(), calls)
    for direction, precision, size in CLASSES:
        assert entries[direction][precision][size] == {"warps": 2, "chunks": 2, "tiled": 0}
    assert len(chosen) == 16
    before = _launch.read_table()
    table = tune.add(before, "sm_90", entries, "seen")
    assert table["sources"]["sm_90"] == "seen"
    assert table["launches"] == before["launches"] | {"sm_90": entries}


@pytest.mark.parametrize("size", tune.SIZES)
def test_forward_and_backward_are_tried_as_in_training(size, monkeypatch):
    monkeypatch.setattr(tune, "CASES", {name: case.quick() for name, case in tune.CASES.items()})
    calls = tune.calls(size, "float32", "cpu")
    case = tune.CASES[tune.SIZES[size]]
    assert calls["forward"]().shape == (case.batch, case.n_queries, case.heads * case.channels)
    assert [gradient.ndim for gradient in calls["backward"]()] == [4, 6, 5]


def test_the_table_of_the_library_has_every_class_and_its_sources():
    table = json.loads(tune.TABLE.read_text())
    assert table["sources"].keys() == table["launches"].keys()
    assert "any" in table["launches"]
    for entries in table["launches"].values():
        assert all(
            entries[direction][precision][size] in tune.candidates(size) for direction, precision, size in CLASSES
        )
