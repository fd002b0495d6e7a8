"""Parity with transformers: names in both directions, and the same predictions from the same random weights."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from checkpoints import tiny_config
from deformdetr import DeformableDETRConfig, DETRConfig
from deformdetr.config import ResNetConfig
from deformdetr.integrations import (
    from_hugging_face,
    load_checkpoint,
    recognize,
    save_checkpoint,
    to_hugging_face,
    translate_state_dict,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "single_scale": {"num_feature_levels": 1},
    "multi_scale": {},
    "box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}
CASES = [*VARIANTS, "detr"]
# Once, because a dilated stage takes a ResNet-50.
predicting = pytest.mark.parametrize("case", [*CASES, "single_scale_dc5"])
cases = pytest.mark.parametrize("case", CASES)

SHARED_SIZES = {"num_classes": 7, "num_queries": 20, "d_model": 64, "n_heads": 4, "d_ffn": 96}
THEIR_SIZES = {
    "num_labels": 7,
    "num_queries": 20,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}


def our_config(case: str) -> DeformableDETRConfig | DETRConfig:
    if case == "detr":
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 3}
        return DETRConfig(**SHARED_SIZES, **layers, backbone=ResNetConfig(name="resnet18"))
    dilated = case.endswith("dc5")
    backbone = ResNetConfig(name="resnet50", dilation=True) if dilated else ResNetConfig(name="resnet18")
    points = {"enc_n_points": 2, "dec_n_points": 3, "norm_groups": 32}
    return tiny_config(**SHARED_SIZES, **points, **VARIANTS[case.removesuffix("_dc5")], backbone=backbone)


def their_config(case: str):
    """Describe transformers' model with its own ResNet, which needs no download."""
    dilated = case.endswith("dc5")
    single = case == "detr" or case.startswith("single_scale")
    backbone = transformers.ResNetConfig(
        layer_type="bottleneck" if dilated else "basic",
        depths=[3, 4, 6, 3] if dilated else [2, 2, 2, 2],
        hidden_sizes=[256, 512, 1024, 2048] if dilated else [64, 128, 256, 512],
        out_features=["stage4"] if single else ["stage2", "stage3", "stage4"],
    )
    if case == "detr":
        return transformers.DetrConfig(backbone_config=backbone, **THEIR_SIZES)
    return transformers.DeformableDetrConfig(
        backbone_config=backbone,
        two_stage_num_proposals=20,
        encoder_n_points=2,
        decoder_n_points=3,
        disable_custom_kernels=True,
        **THEIR_SIZES,
        **VARIANTS[case.removesuffix("_dc5")],
    )


def their_class(case: str):
    return transformers.DetrForObjectDetection if case == "detr" else transformers.DeformableDetrForObjectDetection


def their_model(case: str):
    """Build transformers' model with all weights drawn at random."""
    model = their_class(case)(their_config(case)).eval()
    if case.endswith("dc5"):
        _dilate(model.model.backbone.model.encoder.stages[3])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif tensor.ndim > 1 and "backbone" not in name:
                tensor.normal_(0, 0.5 * tensor[0].numel() ** -0.5)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def _dilate(stage: nn.Module) -> None:
    """Dilate a stage of transformers' ResNet, which has no such option, as timm and torchvision do for DC5."""
    for index, block in enumerate(stage.layers):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3) and index:
                    conv.dilation = conv.padding = (2, 2)


def padded_batch(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[0, 64:] = True
    mask[1, :, 96:] = True
    return torch.randn(2, 3, 96, 128, generator=rng).masked_fill(mask[:, None], 0), mask


@torch.no_grad()
def assert_same_predictions(ours, theirs, rng: torch.Generator) -> None:
    images, mask = padded_batch(rng)
    outputs = ours(images, mask)
    # Theirs is 1 where there is an image.
    expected = theirs(images, pixel_mask=(~mask).long())
    tolerance = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(outputs["pred_logits"], expected.logits, **tolerance)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, **tolerance)
    if "enc_outputs" in outputs:
        proposals = outputs["enc_outputs"]
        torch.testing.assert_close(proposals["pred_logits"], expected.enc_outputs_class, **tolerance)
        boxes = expected.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(proposals["pred_boxes"], boxes, **tolerance)


def without_counts(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@predicting
def test_their_weights_give_the_same_predictions_here(case, rng):
    theirs, ours = their_model(case), our_config(case).build().eval()
    report = load_checkpoint(ours, theirs.state_dict())
    assert (report.format, report.fits) == ("hugging_face_5", True)
    assert_same_predictions(ours, theirs, rng)


@cases
def test_our_weights_give_the_same_predictions_there(case, rng):
    theirs, ours = their_model(case), our_config(case).build().eval()
    load_checkpoint(ours, their_model(case).state_dict())
    if case == "box_refine":
        # Built from a config, theirs ties the class heads of all layers when it refines.
        theirs.class_embed = nn.ModuleList(copy.deepcopy(head) for head in theirs.class_embed)
        for head in ours.class_heads:
            nn.init.normal_(head.weight)
    missing, unexpected = theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"), strict=False)
    assert missing == []
    assert unexpected == []
    assert_same_predictions(ours, theirs, rng)


@cases
def test_files_of_transformers_load(case, tmp_path, rng):
    # Files have the names of version 4, and tensors with several names once.
    theirs, ours = their_model(case), our_config(case).build().eval()
    theirs.save_pretrained(tmp_path)
    report = load_checkpoint(ours, tmp_path / "model.safetensors")
    assert (report.format, report.fits) == ("hugging_face_4", True)
    assert_same_predictions(ours, theirs, rng)


@pytest.mark.parametrize(("case", "version"), [*((case, 4) for case in CASES), ("two_stage", 5), ("detr", 5)])
def test_transformers_loads_our_files_of_either_version(case, version, tmp_path, rng):
    ours = our_config(case).build().eval()
    load_checkpoint(ours, their_model(case).state_dict())
    if case == "box_refine":
        for head in ours.class_heads:
            nn.init.normal_(head.weight)
    report = save_checkpoint(ours, tmp_path / "model.safetensors", f"hugging_face_{version}", backbone="resnet")
    assert report.losses == []
    their_config(case).save_pretrained(tmp_path)
    theirs, info = their_class(case).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_predictions(ours, theirs.eval(), rng)


@pytest.mark.parametrize("case", ["two_stage", "detr"])
def test_names_of_version_4_are_those_in_their_files(case, tmp_path):
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    translated, _ = translate_state_dict(theirs.state_dict(), "hugging_face_4", backbone="resnet")
    assert names <= translated.keys()
    # Second names, and those of heads that all layers share, are not in the file.
    assert {name for name in translated.keys() - names if "_embed." not in name} == set()


@cases
@pytest.mark.parametrize("backbone", ["timm_backbone", "resnet"])
@pytest.mark.parametrize("version", [4, 5])
def test_round_trip_through_their_names_changes_no_bit(case, backbone, version):
    state = without_counts(our_config(case).build().state_dict())
    theirs = to_hugging_face(state, backbone=backbone, version=version)
    assert recognize(theirs) == f"hugging_face_{version}"
    back = from_hugging_face(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_names_of_a_timm_backbone_are_those_of_the_published_checkpoints():
    state = our_config("multi_scale").build().state_dict()
    names = to_hugging_face(state, version=4).keys()
    published = {"conv1.weight", "layer2.0.downsample.1.running_mean"}
    assert {f"model.backbone.conv_encoder.model.{name}" for name in published} <= names
