"""Training of all variants for a few steps, and what is read off the stored curves."""

import json

import pytest
from benchmarks import convergence
from benchmarks.curves import _styles, first_reaching, highest, mean_curve, plot
from benchmarks.pages import generated_part


@pytest.fixture(scope="module")
def results():
    return json.loads(convergence.STORED.read_text())


def test_page_and_chart_are_those_of_the_stored_results(results):
    for name, text in convergence.parts(results).items():
        assert generated_part(convergence.PAGE, name) == text
    assert convergence.CHART.exists()


def test_variants_have_the_same_sizes_and_much_the_same_parameters():
    models = [variant.model for variant in convergence.VARIANTS.values()]
    for name in ("d_model", "n_heads", "num_queries", "num_encoder_layers", "num_decoder_layers", "d_ffn", "dropout"):
        assert len({getattr(model, name) for model in models}) == 1, name
    assert len({model.backbone.channels for model in models}) == 1
    sizes = [sum(each.numel() for each in model.build().parameters()) for model in models]
    assert max(sizes) < 1.15 * min(sizes)


def test_an_epoch_has_as_many_steps_with_more_pictures():
    for name in convergence.VARIANTS:
        run = convergence.experiment(name, lr=1e-3, epochs=convergence.EPOCHS, seed=0, is_quick=False)
        assert run.data.num_train * run.train.epochs == convergence.DATA.num_train * convergence.EPOCHS


def test_no_two_variants_are_drawn_alike():
    labels = [variant.label for variant in convergence.VARIANTS.values()]
    styles = _styles(labels)
    assert len({tuple(styles[label].values()) for label in labels}) == len(labels)


def test_runs_go_on_where_they_stopped_and_are_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convergence, "RATES", (1e-3,))
    monkeypatch.setattr(convergence, "DATA", convergence.DATA.replace(num_val=2))
    monkeypatch.setattr(convergence, "STORED", tmp_path / "stored.json")
    runs = tmp_path / "runs"
    convergence.tune(["deformable_detr"], runs, is_quick=True)
    convergence.run(["detr", "deformable_detr"], runs, is_quick=True)
    assert "resuming after epoch 2" in capsys.readouterr().out
    results = convergence.collect(runs, "abc1234")
    assert {row["variant"] for row in results["runs"]} == {"detr", "deformable_detr"}
    assert all([point["epoch"] for point in row["curve"]] == [2] for row in results["runs"])
    assert json.loads(json.dumps(results)) == results
    assert "commit abc1234" in convergence.provenance(results)


def test_curves_tell_the_best_epoch_and_when_it_is_reached():
    precisions = {2: 0.1, 4: 0.4, 6: 0.4, 8: 0.3}
    curve = {epoch: {"AP": value} for epoch, value in precisions.items()}
    assert highest(curve) == (4, 0.4)
    assert first_reaching(curve, 0.2) == 4
    assert first_reaching(curve, 0.4) == 4
    assert first_reaching(curve, 0.5) is None


def test_means_of_curves_end_where_the_first_ends():
    short = {2: {"AP": 0.1}, 4: {"AP": 0.2}}
    long = {2: {"AP": 0.3}, 4: {"AP": 0.4}, 6: {"AP": 0.5}}
    mean = mean_curve([short, long])
    assert sorted(mean) == [2, 4]
    assert mean[4]["AP"] == pytest.approx(0.3)


def test_charts_are_the_same_every_time(tmp_path):
    curve = {2: {"AP": 0.1, "AP_small": 0.0}, 20: {"AP": 0.2, "AP_small": 0.1}}
    for name in ("first", "second"):
        plot(
            {"DETR": [curve], "other": [curve, curve]}, {"AP": 0.2, "AP_small": 0.1}, "Title", tmp_path / f"{name}.svg"
        )
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert b"DETR" in first
