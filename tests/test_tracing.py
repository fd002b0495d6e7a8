"""`torch.jit.trace` records layers and models so that they serve other batches and sizes, and warns of nothing here."""

import io
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deformdetr import PRESETS
from deformdetr.config import ConvBackboneConfig, DeformableDETRConfig, ResNetConfig
from deformdetr.nn import DCNv3, DeformableAttention2d, MSDeformAttn
from deformdetr.nn._window_attention import WindowAttention

pytestmark = [
    pytest.mark.compile,
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning"),
    # PyTorch's attention and resizing compare sizes, which their results do not depend on.
    pytest.mark.filterwarnings(r"ignore::torch.jit.TracerWarning:torch\.nn"),
]

TOLERANCE = 1e-5


class OnTwoMaps(nn.Module):
    """Attend to two maps, whose sizes only their shapes tell, or a tensor of them."""

    def __init__(self, layer: MSDeformAttn, *, has_tensor: bool) -> None:
        super().__init__()
        self.layer = layer
        self.has_tensor = has_tensor

    def forward(self, query: Tensor, references: Tensor, fine: Tensor, coarse: Tensor, padding: Tensor) -> Tensor:
        shapes: Any = [(level.shape[2], level.shape[3]) for level in (fine, coarse)]
        if self.has_tensor:
            sizes = [torch.full((), size) for shape in shapes for size in shape]
            shapes = torch.stack(sizes).view(2, 2)
        pixels = torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).transpose(1, 2)
        return self.layer(query, references, pixels, shapes, None, padding)


class Predicted(nn.Module):
    """Return the predictions of a model as a tuple, because graphs hold no dict of lists."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self.model(images, padding_mask)
        return tuple(outputs[name] for name in ("pred_logits", "pred_boxes", "pred_masks") if name in outputs)


def tiny_presets() -> dict[str, Any]:
    """Shrink every preset; those that differ in nothing then are left out."""
    tiny: dict[str, Any] = {}
    for name, config in PRESETS.items():
        changes: dict[str, Any] = {
            "num_classes": 5,
            # More than the smallest image has pixels, where the encoder proposes.
            "num_queries": 90 if isinstance(config, DeformableDETRConfig) and config.two_stage else 7,
            "d_model": 16,
            "n_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "d_ffn": 24,
            "backbone": ConvBackboneConfig(
                channels=(8, 8, 16, 16), dilation=isinstance(config.backbone, ResNetConfig) and config.backbone.dilation
            ),
        }
        if isinstance(config, DeformableDETRConfig):
            changes["norm_groups"] = 2
        config = config.replace(**changes)
        if config not in tiny.values():
            tiny[name] = config
    tiny["masks"] = tiny["deformable_detr_r50"].replace(masks=True)
    tiny["learned_position"] = tiny["detr_r50"].replace(position={"kind": "learned"})
    tiny["resnet"] = tiny["deformable_detr_r50"].replace(backbone=ResNetConfig(name="resnet18", weights=None))
    return tiny


def randomize(module: nn.Module, rng: torch.Generator) -> None:
    """Let every parameter matter; at the start some are zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)


def images_and_mask(batch: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    padding_mask = torch.zeros(batch, height, width, dtype=torch.bool)
    padding_mask[0, height * 3 // 4 :] = True
    padding_mask[-1, :, width * 2 // 3 :] = True
    return torch.randn(batch, 3, height, width, generator=rng), padding_mask


@pytest.fixture(autouse=True)
def _interpret():
    """Run graphs as they are: optimizing one for every new size takes seconds."""
    with torch.jit.optimized_execution(False):
        yield


@pytest.mark.parametrize(
    ("points", "coordinates", "has_tensor"), [(4, 2, False), (4, 4, True), ((4, 2), 4, False), ((4, 2), 2, True)]
)
def test_traced_layer_serves_other_batches_queries_and_sizes(points, coordinates, has_tensor, rng):
    layer = OnTwoMaps(MSDeformAttn(16, 2, 2, points), has_tensor=has_tensor)
    randomize(layer, rng)

    def inputs(batch: int, queries: int, height: int, width: int) -> tuple[Tensor, ...]:
        small = (height // 2, width // 2)
        pixels = height * width + small[0] * small[1]
        return (
            torch.randn(batch, queries, 16, generator=rng),
            torch.rand(batch, queries, 2, coordinates, generator=rng),
            torch.randn(batch, 16, height, width, generator=rng),
            torch.randn(batch, 16, *small, generator=rng),
            torch.rand(batch, pixels, generator=rng) < 0.2,
        )

    traced = torch.jit.trace(layer, inputs(2, 7, 6, 8))
    for sizes in ((2, 7, 6, 8), (3, 5, 10, 4), (1, 1, 2, 2)):
        others = inputs(*sizes)
        torch.testing.assert_close(traced(*others), layer(*others), rtol=TOLERANCE, atol=TOLERANCE)
    grads = [torch.autograd.grad(module(*others).sin().sum(), list(layer.parameters())) for module in (traced, layer)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("layer", "last"),
    [
        (lambda: DCNv3(channels=16, kernel_size=5, stride=2, pad=2, group=4), True),
        (lambda: DeformableAttention2d(16, 4, 2, map_size=6, stride=2), False),
        (lambda: WindowAttention(16, 4, window_size=3, shift=2), False),
    ],
    ids=["dcnv3", "deformable_attention_2d", "window_attention"],
)
def test_traced_layers_of_one_map_serve_other_batches_and_sizes(layer, last, rng):
    layer = layer()
    randomize(layer, rng)
    maps = [torch.randn(*sizes, generator=rng) for sizes in ((2, 16, 6, 8), (3, 16, 9, 5), (1, 16, 2, 2))]
    maps = [each.permute(0, 2, 3, 1) if last else each for each in maps]
    traced = torch.jit.trace(layer, (maps[0],))
    for x in maps:
        torch.testing.assert_close(traced(x), layer(x), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("config", tiny_presets().values(), ids=tiny_presets())
def test_traced_model_serves_other_batches_sizes_and_padding(config, rng):
    # In float64, rounding does not choose other queries.
    model = Predicted(config.build()).eval().double()
    randomize(model, rng)
    with torch.no_grad():
        images, padding_mask = images_and_mask(2, 96, 128, rng)
        traced = torch.jit.trace(model, (images.double(), padding_mask), check_trace=False)
        for sizes in ((3, 160, 96), (1, 64, 64)):
            images, padding_mask = images_and_mask(*sizes, rng)
            inputs = (images.double(), padding_mask)
            torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deformable_detr_r50", "detr_r50"])
def test_older_onnx_exporter_writes_models_for_other_batches_and_sizes(name, rng):
    model = Predicted(tiny_presets()[name].build()).eval()
    randomize(model, rng)
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "mask": {0: "batch", 1: "height", 2: "width"}}
    file = io.BytesIO()
    torch.onnx.export(
        model,
        images_and_mask(2, 96, 128, rng),
        file,
        input_names=list(axes),
        output_names=["logits", "boxes"],
        dynamic_axes=axes | {"logits": {0: "batch"}, "boxes": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    images, padding_mask = images_and_mask(3, 160, 96, rng)
    outputs = session.run(None, {"images": images.numpy(), "mask": padding_mask.numpy()})
    with torch.no_grad():
        expected = model(images, padding_mask)
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)
