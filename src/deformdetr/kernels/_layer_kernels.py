"""The setting for which layers run on CPU kernels of this library instead of PyTorch's."""

import functools
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias, get_args

import torch

LayerKernel: TypeAlias = Literal["channels_last", "chunks", "dropout", "linear"]

# By the vendor's name in /proc/cpuinfo.
_FASTER: dict[str, frozenset[LayerKernel]] = {
    "AuthenticAMD": frozenset({"channels_last", "chunks", "dropout", "linear"}),
    "GenuineIntel": frozenset({"channels_last", "chunks", "dropout"}),
}
_selected: frozenset[LayerKernel] | None = None


class set_layer_kernels:  # noqa: N801 - named like `torch.set_grad_enabled`, which is used in the same two ways.
    """Select the CPU kernels that layers use in place of PyTorch's, for the process or inside a `with` block.

    By default, a layer uses a kernel where it saves at least 3 % of a whole forward or training step of Deformable DETR
    on this kind of processor. On other processors, and on GPUs, layers use PyTorch's kernels.

    - `linear` multiplies by oneDNN, in the forward and in the backward: chosen on AMD with AVX-512, where MKL uses AVX2
      only. It saves nothing on Intel.
    - `dropout` draws 16 random bits per number, not 53: chosen on AMD and Intel with AVX-512.
    - `chunks` runs the feed-forward part of encoder layers on as many rows as fit the caches: likewise.
    - `channels_last` runs `ResNetBackbone` in that memory format: likewise.

    `linear` is also off while `torch.backends.mkldnn.enabled` is False. A compiled function keeps the selection that it
    was compiled with, and exported programs use PyTorch's kernels.

    Args:
        kernels: Names of the kernels to use, on any processor; an empty list for PyTorch's alone, None for the default.

    Raises:
        ValueError: If a name is unknown.

    Examples:
        >>> import torch
        >>> from deformdetr.nn import FeedForward
        >>> layer = FeedForward(d_model=8, d_ffn=16)
        >>> with set_layer_kernels([]):
        ...     out = layer(torch.rand(2, 8))
    """

    def __init__(self, kernels: Iterable[LayerKernel] | None) -> None:
        global _selected
        selected = None if kernels is None else frozenset(kernels)
        known = get_args(LayerKernel)
        if selected is not None and not selected <= set(known):
            raise ValueError(f"kernels must be among {', '.join(known)}; got {', '.join(sorted(selected))}")
        self._previous = _selected
        _selected = selected

    def __enter__(self) -> None:
        """Keep the selection until the block ends."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the selection from before."""
        global _selected
        _selected = self._previous


def is_selected(kernel: LayerKernel) -> bool:
    """Return whether layers use this kernel on CPUs."""
    if kernel == "linear" and not (bool(torch.backends.mkldnn.enabled) and _has_onednn()):
        return False
    return kernel in (_faster_here() if _selected is None else _selected)


@functools.cache
def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@functools.cache
def _faster_here() -> frozenset[LayerKernel]:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return frozenset()
    return _FASTER.get(_vendor(Path("/proc/cpuinfo")), frozenset())


def _vendor(cpuinfo: Path) -> str:
    """Return the vendor of the processor, or an empty string where the system does not say."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
