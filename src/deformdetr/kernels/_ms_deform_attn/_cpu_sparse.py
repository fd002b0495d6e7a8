"""Products with the sparse matrix of bags by rows: a bag has as many entries as any other, each in some row."""

import functools
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._cpu_samples import Block


def dot_rows(
    bags: Float32[Tensor, "bags channels"], rows: Float32[Tensor, "rows channels"], row: Int32[Tensor, "bags entries"]
) -> Float32[Tensor, "bags entries"]:
    """Give the inner product of every bag's vector with each of its rows."""
    # PyTorch takes a matrix to have no more entries than places, and cuts off the others; all products are fewer here.
    if row.shape[1] > len(rows):
        return (bags @ rows.t()).gather(1, row.long())
    # Zeros, because what is there times `beta` is added.
    dots = torch.zeros_like(row, dtype=torch.float32)
    starts = torch.arange(0, row.numel() + 1, row.shape[1], dtype=torch.int32, device=row.device)
    matrix = _csr(starts, row.flatten(), dots.view(-1), (len(bags), len(rows)))
    torch.sparse.sampled_addmm(matrix, bags, rows.t(), beta=0, out=matrix)
    return dots


def add_up(
    bags: Float32[Tensor, "bags channels"],
    first: Int32[Tensor, "images queries samples"],
    weights: Sequence[Float32[Tensor, "images queries samples"]],
    block: Block,
    out: Float32[Tensor, "rows channels"],
) -> None:
    """Set every row to the weighted sum of the vectors of all bags with samples on it, given the samples' first pixels.

    Entries of the matrix are sorted by row, and stably: a row adds up in the order of the bags, however many threads
    there are. On levels with few samples for their size, all four pixels of a sample are entries. On the others its
    first one is, and three more products add the rest: pixels to the right are all equally far from the first ones, so
    that the entries are the same, in other rows; for those below, `block` knows which row has which entries.
    """
    images = len(first)
    first, *weights = (tensor.view(images, -1, block.groups, block.points) for tensor in (first, *weights))
    few, many = slice(block.few), slice(block.few, None)
    pixels = torch.stack([first[:, :, few] + step[few] for step in block.steps], -1)
    shares = torch.stack([weight[:, :, few] for weight in weights], -1)
    row, order = torch.cat([pixels.flatten(), first[:, :, many].flatten()]).sort(stable=True)
    weight = torch.cat([shares.flatten(), weights[0][:, :, many].flatten()]).index_select(0, order)
    bag = block.bag.index_select(0, order)
    starts = torch._convert_indices_from_coo_to_csr(row, len(out), out_int32=True)
    out.addmm_(_csr(starts, bag, weight, (len(out), len(bags))), bags, beta=0)
    if block.few == block.groups:
        return
    rest = [weight[:, :, many].flatten() for weight in weights[1:]]
    # The rows of an image are together, and in it those of levels with few samples come first.
    size, begin = len(row) // images, pixels.numel() // images
    for image, rows in enumerate(out.view(images, -1, out.shape[1])[:, block.few_rows :]):
        entries = slice(image * size + begin, (image + 1) * size)
        end = (image + 1) * len(out) // images
        right = starts[end - len(rows) : end + 1] - entries.start
        below = block.move_down(right)
        sample = order[entries] - pixels.numel()
        for some_starts, step, share in zip((right, below, below), (block.heads, 0, block.heads), rest, strict=True):
            left = len(rows) - step
            values = share.index_select(0, sample)
            rows[step:].addmm_(_csr(some_starts[: left + 1], bag[entries], values, (left, len(bags))), bags)


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    _spend_beta_warning()
    return torch.sparse_csr_tensor(starts, columns, values, shape, device=values.device, check_invariants=False)


@functools.cache
def _spend_beta_warning() -> None:
    """Have PyTorch warn that such tensors are in beta, which it does once, where nobody hears it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32, device="cpu", check_invariants=False)
