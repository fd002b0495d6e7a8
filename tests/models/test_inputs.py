"""Layers get no padding mask if there is certainly no padding."""

import pytest
import torch

from checkpoints import tiny_config
from deformdetr import DETRConfig, preset
from deformdetr.config import ConvBackboneConfig, DATConfig
from deformdetr.models._inputs import is_unpadded


def padded(height: int, device: str = "cpu") -> torch.Tensor:
    mask = torch.zeros(2, 8, 6, dtype=torch.bool)
    mask[1, height:] = True
    return mask.to(device)


@pytest.mark.parametrize(
    ("images", "mask", "expected"),
    [
        (torch.zeros(2, 3, 8, 6), None, True),
        (torch.zeros(2, 3, 8, 6), padded(8), True),
        (torch.zeros(2, 3, 8, 6), padded(7), False),
        ([torch.zeros(3, 8, 6)] * 2, None, True),
        ([torch.zeros(3, 8, 6), torch.zeros(3, 8, 5)], None, False),
        # Masks on other devices are not read.
        (torch.zeros(2, 3, 8, 6, device="meta"), padded(8, "meta"), False),
        (torch.zeros(2, 3, 8, 6, device="meta"), None, True),
    ],
    ids=["no mask", "empty mask", "mask", "equal sizes", "other sizes", "mask elsewhere", "no mask elsewhere"],
)
def test_padding_is_known_to_be_absent(images, mask, expected):
    assert is_unpadded(images, mask) == expected


def test_layers_get_a_mask_only_if_there_is_padding(rng):
    model = tiny_config().build().eval()
    masks = []
    attention = model.decoder.layers[0].cross_attn
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["input_padding_mask"]), with_kwargs=True
    )
    images = torch.randn(2, 3, 64, 64, generator=rng)
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    model(images, mask)
    mask[1, 32:] = True
    model(images, mask)
    assert masks[0] is None
    assert masks[1].any()


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(with_box_refine=True, two_stage=True, masks=True, backbone=ConvBackboneConfig()),
        preset("demo").replace(backbone=DATConfig()),
        DETRConfig(d_model=16, n_heads=2, num_encoder_layers=1, num_decoder_layers=1, d_ffn=16, masks=True),
    ],
    ids=["deformable_detr", "two_stage_masks", "dat", "detr_masks"],
)
def test_a_batch_may_be_empty(config):
    model = config.build()
    outputs = model(torch.zeros(0, 3, 64, 96))
    shown = {name: outputs[name] for name in ("pred_logits", "pred_boxes", "pred_masks") if name in outputs}
    assert {len(predictions) for predictions in shown.values()} == {0}
    assert "pred_masks" in shown or not config.masks
    sum(predictions.sum() for predictions in shown.values()).backward()
    assert config.build_postprocess()(outputs, []) == []
