"""The models of transformers with this library's operator: the same outputs and gradients, and how it is undone."""

import copy
import importlib
import inspect
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate import hooks
from torch import Tensor, nn

from deformdetr.integrations.transformers import accelerate
from deformdetr.kernels import ms_deform_attn


def build(name: str, **config: Any) -> nn.Module:
    """Build a model by its class's name from its config."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config))


def resnet(kind: str = "ResNetConfig", stages: tuple[int, ...] = (2, 3, 4)) -> Any:
    return getattr(transformers, kind)(
        embedding_size=8,
        layer_type="basic",
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        out_features=[f"stage{stage}" for stage in stages],
    )


def swin(*stages: int) -> Any:
    return transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=[f"stage{stage}" for stage in stages],
    )


DETR = {
    "num_labels": 3,
    "num_queries": 7,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
RT_DETR = DETR | {
    "encoder_in_channels": [8, 16, 16],
    "encoder_hidden_dim": 32,
    "hidden_expansion": 0.5,
    "feat_strides": [8, 16, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    "anchor_image_size": None,
}
VIT_DETR = {
    "num_labels": 3,
    "num_queries": 7,
    "group_detr": 1,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "projector_scale_factors": [2.0, 0.5],
}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "num_windows": 4,
    "window_block_indices": [0],
}
MASKS = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
    "num_queries": 5,
}


def rt_detr(name: str, **config: Any) -> nn.Module:
    return build(name, **RT_DETR | {"backbone_config": resnet("RTDetrResNetConfig")} | config)


def grounding_dino(name: str) -> nn.Module:
    text = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return build(name, backbone_config=resnet(), text_config=text, **DETR)


def omdet_turbo() -> nn.Module:
    text = transformers.CLIPTextConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=1,
        eos_token_id=29,
    )
    model = build(
        "OmDetTurboForObjectDetection",
        text_config=text,
        backbone_config=swin(2, 3, 4),
        use_timm_backbone=False,
        apply_layernorm_after_vision_backbone=False,
        encoder_hidden_dim=32,
        decoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        num_queries=7,
        encoder_attention_heads=2,
        decoder_num_heads=2,
        decoder_num_layers=2,
        encoder_dim_feedforward=16,
        decoder_dim_feedforward=16,
        class_embed_dim=16,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=32,
    )
    # It keeps embeddings of words from one call to the next, and their graph with them.
    model.language_backbone.requires_grad_(requires_grad=False)
    return model


def oneformer() -> nn.Module:
    return build(
        "OneFormerForUniversalSegmentation",
        backbone_config=swin(1, 2, 3, 4),
        conv_dim=32,
        mask_dim=32,
        task_seq_len=5,
        text_encoder_width=16,
        text_encoder_vocab_size=30,
        text_encoder_num_layers=1,
        text_encoder_context_length=5,
        **MASKS,
    )


WORDS = torch.tensor([[1, 2, 3, 4, 29]] * 2)
OMDET_WORDS = {
    "classes_input_ids": WORDS,
    "classes_attention_mask": torch.ones_like(WORDS),
    "classes_structure": torch.tensor([1, 1]),
    "tasks_input_ids": WORDS,
    "tasks_attention_mask": torch.ones_like(WORDS),
}

# Of every family: how to build a tiny model, how many of its parts sample, and what it takes besides an image.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Tensor]]] = {
    "d_fine": (lambda: rt_detr("DFineForObjectDetection", hidden_size=32), 2, {}),
    "d_fine_of_other_counts": (
        lambda: rt_detr("DFineForObjectDetection", hidden_size=32, decoder_n_points=[3, 6, 1]),
        2,
        {},
    ),
    "deformable_detr": (
        lambda: build("DeformableDetrForObjectDetection", backbone_config=resnet(), **DETR),
        3,
        {},
    ),
    "deimv2": (lambda: rt_detr("Deimv2ForObjectDetection", hidden_size=32), 2, {}),
    "grounding_dino": (lambda: grounding_dino("GroundingDinoForObjectDetection"), 3, {"input_ids": WORDS}),
    "lw_detr": (
        lambda: build(
            "LwDetrForObjectDetection",
            backbone_config=transformers.LwDetrViTConfig(**VIT, pretrain_image_size=64, out_indices=[1, 2]),
            **VIT_DETR,
        ),
        2,
        {},
    ),
    "mask2former": (
        lambda: build(
            "Mask2FormerForUniversalSegmentation",
            backbone_config=swin(1, 2, 3, 4),
            feature_size=32,
            mask_feature_size=32,
            **MASKS,
        ),
        1,
        {},
    ),
    "mm_grounding_dino": (lambda: grounding_dino("MMGroundingDinoForObjectDetection"), 3, {"input_ids": WORDS}),
    "omdet_turbo": (omdet_turbo, 2, OMDET_WORDS),
    "oneformer": (oneformer, 1, {"task_inputs": WORDS}),
    "pp_doclayout_v2": (
        lambda: rt_detr("PPDocLayoutV2ForObjectDetection", class_thresholds=[0.5] * 3, class_order=[0, 1, 2]),
        2,
        {},
    ),
    "pp_doclayout_v3": (
        lambda: rt_detr(
            "PPDocLayoutV3ForObjectDetection",
            backbone_config=resnet("RTDetrResNetConfig", (1, 2, 3, 4)),
            x4_feat_dim=8,
        ),
        2,
        {},
    ),
    "pp_doclayout_v4": (lambda: rt_detr("PPDocLayoutV4ForObjectDetection"), 2, {}),
    "rf_detr": (
        lambda: build(
            "RfDetrForObjectDetection",
            backbone_config=transformers.RfDetrDinov2Config(
                **VIT | {"num_windows": 2}, patch_size=16, out_features=["stage1", "stage2"]
            ),
            **VIT_DETR,
        ),
        2,
        {},
    ),
    "rt_detr": (lambda: rt_detr("RTDetrForObjectDetection"), 2, {}),
    "rt_detr_v2": (lambda: rt_detr("RTDetrV2ForObjectDetection"), 2, {}),
}


def randomize(model: nn.Module) -> None:
    """Draw weights that neither vanish nor explode, where initializations make attention sample at one place."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel():
            gain = 2 if parameter.ndim > 2 else 1
            nn.init.normal_(parameter, 0, (gain / parameter[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            nn.init.ones_(parameter)


def outputs_and_gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return every output, and the gradients of their weighted sum with respect to all parameters."""
    found = {name: value for name, value in model(**inputs).items() if isinstance(value, Tensor)}
    loss = torch.zeros(())
    for value in found.values():
        if value.requires_grad:
            # Text that is padding has logits of minus infinity.
            value = value[value.isfinite()]
            loss = loss + (value * torch.linspace(0.5, 1.5, value.numel())).sum()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found |= {name: grad for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    return {name: value.detach() for name, value in found.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare up to rounding, which in sums that cancel to zero is relative to their terms: to the largest of all."""
    assert actual.keys() == expected.keys()
    scales = {name: value[value.isfinite()].abs().amax().item() for name, value in expected.items() if value.numel()}
    for name, scale in scales.items():
        tolerance = 1e-6 * scale + 1e-8 * max(scales.values())
        error = f"{name}: {{}}".format
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=tolerance, msg=error)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_model_gives_the_same_outputs_and_gradients(family: str):
    make, parts, words = FAMILIES[family]
    model = make().eval()
    randomize(model)
    # A choice of queries or a threshold on masks turns rounding into another result: in float64, next to never.
    model.double()
    size = 64 if family in ("lw_detr", "rf_detr") else 96
    # Two images: of one, PyTorch's batch norm on CPUs takes gradients in another memory layout for wrong.
    inputs = {"pixel_values": torch.randn(2, 3, size, size, dtype=torch.float64), **words}
    # The first call may differ: OmDet-Turbo keeps what it makes of a text.
    _, before = (outputs_and_gradients(model, inputs) for _ in range(2))
    with accelerate(model) as acceleration:
        accelerated = outputs_and_gradients(model, inputs)
    assert len(acceleration.accelerated) == parts
    assert acceleration.left == {}
    assert_close(accelerated, before)
    assert any(not torch.equal(accelerated[name], before[name]) for name in before)
    after = outputs_and_gradients(model, inputs)
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)


SHAPES = [(5, 7), (3, 4), (2, 1)]
SIZES = {
    "d_model": 16,
    "embed_dim": 16,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "n_levels": 3,
    "decoder_n_levels": 3,
    "num_feature_levels": 3,
    "n_points": 2,
    "decoder_n_points": 2,
    "decoder_offset_scale": 0.5,
    "decoder_method": "default",
    "disable_custom_kernels": False,
}
# One for each of the ways in which models call the sampling.
WAYS = ["deformable_detr", "d_fine", "mask2former"]


def attention_layer(family: str, **changes: Any) -> nn.Module:
    """Build the attention layer of a family, whose constructors take some of the sizes, with random weights."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (kind,) = (cls for name, cls in vars(module).items() if name.endswith("MultiscaleDeformableAttention"))
    known = SIZES | changes
    known["config"] = SimpleNamespace(**known)
    layer = kind(**{name: known[name] for name in inspect.signature(kind).parameters})
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def layer_inputs(layer: nn.Module, rng: torch.Generator) -> dict[str, Any]:
    sizes = torch.tensor(SHAPES)
    areas = sizes.prod(1)
    inputs = {
        "hidden_states": torch.randn(2, 6, 16, generator=rng),
        "encoder_hidden_states": torch.randn(2, int(areas.sum()), 16, generator=rng),
        "reference_points": torch.rand(2, 6, 1, 4, generator=rng),
        "spatial_shapes": sizes,
        "spatial_shapes_list": SHAPES,
        "level_start_index": areas.cumsum(0) - areas,
    }
    return {name: value for name, value in inputs.items() if name in inspect.signature(type(layer).forward).parameters}


def calls_of_the_operator(layer: nn.Module, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Count how often a layer calls this library's operator."""
    calls = []

    def count(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return ms_deform_attn(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("deformdetr.integrations.transformers.ms_deform_attn", count)
        layer(**inputs)
    return len(calls)


@pytest.mark.parametrize("family", WAYS)
def test_acceleration_ends_with_the_context_and_leaves_other_models_alone(family: str, rng, monkeypatch):
    layer, other = attention_layer(family), attention_layer(family)
    inputs = layer_inputs(layer, rng)
    before = {name for part in layer.modules() for name in vars(part)}
    with accelerate(layer):
        assert calls_of_the_operator(layer, inputs, monkeypatch) == 1
        assert calls_of_the_operator(other, inputs, monkeypatch) == 0
    assert calls_of_the_operator(layer, inputs, monkeypatch) == 0
    assert {name for part in layer.modules() for name in vars(part)} == before


@pytest.mark.parametrize("family", WAYS)
def test_accelerating_twice_is_accelerating_once(family: str, rng, monkeypatch):
    layer = attention_layer(family)
    inputs = layer_inputs(layer, rng)
    first, second = accelerate(layer), accelerate(layer)
    assert second.accelerated == first.accelerated
    second.undo()
    assert calls_of_the_operator(layer, inputs, monkeypatch) == 1
    for _ in range(2):
        first.undo()
        assert calls_of_the_operator(layer, inputs, monkeypatch) == 0


@pytest.mark.parametrize("family", WAYS)
def test_copies_are_accelerated_with_their_own_weights_and_pickling_works(family: str, rng, monkeypatch):
    layer = attention_layer(family)
    inputs = layer_inputs(layer, rng)
    expected = layer(**inputs)[0]
    accelerate(layer)
    copied = copy.deepcopy(layer)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert calls_of_the_operator(copied, inputs, monkeypatch) == 1
    torch.testing.assert_close(copied(**inputs)[0], expected, rtol=1e-4, atol=1e-4)
    loaded = pickle.loads(pickle.dumps(copied))
    torch.testing.assert_close(loaded(**inputs)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", WAYS)
def test_hooks_of_the_accelerate_package_stay(family: str, rng, monkeypatch):
    seen = []

    class Note(hooks.ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(module)
            return args, kwargs

    layer = attention_layer(family)
    inputs = layer_inputs(layer, rng)
    for part in layer.modules():
        hooks.add_hook_to_module(part, Note())
    layer(**inputs)
    without = seen[:]
    seen.clear()
    with accelerate(layer):
        assert calls_of_the_operator(layer, inputs, monkeypatch) == 1
    assert seen == without
    assert calls_of_the_operator(layer, inputs, monkeypatch) == 0


@pytest.mark.parametrize("family", WAYS)
def test_mixed_precision_gives_the_same_up_to_bfloat16(family: str, rng):
    layer = attention_layer(family)
    inputs = layer_inputs(layer, rng)
    expected = layer(**inputs)[0]
    with accelerate(layer), torch.autocast("cpu", torch.bfloat16):
        out = layer(**inputs)[0]
    error = (out.float() - expected).norm() / expected.norm()
    assert error < 0.05


@pytest.mark.compile
@pytest.mark.parametrize("family", WAYS)
def test_accelerated_layers_compile_into_one_graph(family: str, rng):
    layer = attention_layer(family)
    inputs = layer_inputs(layer, rng)
    expected = layer(**inputs)[0]
    with accelerate(layer):
        torch.compiler.reset()
        out = torch.compile(layer, fullgraph=True, backend="aot_eager")(**inputs)[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["d_fine", "rt_detr_v2"])
def test_discrete_sampling_is_not_accelerated_and_reported(family: str, rng):
    layer = nn.ModuleDict(
        {"discrete": attention_layer(family, decoder_method="discrete"), "bilinear": attention_layer(family)}
    )
    inputs = layer_inputs(layer["discrete"], rng)
    expected = layer["discrete"](**inputs)[0]
    with accelerate(layer) as acceleration:
        assert torch.equal(layer["discrete"](**inputs)[0], expected)
    assert acceleration.accelerated == ["bilinear"]
    assert list(acceleration.left) == ["discrete"]
    assert "1 accelerated:\n  bilinear\n1 left as they were:\n  discrete: it samples by the method 'discrete'" in str(
        acceleration
    )


def test_method_that_changes_later_raises(rng):
    layer = attention_layer("d_fine")
    accelerate(layer)
    layer.decoder_method = "discrete"
    with pytest.raises(ValueError, match="method changed to 'discrete'"):
        layer(**layer_inputs(layer, rng))


def test_layers_with_unknown_sampling_are_reported():
    class NovelMultiscaleDeformableAttention(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value

    acceleration = accelerate(nn.Sequential(NovelMultiscaleDeformableAttention()))
    assert acceleration.accelerated == []
    assert acceleration.left == {"0": "it samples in an unknown way"}


def test_model_without_such_attention_raises():
    with pytest.raises(ValueError, match="no submodule of Linear is multi-scale deformable attention"):
        accelerate(nn.Linear(2, 2))
