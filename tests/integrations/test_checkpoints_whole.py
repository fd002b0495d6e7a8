"""This library's own format is the whole state dict, for any model that a config describes and any way of saving."""

import random

import pytest
import torch

from deformdetr import DeformableDETRConfig, preset
from deformdetr.config import DeformConvConfig, ResNetConfig
from deformdetr.data import LabelMap
from deformdetr.engine import Checkpoint
from deformdetr.integrations import (
    convert_checkpoint,
    load_checkpoint,
    recognize,
    save_checkpoint,
    translate_state_dict,
)
from deformdetr.integrations.hub import from_pretrained, save_pretrained
from experiments import tiny_experiment
from random_configs import draw_config

FORMATS = ("original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex")


def fill(model, rng):
    """Change every value from what it was built with, rows of padding and counts included."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=rng))
        else:
            tensor.copy_(torch.randint(1, 1000, tensor.shape, generator=rng))
    return model


def save_run(model, config, path):
    categories = {number: f"class {number}" for number in range(config.num_classes)}
    Checkpoint(
        model=model.state_dict(),
        experiment=tiny_experiment().replace(model=config),
        label_map=LabelMap.contiguous(categories),
        epoch=1,
        step=1,
        metrics={},
    ).save(path)


def ways_back(model, config, folder):
    """Save a model in every way, and yield the name of the way and the state dict that is read back."""
    for suffix in (".pth", ".safetensors"):
        path = folder / f"saved{suffix}"
        report = save_checkpoint(model, path)
        assert report.losses == []
        assert report.read == report.written == len(model.state_dict())
        yield f"file{suffix}", loaded(config, path)
        other = folder / f"converted from {suffix[1:]}{'.pth' if suffix == '.safetensors' else '.safetensors'}"
        assert convert_checkpoint(path, other, "deformdetr").losses == []
        yield f"converted{suffix}", loaded(config, other)
    save_pretrained(model, config, folder / "hub")
    yield "hub", from_pretrained(folder / "hub").state_dict()
    save_run(model, config, folder / "best.pt")
    yield "run", Checkpoint.load(folder / "best.pt").build().state_dict()
    yield "weights of a run", loaded(config, folder / "best.pt")
    convert_checkpoint(folder / "best.pt", folder / "detector.pth", "deformdetr")
    yield "converted run", torch.load(folder / "detector.pth", weights_only=True)
    yield "memory", translate_state_dict(model.state_dict(), "deformdetr")[0]


def loaded(config, path):
    model = config.build()
    report = load_checkpoint(model, path)
    assert (report.format, report.fits) == ("deformdetr", True)
    assert report.loaded == sorted(model.state_dict())
    return model.state_dict()


def assert_all_ways_keep_every_bit(config, folder, rng):
    model = fill(config.build(), rng)
    expected = model.state_dict()
    assert recognize(expected) == "deformdetr"
    for way, state in ways_back(model, config, folder):
        assert state.keys() == expected.keys(), way
        assert [name for name in state if not torch.equal(state[name], expected[name])] == [], way


@pytest.mark.parametrize("_number", range(8))
def test_every_way_of_saving_keeps_every_bit_of_a_model_drawn_at_random(_number, seed, rng, tmp_path):
    assert_all_ways_keep_every_bit(draw_config(random.Random(seed)), tmp_path, rng)


def has_no_place(config, name):
    """Return whether a format lacks this model or some of its parameters."""
    if config.masks and name != "original" and not (config.kind == "detr" and name.startswith("hugging_face")):
        return True
    if config.position.kind == "learned" and name != "original":
        return True
    if config.kind == "detr":
        return name not in ("original", "hugging_face_4", "hugging_face_5")
    if not config.anchor_queries:
        return False
    if config.decoder_norm:
        if name == "original":
            return config.query_scale or config.num_feature_levels == 1
        return name not in ("detrex", "mmdetection_2", "mmdetection_3") or config.query_scale or not config.two_stage
    return name not in ("original", "detrex") or not config.query_scale or config.two_stage


def translatable(model, config):
    """Zero or share the values of a model that some formats have no place for, and return the model."""
    for conv in (level.conv for level in getattr(model.neck, "levels", [])) if config.kind == "deformable_detr" else []:
        torch.nn.init.zeros_(conv.bias)
    if getattr(config, "two_stage", False) and not config.with_box_refine:
        model.queries.class_head.load_state_dict(model.class_heads[0].state_dict())
        model.queries.box_head.load_state_dict(model.decoder.box_heads[0].state_dict())
    if getattr(config, "denoising", None) is not None:
        torch.nn.init.zeros_(model.denoising.label_embedding.weight[-1])
    return model


@torch.no_grad()
def assert_others_keep_every_bit_or_refuse(config, rng):
    model = translatable(fill(config.build(), rng), config)
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("batches_tracked")}
    for name in FORMATS:
        if has_no_place(config, name):
            with pytest.raises(ValueError, match=r"would lose|has no such model|no format"):
                translate_state_dict(model.state_dict(), name)
            continue
        theirs, report = translate_state_dict(model.state_dict(), name)
        assert report.lossless, (name, config)
        back = config.build()
        assert load_checkpoint(back, theirs).fits, (name, config)
        state = back.state_dict()
        assert [key for key in expected if not torch.equal(state[key], expected[key])] == [], (name, config)


@pytest.mark.parametrize("_number", range(20))
def test_other_formats_keep_every_bit_of_a_model_or_refuse_it(_number, seed, rng):
    assert_others_keep_every_bit_or_refuse(draw_config(random.Random(seed)), rng)


@pytest.mark.slow
@pytest.mark.parametrize("_number", range(60))
def test_other_formats_keep_every_bit_of_many_models_or_refuse_them(_number, seed, rng):
    assert_others_keep_every_bit_or_refuse(draw_config(random.Random(seed)), rng)


@pytest.mark.slow
@pytest.mark.parametrize("_number", range(30))
def test_many_models_drawn_at_random_are_kept(_number, seed, rng, tmp_path):
    assert_all_ways_keep_every_bit(draw_config(random.Random(seed)), tmp_path, rng)


@pytest.mark.slow
def test_models_with_a_resnet_are_kept(seed, rng, tmp_path):
    assert_all_ways_keep_every_bit(draw_config(random.Random(seed), small=False), tmp_path, rng)


@pytest.mark.slow
def test_deformable_convolutions_are_kept(rng, tmp_path):
    backbone = ResNetConfig(name="resnet50", norm="batch", deform_conv=DeformConvConfig(offset_groups=2))
    config = DeformableDETRConfig(d_model=32, n_heads=2, d_ffn=32, norm_groups=4, backbone=backbone)
    assert_all_ways_keep_every_bit(config, tmp_path, rng)


@pytest.mark.parametrize("name", ["dino_r50_4scale", "dn_deformable_detr_r50"])
def test_entries_of_the_published_models_are_all_written(name):
    with torch.device("meta"):
        model = preset(name).build()
    state = {key: torch.zeros(()).expand(value.shape) for key, value in model.state_dict().items()}
    assert translate_state_dict(state, "deformdetr")[0].keys() == state.keys()
