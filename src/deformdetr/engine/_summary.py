"""Shapes, parameters, operations and memory of a model, without computing anything."""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deformdetr._text import table
from deformdetr.config import DeformableDETRConfig, DETRConfig, with_backbone_weights
from deformdetr.kernels import register_flop_formulas

# Parts in their order in a forward pass.
_ORDER = (
    "backbone",
    "neck",
    "projection",
    "position",
    "encoder",
    "queries",
    "decoder",
    "class_heads",
    "class_head",
    "box_head",
    "mask_head",
)


class Stage(NamedTuple):
    """A part of a model."""

    name: str
    output: tuple[tuple[int, ...], ...]
    """Shapes of its outputs, each once."""
    parameters: int
    trainable: int
    multiply_adds: int


class ModelSummary(NamedTuple):
    """Sizes of a model for one image. Memory is in bytes, in float32."""

    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    stages: list[Stage]
    parameters: int
    trainable: int
    multiply_adds: int
    """Of a forward pass; papers call them FLOPs."""
    weight_bytes: int
    optimizer_bytes: int
    """Gradients, and the two averages of AdamW, of the trained parameters."""
    activation_bytes: int
    """Tensors that autograd keeps for the backward pass, without dropout and denoising."""

    def table(self) -> str:
        """Return the summary as text."""
        rows: list[tuple[str, ...]] = []
        for stage in self.stages:
            numbers = f"{stage.parameters:,}", f"{stage.trainable:,}", f"{stage.multiply_adds / 1e9:.2f}"
            first, *others = [" × ".join(map(str, shape)) for shape in stage.output] or [""]
            rows.append((stage.name, first, *numbers))
            rows += [("", other, "", "", "") for other in others]
        rows.append(("total", "", f"{self.parameters:,}", f"{self.trainable:,}", f"{self.multiply_adds / 1e9:.2f}"))
        training = self.weight_bytes + self.optimizer_bytes + self.activation_bytes
        return "\n".join(
            [
                f"one image of {self.size[0]} x {self.size[1]} pixels (height x width)",
                table(("part", "output", "parameters", "trained", "multiply-adds (G)"), rows, texts=2),
                "A multiplication and an addition count as one, as in the tables of the papers, which call them FLOPs.",
                f"memory in float32: weights {_megabytes(self.weight_bytes)}; training "
                f"{_megabytes(training)} = weights + gradients and AdamW {_megabytes(self.optimizer_bytes)} + "
                f"activations {_megabytes(self.activation_bytes)} per image, without workspaces of kernels",
            ]
        )


def summarize(config: DeformableDETRConfig | DETRConfig, size: tuple[int, int] = (800, 1200)) -> ModelSummary:
    """Return shapes, parameters, multiply-adds and memory of a model for one image without padding.

    Nothing is computed and no weights are loaded: tensors are on the meta device. It takes a second.

    Args:
        config: Config of the model.
        size: (height, width) of the image, in pixels.

    Raises:
        TypeError: If the sides are not two integers.
        ValueError: If a side is not positive, or the image is too small for the model.

    Examples:
        >>> from deformdetr import preset
        >>> from deformdetr.engine import summarize
        >>> summary = summarize(preset("demo"), (96, 128))
        >>> [stage.name for stage in summary.stages]
        ['backbone', 'neck', 'encoder', 'queries', 'decoder', 'class_heads']
        >>> summary.parameters
        491213
    """
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError) as error:
        raise TypeError(f"size must be a height and a width in whole pixels, got {size!r}") from error
    if min(height, width) < 1:
        raise ValueError(f"size must be positive, got {height} x {width}")
    with torch.device("meta"):
        model = with_backbone_weights(config, None).build().eval()
        image = torch.empty(1, 3, height, width)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    activation_bytes = _kept_bytes(model, image)
    outputs, flops = _trace(model, image)
    stages = [
        Stage(
            name,
            outputs.get(name, ()),
            sum(parameter.numel() for parameter in part.parameters()),
            sum(parameter.numel() for parameter in part.parameters() if id(parameter) in trained),
            flops(name),
        )
        for name, part in sorted(model.named_children(), key=lambda item: (*_ORDER, item[0]).index(item[0]))
    ]
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if id(parameter) in trained)
    return ModelSummary(
        size=(height, width),
        stages=[stage for stage in stages if stage.parameters],
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=trainable,
        multiply_adds=flops(""),
        weight_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        optimizer_bytes=3 * 4 * trainable,
        activation_bytes=activation_bytes,
    )


def _trace(model: nn.Module, image: Tensor) -> tuple[dict[str, tuple[tuple[int, ...], ...]], Callable[[str], int]]:
    """Return the output shapes of each part, and a function from the name of a part to its multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode

    register_flop_formulas()
    outputs: dict[str, tuple[tuple[int, ...], ...]] = {}
    handles = [
        module.register_forward_hook(_shape_hook(outputs, name.partition(".")[0]))
        for name, module in model.named_modules()
        if name and (name.count(".") == 0 or isinstance(model.get_submodule(name.partition(".")[0]), nn.ModuleList))
    ]
    # The counter fails where it follows gradients that there are not, and cannot count the fused attention of CPUs.
    model.requires_grad_(requires_grad=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.device("meta"):
        model(image)
    for handle in handles:
        handle.remove()
    counts: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
    root = type(model).__name__

    def multiply_adds(name: str) -> int:
        part = model.get_submodule(name)
        # A list has no forward pass of its own.
        names = [f"{name}.{index}" for index in range(len(part))] if isinstance(part, nn.ModuleList) else [name]
        keys = [f"{root}.{each}" if each else "Global" for each in names]
        return sum(sum(counts[key].values()) for key in keys if key in counts) // 2

    return outputs, multiply_adds


def _shape_hook(outputs: dict[str, tuple[tuple[int, ...], ...]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs[name] = tuple(dict.fromkeys(tuple(tensor.shape) for tensor in _main_tensors(output)))

    return record


def _main_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors to show: all of a list, the content of queries, and the last boxes of a decoder."""
    match output:
        case Tensor():
            yield output
        case tuple() if hasattr(output, "content"):
            yield output.content
        case tuple() if hasattr(output, "hidden_states"):
            yield output.hidden_states[-1]
        case list() | tuple():
            for each in output:
                yield from _main_tensors(each)


def _kept_bytes(model: nn.Module, image: Tensor) -> int:
    """Return the bytes of the tensors that autograd keeps for the backward pass, without parameters and the image."""
    with _keeping() as kept, sdpa_kernel(SDPBackend.MATH), torch.device("meta"):
        model(image)
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers(), image)}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


@contextmanager
def _keeping() -> Iterator[dict[int, torch.UntypedStorage]]:
    """Collect the storages of saved tensors, which views share."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
