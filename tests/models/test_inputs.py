"""Layers get no padding mask if there is certainly no padding."""

import pytest
import torch

from checkpoints import tiny_config
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
