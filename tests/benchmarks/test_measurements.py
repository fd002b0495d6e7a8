"""The other measurements, at sizes small enough for tests."""

import itertools
import json

import pytest
import torch
from benchmarks import convergence, flops, pages, tune
from benchmarks.cases import select

from deformdetr import preset
from deformdetr.kernels._triton import _launch_table as _launch

ENCODER = select(["operator"], ["encoder_480x640"])[0].quick().sizes


@pytest.mark.parametrize("name", ["deformable_detr_r50_single_scale", "deformable_detr_r50_two_stage"])
def test_stored_counts_are_those_of_the_models(name):
    counted, stored = flops.count(name, 1333), pages.read(flops.STORED)["counts"][name]["800x1333"]
    # Which operators PyTorch counts may differ between its versions.
    assert counted.pop("total") == pytest.approx(stored.pop("total"), rel=0.01)
    parts = ("parameters", "trainable", "convolutions", "sampling")
    assert [counted[part] for part in parts] == [stored[part] for part in parts]


def test_the_backward_of_trained_layers_counts_twice():
    config = preset("deformable_detr_r50")
    forward, both = (flops.count_flops(config, 64, 64, backward=backward) for backward in (False, True))
    assert both["ms_deform_attn_backward"] == 2 * forward["ms_deform_attn"]
    assert sum(forward.values()) < sum(both.values()) < 3 * sum(forward.values())
    # Levels of 8, 4, 2 and 1 on a side; 6 layers each of encoder and decoder, 4 levels of 4 points, 256 channels and 4
    # corners. A multiplication and an addition count as two.
    assert forward["ms_deform_attn"] == 2 * 6 * (64 + 16 + 4 + 1 + 300) * 4 * 4 * 256 * 4


CLASSES = [*itertools.product(("forward", "backward"), tune.DTYPES, tune.CASES)]


def test_the_fastest_launch_of_every_class_is_found_and_added_to_the_table(tmp_path):
    chosen = set()

    def calls(sizes, dtype):
        def call(direction):
            architecture = _launch.Architecture("any", 32, predicates_loads=True)
            options = {"precision": "float32" if dtype == torch.float32 else "half", "row_words": 32, "word_size": 4}
            rows = _launch.MANY_ROWS if sizes.queries is None else 1
            launch = _launch.choose(direction, architecture, rows=rows, **options)
            chosen.add(launch)
            # Two warps, two chunks and four points are fastest.
            return abs(launch.warps - 2) + (2 - launch.chunks) + 0.1 * launch.tiled + 0.01 * (4 - launch.unrolled)

        return {direction: lambda direction=direction: call(direction) for direction in ("forward", "backward")}

    *_, entries = tune.tune(make_calls=calls, time=lambda call: call())
    for direction, precision, size in CLASSES:
        unrolled = {"unrolled": 4} if direction == "backward" else {}
        assert entries[direction][precision][size] == {"warps": 2, "chunks": 2, "tiled": 0} | unrolled
    assert len(chosen) == 14
    path = tmp_path / "table.json"
    tune.write(path, entries, "cpu")
    before, table = _launch.read_table(), json.loads(path.read_text())
    assert "by `python -m benchmarks.tune`" in table["sources"]["none"]
    assert table["launches"] == before["launches"] | {"none": entries}


def test_forward_and_backward_are_tried_as_in_training():
    calls = tune.calls(ENCODER, torch.float32, "cpu")
    assert calls["forward"]().shape == (1, ENCODER.pixels, 32)
    assert [gradient.ndim for gradient in calls["backward"]()] == [4, 6, 5]


def test_the_table_of_the_library_has_every_class_and_its_sources():
    table = json.loads(tune.TABLE.read_text())
    assert table["sources"].keys() == table["launches"].keys()
    assert "any" in table["launches"]
    for entries in table["launches"].values():
        for direction, precision, size in CLASSES:
            entry = entries[direction][precision][size]
            assert entry.get("unrolled", 1) in tune.UNROLLED
            assert {name: entry[name] for name in ("warps", "chunks", "tiled")} in [*tune.candidates(size)]


def test_variants_have_the_same_sizes_and_nearly_the_same_parameters():
    models = [variant.model for variant in convergence.VARIANTS.values()]
    for name in ("d_model", "n_heads", "num_queries", "num_encoder_layers", "num_decoder_layers", "d_ffn", "dropout"):
        assert len({getattr(model, name) for model in models}) == 1, name
    assert len({model.backbone.channels for model in models}) == 1
    sizes = [sum(each.numel() for each in model.build().parameters()) for model in models]
    assert max(sizes) < 1.15 * min(sizes)


def test_an_epoch_has_as_many_steps_with_more_pictures():
    for name, variant in convergence.VARIANTS.items():
        run = convergence.experiment(name)
        assert run.data.num_train * run.train.epochs == convergence.DATA.num_train * convergence.EPOCHS
        assert run.train.lr == variant.lr


def test_runs_are_resumed_and_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convergence, "DATA", convergence.DATA.replace(num_train=4, num_val=2))
    monkeypatch.setattr(convergence, "TRAIN", convergence.TRAIN.replace(batch_size=2))
    for name in ("deformable_detr", "detr", "deformable_detr"):
        convergence.run(name, tmp_path, epochs=2)
    assert "resuming after epoch 2" in capsys.readouterr().out
    results = convergence.collect(tmp_path)
    assert list(results["runs"]) == ["detr", "deformable_detr"]
    assert all([point["epoch"] for point in row["curve"]] == [2] for row in results["runs"].values())
    assert json.loads(json.dumps(results)) == results
    assert pages.read(convergence.STORED)["runs"].keys() == convergence.VARIANTS.keys()
