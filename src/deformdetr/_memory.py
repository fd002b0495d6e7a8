"""Whether tensors hold the memory that their shapes ask for, which kernels that take addresses rely on."""

from torch import Tensor


def check_storages(*tensors: Tensor | None) -> None:
    """Check that the memory of tensors holds all of their elements: storages can be shrunk below their views.

    Raises:
        ValueError: If one does not, or has no memory, as zeros that PyTorch keeps for forward-mode derivatives.
    """
    for tensor in tensors:
        if tensor is None or not tensor.numel():
            continue
        end = (tensor.storage_offset() + _last(tensor) + 1) * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        if end > held:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} needs {end} bytes, but its storage was "
                f"resized to {held}"
            )
        if not tensor.data_ptr() and tensor.device.type != "meta":
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} has no memory")


def _last(tensor: Tensor) -> int:
    """Return how far behind the first element the last one lies."""
    if tensor.is_contiguous():
        return tensor.numel() - 1
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
