"""Training of all variants for a few steps, and numbers read off the curves."""

import json

import pytest
from benchmarks import convergence


def test_variants_have_the_same_sizes_and_nearly_the_same_parameters():
    models = [variant.model for variant in convergence.VARIANTS.values()]
    for name in ("d_model", "n_heads", "num_queries", "num_encoder_layers", "num_decoder_layers", "d_ffn", "dropout"):
        assert len({getattr(model, name) for model in models}) == 1, name
    assert len({model.backbone.channels for model in models}) == 1
    sizes = [sum(each.numel() for each in model.build().parameters()) for model in models]
    assert max(sizes) < 1.15 * min(sizes)


@pytest.mark.parametrize("name", convergence.VARIANTS)
def test_an_epoch_has_as_many_steps_with_more_pictures(name):
    run = convergence.experiment(name)
    assert run.data.num_train * run.train.epochs == convergence.DATA.num_train * convergence.EPOCHS
    assert run.train.lr == convergence.VARIANTS[name].lr


def test_runs_are_resumed_and_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convergence, "DATA", convergence.DATA.replace(num_val=2))
    for name in ("deformable_detr", "detr", "deformable_detr"):
        convergence.run(name, tmp_path, is_quick=True)
    assert "resuming after epoch 2" in capsys.readouterr().out
    results = convergence.collect(tmp_path, "abc1234")
    assert {row["variant"] for row in results["runs"]} == {"detr", "deformable_detr"}
    assert all([point["epoch"] for point in row["curve"]] == [2] for row in results["runs"])
    assert json.loads(json.dumps(results)) == results
    assert "commit abc1234" in convergence.provenance(results)


def test_curves_have_a_best_value_and_an_epoch_that_reaches_it():
    curve = {epoch: {"AP": value} for epoch, value in {2: 0.1, 4: 0.4, 6: 0.4, 8: 0.3}.items()}
    assert convergence.highest(curve) == 0.4
    assert [convergence.first_reaching(curve, value) for value in (0.2, 0.4, 0.5)] == [4, 4, None]
