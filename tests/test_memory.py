"""Tensors without the memory that their shapes ask for are refused before anything reads there."""

import pytest
import torch

from deformdetr._memory import check_storages
from deformdetr.kernels import ms_deform_attn


def draw(rng: torch.Generator) -> list[torch.Tensor]:
    value = torch.rand(1, 16, 2, 8, generator=rng)
    return [value, torch.rand(1, 3, 2, 1, 2, 2, generator=rng), torch.rand(1, 3, 2, 1, 2, generator=rng)]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_operator_refuses_zeros_that_have_no_memory(at: int, rng: torch.Generator):
    tensors = draw(rng)
    tensors[at] = torch._efficientzerotensor(tensors[at].shape)
    with pytest.raises(ValueError, match="has no memory"):
        ms_deform_attn(tensors[0], [(4, 4)], *tensors[1:])


def test_backward_refuses_a_gradient_without_memory(rng: torch.Generator):
    value, locations, weights = draw(rng)
    out = ms_deform_attn(value.requires_grad_(), [(4, 4)], locations, weights)
    with pytest.raises(ValueError, match="has no memory"):
        out.backward(torch._efficientzerotensor(out.shape))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_reference_refuses_tensors_whose_storage_was_shrunk(at: int, rng: torch.Generator):
    tensors = draw(rng)
    tensors[at].untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="its storage was resized to 8"):
        ms_deform_attn(tensors[0], [(4, 4)], *tensors[1:], backend="reference")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_second_derivative_refuses_tensors_whose_storage_was_shrunk(at: int, rng: torch.Generator):
    tensors = [tensor.requires_grad_() for tensor in draw(rng)]
    out = ms_deform_attn(tensors[0], [(4, 4)], *tensors[1:])
    grads = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
    tensors[at].untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="its storage was resized to 8"):
        torch.autograd.grad(sum(grad.sum() for grad in grads), tensors)


def test_views_of_any_strides_hold_their_last_element(rng: torch.Generator):
    tensor = torch.rand(5, 6, generator=rng)
    views = (tensor, tensor.T, tensor[1:, ::2], tensor[2:3].expand(4, 6), tensor[:0], tensor.as_strided((3, 6), (2, 1)))
    check_storages(None, *views, tensor.to("meta"))
    parts = [tensor[:, ::2].T, tensor[2:], tensor[1:4], tensor[:4].T]
    tensor.untyped_storage().resize_(4 * 26)
    for view in (tensor, *parts[:2]):
        with pytest.raises(ValueError, match="bytes, but its storage was resized to 104"):
            check_storages(view)
    check_storages(*parts[2:])
