"""DETR at tiny size; its published form is tested in `test_goldens.py`."""

import pytest
import torch

from checkpoints import tiny_detr_config
from deformdetr import preset
from deformdetr.config import LearnedPositionConfig
from deformdetr.integrations import from_original, load_checkpoint, to_original
from targets import random_targets


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (15, 2)], ids=["some", "none", "more_than_queries"])
def test_everything_that_trains_gets_a_gradient(counts, rng):
    config = tiny_detr_config()
    model = config.build()
    outputs = model([torch.randn(3, 64, 96, generator=rng), torch.randn(3, 80, 64, generator=rng)])
    assert outputs["pred_logits"].shape == (2, 12, 6)
    assert outputs["pred_boxes"].shape == (2, 12, 4)
    assert len(outputs["aux_outputs"]) == 2
    criterion = config.build_criterion()
    criterion.total(criterion(outputs, random_targets(counts, 5, rng))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    detections = config.build_postprocess()(outputs, [(64, 96), (80, 64)])
    assert [len(found["scores"]) for found in detections] == [12, 12]
    assert all((found["labels"] < 5).all() for found in detections)


def test_queries_differ_only_by_their_positions(rng):
    model = tiny_detr_config().build().eval()
    torch.nn.init.constant_(model.query_position.weight, 0.5)
    logits = model(torch.randn(1, 3, 64, 64, generator=rng))["pred_logits"][0]
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_learned_positions_and_no_auxiliary_outputs(rng):
    config = tiny_detr_config(position=LearnedPositionConfig(max_size=4), aux_loss=False)
    outputs = config.build()(torch.randn(1, 3, 96, 128, generator=rng))
    assert outputs.keys() == {"pred_logits", "pred_boxes"}
    with pytest.raises(ValueError, match=r"3 x 5 is larger than max_size \(4\)"):
        config.build()(torch.randn(1, 3, 96, 160, generator=rng))


def test_checkpoints_of_the_original_round_trip():
    config = tiny_detr_config()
    model = config.build()
    state = model.state_dict()
    theirs = to_original(state)
    assert "transformer.decoder.layers.2.multihead_attn.in_proj_weight" in theirs
    assert "input_proj.bias" in theirs
    assert "bbox_embed.layers.2.weight" in theirs
    ours = from_original(theirs)
    assert ours.keys() == state.keys()
    other = config.build()
    report = load_checkpoint(other, theirs)
    assert report.fits
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    resized = load_checkpoint(tiny_detr_config(num_classes=7).build(), theirs, drop_class_head=True)
    assert set(resized.dropped) == {"class_head.weight", "class_head.bias"}


def test_wrong_widths_are_refused_with_their_numbers():
    with pytest.raises(ValueError, match=r"d_model \(18\) must be divisible by n_heads \(4\)"):
        tiny_detr_config(d_model=18, n_heads=4)
    with pytest.raises(ValueError, match=r"d_model \(18\) must be divisible by 4"):
        tiny_detr_config(d_model=18, n_heads=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr_r50", "detr_r50_dc5"])
def test_the_published_number_of_parameters(name):
    model = preset(name).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_524_768
