"""Names and forms of DAT's original weights, written down apart from the library's reader."""

import re

import torch
from torch import Tensor, nn

from deformdetr.nn._dat_weights import translate_dat_weights
from goldens import fill, load_golden, unit

GOLDEN = load_golden("dat").arrays
ATTENTION = {
    "position_bias": "rpe_table",
    "offset_conv": "conv_offset.0",
    "offset_norm": "conv_offset.1.norm",
    "offset_proj": "conv_offset.3",
    "query_proj": "proj_q",
    "key_proj": "proj_k",
    "value_proj": "proj_v",
}
WINDOWS = {"position_bias": "relative_position_bias_table", "qkv_proj": "proj_qkv"}


def to_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `DATBackbone` as the original stores them."""
    original = {}
    for name, tensor in state.items():
        stage, _, rest = name.removeprefix("stages.").partition(".")
        if rest.startswith("downsample."):
            part = rest.removeprefix("downsample.").replace("conv", "0").replace("norm", "1.norm")
            original[f"down_projs.{int(stage) - 1}.{part}" if int(stage) else f"patch_proj.{part}"] = tensor
            continue
        block, _, part = rest.removeprefix("blocks.").partition(".")
        if match := re.match(r"norm([12])\.", part):
            layer = 2 * int(block) + int(match[1]) - 1
            original[f"stages.{stage}.layer_norms.{layer}.norm.{part.partition('.')[2]}"] = tensor
        elif part.startswith("feed_forward."):
            original[f"stages.{stage}.mlps.{block}.chunk.{part.removeprefix('feed_forward.')}"] = tensor
        else:
            is_window = f"stages.{stage}.blocks.{block}.attention.qkv_proj.weight" in state
            prefix = f"stages.{stage}.attns.{block}."
            for key, value in attention_to_original({part.removeprefix("attention."): tensor}, is_window).items():
                original[prefix + key] = value
    return original


def attention_to_original(state: dict[str, Tensor], is_window: bool) -> dict[str, Tensor]:
    """Return the weights, or gradients, of one attention layer as the original stores them."""
    original = {}
    for name, tensor in state.items():
        layer, dot, kind = name.partition(".")
        renamed = {"output_proj": "proj_out", **(WINDOWS if is_window else ATTENTION)}[layer]
        if layer == "position_bias" and is_window:
            tensor = tensor.flatten(1).T
        elif layer == "offset_proj":
            tensor = tensor[[1, 0], :, None, None]
        elif kind == "weight" and layer.endswith("_proj") and not is_window:
            tensor = tensor[:, :, None, None]
        original[renamed + dot + kind] = tensor
    return original


def golden_layer(layer: nn.Module, tag: str, *, is_window: bool = False) -> nn.Module:
    """Return an attention layer in float64 with the parameters of a golden, read as those of a checkpoint."""
    shapes = {name: tuple(t.shape) for name, t in attention_to_original(layer.state_dict(), is_window).items()}
    state = {f"stages.0.attns.0.{name}": fill(f"{tag}.{name}", shape) for name, shape in shapes.items()}
    prefix = "stages.0.blocks.0.attention."
    layer.load_state_dict({name.removeprefix(prefix): t for name, t in translate_dat_weights(state).items()})
    return layer.double()


def assert_golden(layer: nn.Module, tag: str, x: Tensor, *, is_window: bool = False) -> None:
    """Check that a layer's output and gradients in float64 are those of a golden."""
    output = layer(x)
    torch.testing.assert_close(output, torch.from_numpy(GOLDEN[f"{tag}/output"]), rtol=0, atol=1e-12)
    leaves = dict(layer.named_parameters())
    upstream = unit(f"{tag}.grad_output", tuple(output.shape))
    grad_x, *gradients = torch.autograd.grad(output, [x, *leaves.values()], upstream)
    found = {"input": grad_x} | attention_to_original(dict(zip(leaves, gradients, strict=True)), is_window)
    assert {key.removeprefix(f"{tag}/grad/") for key in GOLDEN if key.startswith(f"{tag}/grad/")} == set(found)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, torch.from_numpy(GOLDEN[f"{tag}/grad/{key}"]), rtol=1e-11, atol=1e-11)
