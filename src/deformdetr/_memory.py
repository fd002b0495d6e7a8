"""Check that tensors have the memory that their shapes ask for, before a kernel gets their addresses."""

import operator

from torch import Tensor


def check_storages(*tensors: Tensor | None) -> None:
    """Check that the storages of tensors hold all their elements: a storage can be shrunk below its tensors.

    Raises:
        ValueError: If a storage is too small or missing, as for zeros in PyTorch's forward-mode derivatives.
    """
    for tensor in tensors:
        if tensor is None or not tensor.numel():
            continue
        if tensor.is_contiguous():
            last = tensor.numel() - 1
        else:
            strides = tensor.stride()
            last = sum(map(operator.mul, tensor.shape, strides)) - sum(strides)
        end = (tensor.storage_offset() + last + 1) * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        if end > held:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} needs {end} bytes, but its storage was "
                f"resized to {held}"
            )
        if not tensor.data_ptr() and tensor.device.type != "meta":
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} has no memory")
