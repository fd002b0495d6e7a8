"""State dicts of the goldens, and small models of every variant."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deformdetr.config import ConvBackboneConfig, DeformableDETRConfig, DETRConfig
from goldens import Golden, fill

# Golden: the preset that it was computed with.
PRESET_OF_GOLDEN = {
    "single_scale": "deformable_detr_r50_single_scale",
    "single_scale_dc5": "deformable_detr_r50_single_scale_dc5",
    "multi_scale": "deformable_detr_r50",
    "box_refine": "deformable_detr_r50_refine",
    "two_stage": "deformable_detr_r50_two_stage",
    "detr_r50": "detr_r50",
    "detr_r50_dc5": "detr_r50_dc5",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "single_scale": {"num_feature_levels": 1},
    "multi_scale": {},
    "box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
    "two_stage_without_refinement": {"two_stage": True},
}


TINY: dict[str, Any] = {
    "num_classes": 5,
    "num_queries": 12,
    "d_model": 16,
    "n_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "d_ffn": 24,
    "backbone": ConvBackboneConfig(channels=(8, 8, 16, 24)),
}


def tiny_config(**changes: Any) -> DeformableDETRConfig:
    """Describe a model that builds and runs in milliseconds."""
    return DeformableDETRConfig(**TINY | {"norm_groups": 4} | changes)


def tiny_detr_config(**changes: Any) -> DETRConfig:
    """Describe a DETR of that size."""
    return DETRConfig(**TINY | changes)


def golden_checkpoint(golden: Golden) -> dict[str, Tensor]:
    """Return the original's state dict that a golden was computed with; `tests/goldens/README.md` has the rules."""
    names: dict[str, list[int]] = golden.facts["state_dict_shapes"]
    layers = len({name.split(".")[3] for name in names if name.startswith("transformer.decoder.layers.")})
    shares_heads = not any(name.startswith("transformer.decoder.bbox_embed.") for name in names)
    state = {}
    for name, shape in names.items():
        source = re.sub(r"^transformer\.decoder\.(bbox_embed|class_embed)\.", r"\1.", name)
        if shares_heads:
            source = re.sub(r"^(bbox_embed|class_embed)\.\d+\.", rf"\1.{layers - 1}.", source)
        state[name] = fill(source, tuple(shape))
    return state


def random_state(config: DeformableDETRConfig | DETRConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """Draw every entry of the state dict of a model."""
    return {name: torch.randn(value.shape, generator=rng) for name, value in config.build().state_dict().items()}


def assert_equal(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that two state dicts have the same names and values."""
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
