"""Checkpoints of DAT's original implementation, as published with the paper of 2022, in this library's names."""

import re
from collections.abc import Mapping

from torch import Tensor

# The classifier and its norm, and what follows from the sizes of windows and images.
_UNUSED = re.compile(r"cls_(norm|head)\..+|.+\.(relative_position_index|attn_mask)")
_LAYERS = {
    "proj_qkv": "qkv_proj",
    "proj_q": "query_proj",
    "proj_k": "key_proj",
    "proj_v": "value_proj",
    "proj_out": "output_proj",
    "conv_offset.0": "offset_conv",
    "conv_offset.1.norm": "offset_norm",
    "conv_offset.3": "offset_proj",
}
_TABLES = ("relative_position_bias_table", "rpe_table")


def translate_dat_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `DATBackbone`; entries of unknown names keep them."""
    return {_rename(name): _reshape(name, tensor) for name, tensor in state.items() if not _UNUSED.fullmatch(name)}


def _rename(name: str) -> str:
    if match := re.fullmatch(r"(?:patch_proj|down_projs\.(\d+))\.(0|1\.norm)\.(\w+)", name):
        stage = 0 if match[1] is None else int(match[1]) + 1
        return f"stages.{stage}.downsample.{'conv' if match[2] == '0' else 'norm'}.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d+)\.layer_norms\.(\d+)\.norm\.(\w+)", name):
        block, norm = divmod(int(match[2]), 2)
        return f"stages.{match[1]}.blocks.{block}.norm{norm + 1}.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d+)\.mlps\.(\d+)\.chunk\.(\w+\.\w+)", name):
        return f"stages.{match[1]}.blocks.{match[2]}.feed_forward.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d+)\.attns\.(\d+)\.(.+)", name):
        layer, _, kind = match[3].rpartition(".")
        own = "position_bias" if match[3] in _TABLES else f"{_LAYERS.get(layer, layer)}.{kind}"
        return f"stages.{match[1]}.blocks.{match[2]}.attention.{own}"
    return name


def _reshape(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in this library's form, or as it is if it does not have the form of the original."""
    if name.endswith(".relative_position_bias_table") and tensor.ndim == 2:
        side = round(len(tensor) ** 0.5)
        return tensor.T.reshape(-1, side, side) if side**2 == len(tensor) else tensor
    if re.search(r"\.(proj_\w+|conv_offset\.3)\.weight$", name) and tensor.shape[2:] == (1, 1):
        # Convolutions with 1x1 kernels are linear layers here, and offsets (y, x) are (x, y).
        matrix = tensor.flatten(1)
        return matrix.flip(0) if "conv_offset" in name else matrix
    return tensor
