"""What layers sample, collected by hooks."""

from dataclasses import fields

import pytest
import torch
from torch import nn

import deformdetr
from deformdetr import preset
from deformdetr.models import Capture, capture
from deformdetr.nn import MSDeformAttn
from deformdetr.structures import ImageBatch


def small(**changes: object) -> nn.Module:
    return preset("demo").replace(**changes).build().eval()


def test_every_layer_is_captured_in_the_order_of_its_calls() -> None:
    config = preset("demo")
    model = small()
    with capture(model) as captured, torch.no_grad():
        model([torch.rand(3, 64, 96)])
    encoders = [f"encoder.layers.{index}.self_attn" for index in range(config.num_encoder_layers)]
    decoders = [f"decoder.layers.{index}.cross_attn" for index in range(config.num_decoder_layers)]
    assert list(captured.layers) == encoders + decoders
    for name, layer in captured.layers.items():
        points = config.enc_n_points if name in encoders else config.dec_n_points
        assert layer.attention_weights.shape[2:] == (config.n_heads, config.num_feature_levels, points)
        torch.testing.assert_close(layer.attention_weights.sum((-1, -2)), torch.ones(layer.attention_weights.shape[:3]))
        assert layer.sampling_locations.shape == (*layer.attention_weights.shape, 2)


def test_boxes_and_references_are_those_of_the_outputs() -> None:
    model = small()
    with capture(model) as captured, torch.no_grad():
        outputs = model([torch.rand(3, 64, 96)])
    layers = [*outputs["aux_outputs"], outputs]
    for boxes, predicted in zip(captured.boxes, layers, strict=True):
        assert torch.equal(boxes, predicted["pred_boxes"])
    # The boxes of a layer are the references of the next, on levels without padding.
    second = captured.layers["decoder.layers.1.cross_attn"].reference_points
    torch.testing.assert_close(second, captured.boxes[0][:, :, None].expand_as(second))
    first = captured.layers["decoder.layers.0.cross_attn"].reference_points
    torch.testing.assert_close(first[:, :, 0], captured.references)
    assert torch.equal(captured.proposal_boxes, outputs["enc_outputs"]["pred_boxes"])
    assert torch.equal(captured.proposal_scores, outputs["enc_outputs"]["pred_logits"][..., 0].sigmoid())


def test_selected_proposals_of_dino_are_captured() -> None:
    model = preset("dino_r50_4scale").replace(backbone={"kind": "conv"}, num_queries=20).build().eval()
    with capture(model) as captured, torch.no_grad():
        outputs = model([torch.rand(3, 96, 96)])
    assert torch.equal(captured.proposal_boxes, outputs["interm_outputs"]["pred_boxes"])
    assert captured.proposal_scores.shape == (1, 20)
    assert torch.equal(captured.references, captured.proposal_boxes)


def test_capturing_changes_neither_outputs_nor_gradients_and_leaves_no_hook() -> None:
    model = small()
    image = [torch.rand(3, 64, 96)]
    outputs = model(image)
    outputs["pred_boxes"].sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    with capture(model) as captured:
        again = model(image)
        again["pred_boxes"].sum().backward()
    assert torch.equal(again["pred_logits"], outputs["pred_logits"])
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert not any(layer.sampling_locations.requires_grad for layer in captured.layers.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    model = small()
    with pytest.raises(RuntimeError, match="stop"), capture(model):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_each_forward_pass_replaces_the_one_before() -> None:
    model = small()
    with capture(model) as captured, torch.no_grad():
        model([torch.rand(3, 64, 96)])
        first = captured.boxes[-1]
        model([torch.rand(3, 96, 64)])
    assert len(captured.boxes) == len(model.decoder.layers)
    assert captured.boxes[-1] is not first


def test_fractions_of_an_image_do_not_depend_on_its_padding() -> None:
    torch.manual_seed(0)
    model = small(backbone={"kind": "conv", "channels": [8, 8, 8, 8]})
    image = torch.zeros(3, 64, 64)
    batch = ImageBatch.from_images([image, torch.zeros(3, 64, 128)])
    name = "decoder.layers.0.cross_attn"
    with capture(model) as captured, torch.no_grad():
        model(batch.images, batch.padding_mask)
    locations, weights, reference = captured.in_image(name, image=0, query=3)
    torch.testing.assert_close(reference, captured.references[0, 3])
    raw = captured.layers[name].sampling_locations[0, 3]
    torch.testing.assert_close(locations[..., 0], raw[..., 0] * 2)
    torch.testing.assert_close(locations[..., 1], raw[..., 1])
    assert weights.sum((-1, -2)).tolist() == pytest.approx([1] * len(weights))


def test_a_layer_in_other_code_is_captured() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = MSDeformAttn(32, n_levels=1, n_heads=4)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.attention(features, torch.full((1, 24, 1, 2), 0.5), features, [(4, 6)])

    model = Other()
    with deformdetr.capture(model) as captured:
        model(torch.rand(1, 24, 32))
    assert captured.layers["attention"].sampling_locations.shape == (1, 24, 4, 1, 4, 2)
    assert captured.in_image("attention", image=0, query=5)[2].tolist() == [0.5, 0.5]
    with pytest.raises(KeyError, match="no layer 'x' has sampled anything; there are attention"):
        captured.in_image("x", image=0, query=0)


def test_levels_of_different_points_cannot_be_split() -> None:
    model = small(enc_n_points=[2, 3, 4])
    with capture(model) as captured, torch.no_grad():
        model([torch.rand(3, 64, 96)])
    assert captured.layers["encoder.layers.0.self_attn"].attention_weights.shape[-1] == 9
    with pytest.raises(ValueError, match=r"levels of encoder\.layers\.0\.self_attn differ"):
        captured.in_image("encoder.layers.0.self_attn", image=0, query=0)


def test_a_model_without_deformable_attention_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="DETR has no deformable attention layer"),
        capture(preset("detr_r50").replace(backbone={"kind": "conv"}).build()),
    ):
        pass


def test_nothing_is_captured_before_a_forward_pass() -> None:
    assert {field.name: getattr(Capture(), field.name) for field in fields(Capture)} == {
        "layers": {},
        "references": None,
        "boxes": [],
        "proposal_boxes": None,
        "proposal_scores": None,
        "valid_ratios": None,
    }
