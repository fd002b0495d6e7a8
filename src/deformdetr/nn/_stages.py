"""Which of its four stages a backbone returns, and their strides."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def ascending_stages(out_layers: Sequence[int]) -> tuple[int, ...]:
    """Return the stages as a tuple.

    Raises:
        ValueError: If there are none, or they are not ascending out of 1 to 4.
    """
    if not out_layers or list(out_layers) != sorted(set(out_layers) & {1, 2, 3, 4}):
        raise ValueError(f"out_layers must be ascending stages out of 1 to 4, got {tuple(out_layers)}")
    return tuple(out_layers)


def strides_of(out_layers: tuple[int, ...], *, dilation: bool) -> tuple[int, ...]:
    """Return the stride of every stage, in pixels of the image; with dilation the last stage keeps stride 16."""
    return tuple(16 if dilation and layer == 4 else 2 << layer for layer in out_layers)


def run_stages(stages: Iterable[nn.Module], x: Tensor, out_layers: tuple[int, ...]) -> list[Tensor]:
    """Return the outputs of the chosen stages, each of which takes the output of the one before."""
    features = []
    for index, stage in enumerate(stages, start=1):
        x = stage(x)
        if index in out_layers:
            features.append(x)
    return features
