import json

from benchmarks import tune

from deformdetr.kernels._triton import _launch_table

ARCHITECTURE = _launch_table.Architecture("any", 32, predicates_loads=True)


def test_fastest_launch_of_every_class_is_found_and_added_to_the_table():
    chosen = []

    def calls(size, precision):
        def call(direction):
            launch = _launch_table.choose(
                direction,
                ARCHITECTURE,
                precision=precision,
                row_words=32,
                word_size=4,
                rows=_launch_table.MANY_ROWS if size == "many" else 1,
            )
            chosen.append(launch)
            # Two warps and two chunks are fastest here, in any order of trial.
            return abs(launch.warps - 2) + (2 - launch.chunks) + 0.1 * launch.tiled

        return {direction: lambda direction=direction: call(direction) for direction in ("forward", "backward")}

    entries = tune.tune("sm_90", lambda call: call(), calls)
    for direction in ("forward", "backward"):
        for precision in ("float32", "half"):
            for size in ("few", "many"):
                assert entries[direction][precision][size] == {"warps": 2, "chunks": 2, "tiled": 0}
    assert len(set(chosen)) == 16
    table = tune.add(_launch_table.read_table(), "sm_90", entries, "seen")
    assert table["sources"]["sm_90"] == "seen"
    assert table["launches"]["any"] == _launch_table.read_table()["launches"]["any"]
    assert table["launches"]["sm_90"] == entries


def test_table_of_the_library_has_every_class_and_names_its_sources():
    table = json.loads(tune.TABLE.read_text())
    assert table["sources"].keys() == table["launches"].keys()
    assert "any" in table["launches"]
    for entries in table["launches"].values():
        for direction in ("forward", "backward"):
            for precision in tune.DTYPES:
                for size in tune.SIZES:
                    assert entries[direction][precision][size] in list(tune.candidates(size))
