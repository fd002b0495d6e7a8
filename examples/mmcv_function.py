"""Call the operator through mmcv's names, with or without mmcv."""

import torch

from deformdetr.integrations.mmcv import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

spatial_shapes = torch.tensor([[32, 48], [16, 24]])
level_start_index = torch.tensor([0, 32 * 48])
value = torch.randn(2, 32 * 48 + 16 * 24, 8, 32, requires_grad=True)
locations = torch.rand(2, 100, 8, 2, 4, 2)
weights = torch.rand(2, 100, 8, 2 * 4).softmax(-1).unflatten(-1, (2, 4))

out = MultiScaleDeformableAttnFunction.apply(value, spatial_shapes, level_start_index, locations, weights, 64)
out.sum().backward()
print("output", tuple(out.shape), "and gradient", tuple(value.grad.shape))

same = multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)
print("both functions return the same:", torch.equal(out, same))
