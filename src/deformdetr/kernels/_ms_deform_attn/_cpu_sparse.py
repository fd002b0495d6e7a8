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
    dots = torch.zeros(row.shape)
    starts = torch.arange(0, row.numel() + 1, row.shape[1], dtype=torch.int32)
    matrix = _csr(starts, row.flatten(), dots.view(-1), (len(bags), len(rows)))
    torch.sparse.sampled_addmm(matrix, bags, rows.t(), beta=0, out=matrix)
    return dots


def add_up(
    bags: Float32[Tensor, "bags channels"],
    row: Int32[Tensor, "bags entries"],
    weight: Float32[Tensor, "bags entries"],
    out: Float32[Tensor, "rows channels"],
) -> None:
    """Set every row to the weighted sum of the vectors of all bags that have entries in it.

    Entries are sorted by row, and stably: a row adds up in the order of the bags, however many threads there are.
    """
    starts, bag, order = _sort(row, len(out))
    out.addmm_(_csr(starts, bag, weight.flatten().index_select(0, order), (len(out), len(bags))), bags, beta=0)


def add_up_by_corner(
    bags: Float32[Tensor, "bags channels"],
    first: Int32[Tensor, "bags samples"],
    weights: Sequence[Float32[Tensor, "bags samples"]],
    block: Block,
    out: Float32[Tensor, "rows channels"],
) -> None:
    """Do the same for samples' four pixels, given the first, in four products with samples that are sorted once.

    All pixels to the right are equally far from the first, so their product is the same, but into other rows. For those
    below, `block` knows which row has which samples.
    """
    starts, bag, order = _sort(first, len(out))
    starts_below = block.move_down(starts)
    steps = (starts, 0), (starts, block.heads), (starts_below, 0), (starts_below, block.heads)
    for index, ((some_starts, step), weight) in enumerate(zip(steps, weights, strict=True)):
        rows = len(out) - step
        part = _csr(some_starts[: rows + 1], bag, weight.flatten().index_select(0, order), (rows, len(bags)))
        out[step:].addmm_(part, bags, beta=min(index, 1))


def _sort(row: Int32[Tensor, "bags entries"], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give where every row's entries start, the bags of the sorted entries, and where those were before."""
    sorted_row, order = row.flatten().sort(stable=True)
    starts = torch._convert_indices_from_coo_to_csr(sorted_row, rows, out_int32=True)
    return starts, order.to(torch.int32).floor_divide_(row.shape[1]), order


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    _spend_beta_warning()
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


@functools.cache
def _spend_beta_warning() -> None:
    """Have PyTorch warn that such tensors are in beta, which it does once, where nobody hears it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32, check_invariants=False)
