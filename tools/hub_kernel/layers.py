"""Layers whose `forward` takes the place of others."""

from collections.abc import Sequence

from torch import Tensor, nn

from deformdetr.kernels._ms_deform_attn import ms_deform_attn


class MultiScaleDeformableAttention(nn.Module):
    """Sample as transformers' layer of this name does."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)
