"""Parameters and floating-point operations of the presets."""

import pytest
from benchmarks import flops

from deformdetr import preset


@pytest.mark.parametrize("name", ["deformable_detr_r50_single_scale", "deformable_detr_r50_two_stage"])
def test_stored_counts_are_those_of_the_models(name):
    counted, stored = flops.count(name, 800, 1333), flops.REPORT.load()["counts"][name]["800x1333"]
    # Which operators PyTorch counts may differ between its versions.
    assert counted.pop("total") == pytest.approx(stored.pop("total"), rel=0.01)
    parts = ("parameters", "trainable", "convolutions", "sampling")
    assert [counted[part] for part in parts] == [stored[part] for part in parts]


def test_samples_are_counted_as_the_operator_takes_them():
    # 64 x 64 pixels: levels of 8, 4, 2 and 1 on a side; 6 layers each of encoder and decoder, 4 levels of 4 points, 256
    # channels, 4 corners.
    pixels, queries = 64 + 16 + 4 + 1, 300
    expected = 6 * (pixels + queries) * 4 * 4 * 256 * 4
    assert flops.count("deformable_detr_r50", 64, 64)["sampling"] == expected


def test_the_backward_of_trained_layers_counts_twice():
    model = flops.build(preset("deformable_detr_r50"))
    forward, both = (flops.count_flops(model, 2, 64, 64, backward=backward) for backward in (False, True))
    assert both["ms_deform_attn_backward"] == 2 * forward["ms_deform_attn"]
    assert sum(forward.values()) < sum(both.values()) < 3 * sum(forward.values())


def test_published_numbers_are_met_at_the_size_that_fits_best():
    results = flops.REPORT.load()
    best = results["best_match"]
    assert best["worst_relative_deviation"] < 0.02
    for name, published in results["published_giga_multiply_adds"].items():
        total = results["counts"][name][f"800x{best['width']}"]["total"] / 1e9
        # DETR's numbers come from another publication, with other images.
        assert total == pytest.approx(published, rel=0.05 if name.startswith("detr") else 0.02), name
