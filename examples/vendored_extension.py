"""Run code written for the compiled extension MultiScaleDeformableAttention without compiling it."""

import torch

from deformdetr.integrations import extension

# Call this before the first import of the repository that needs the extension.
extension.install()

import MultiScaleDeformableAttention as MSDA  # noqa: E402, N817


class MSDeformAttnFunction(torch.autograd.Function):
    """The function that repositories define in `models/ops/functions`."""

    @staticmethod
    def forward(ctx, value, shapes, level_start_index, locations, weights, im2col_step):
        """Call the extension's forward and save its inputs for the backward."""
        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, level_start_index, locations, weights)
        return MSDA.ms_deform_attn_forward(value, shapes, level_start_index, locations, weights, im2col_step)

    @staticmethod
    def backward(ctx, grad_output):
        """Call the extension's backward."""
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, ctx.im2col_step
        )
        return grad_value, None, None, grad_locations, grad_weights, None


shapes = torch.tensor([[32, 48], [16, 24]])
level_start_index = torch.tensor([0, 32 * 48])
value = torch.randn(2, 32 * 48 + 16 * 24, 8, 32, requires_grad=True)
locations = torch.rand(2, 100, 8, 2, 4, 2, requires_grad=True)
weights = torch.rand(2, 100, 8, 2 * 4).softmax(-1).unflatten(-1, (2, 4)).requires_grad_()

out = MSDeformAttnFunction.apply(value, shapes, level_start_index, locations, weights, 64)
out.sum().backward()
print("output", tuple(out.shape), "and gradients", *(tuple(x.grad.shape) for x in (value, locations, weights)))

extension.uninstall()
