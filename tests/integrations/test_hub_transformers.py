"""Folders that transformers has written: the same model, labels and preparation of images."""

import json

import pytest
import torch
import transformers

from deformdetr.config import DeformableDETRConfig, DETRConfig, ResNetConfig, preset
from deformdetr.integrations.hub import InferenceSettings, from_pretrained, pretrained_config, pretrained_settings
from deformdetr.models import prepare_image

NAMES = {0: "N/A", 1: "person", 2: "bicycle"}
SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
RESNET = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}


def deformable(**changes):
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    return transformers.DeformableDetrConfig(
        backbone_config=backbone, id2label=NAMES, disable_custom_kernels=True, **SIZES, **changes
    )


def detr(**changes):
    stages = [f"stage{stage}" for stage in (1, 2, 3, 4)]
    backbone = transformers.ResNetConfig(**RESNET, out_features=stages)
    return transformers.DetrConfig(backbone_config=backbone, id2label=NAMES, num_queries=9, **SIZES, **changes)


MODELS = {
    "deformable_detr": (transformers.DeformableDetrForObjectDetection, deformable(num_queries=9, encoder_n_points=2)),
    "two_stage": (
        transformers.DeformableDetrForObjectDetection,
        deformable(two_stage=True, with_box_refine=True, two_stage_num_proposals=7),
    ),
    "detr": (transformers.DetrForObjectDetection, detr()),
}


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_folders_of_transformers_give_the_same_predictions(case, tmp_path):
    kind, config = MODELS[case]
    theirs = kind(config).eval()
    for name, tensor in theirs.named_parameters():
        if tensor.ndim > 1 and "backbone" not in name:
            tensor.normal_(0, 0.5 * tensor[0].numel() ** -0.5)
    theirs.save_pretrained(tmp_path)
    transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    ours, settings = from_pretrained(tmp_path), pretrained_settings(tmp_path)
    assert settings.label_map.names == tuple(NAMES.values())
    assert settings.label_map.category_ids == (0, 1, 2)
    # Their processor prepares the image here, too.
    photo = torch.randint(0, 256, (3, 80, 100), dtype=torch.uint8)
    processor = transformers.DetrImageProcessor.from_pretrained(tmp_path)
    given = processor(images=photo, return_tensors="pt")["pixel_values"]
    image = prepare_image(
        photo,
        short_side=settings.short_side,
        max_size=settings.max_size,
        mean=settings.image_mean,
        std=settings.image_std,
    )
    assert image.shape == given.shape[1:]
    torch.testing.assert_close(image, given[0], atol=0.02, rtol=0)
    outputs, expected = ours(given, torch.zeros(given[:, 0].shape, dtype=torch.bool)), theirs(pixel_values=given)
    torch.testing.assert_close(outputs["pred_logits"], expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, atol=1e-4, rtol=1e-4)


def write(folder, content, preprocessor=None):
    (folder / "config.json").write_text(json.dumps(content))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DeformableDETRConfig(num_classes=2)),
        ({"model_type": "detr"}, DETRConfig(num_classes=2)),
        ({"model_type": "detr", "architectures": ["DetrForSegmentation"]}, DETRConfig(num_classes=2, masks=True)),
        ({"id2label": {str(label): f"class {label}" for label in range(91)}}, preset("deformable_detr_r50")),
        (
            {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 100, "num_queries": 300},
            DeformableDETRConfig(num_classes=2, two_stage=True, with_box_refine=True, num_queries=100),
        ),
        # As files of version 4 have it.
        (
            {"backbone": "resnet50", "use_timm_backbone": True, "dilation": True, "num_feature_levels": 1},
            preset("deformable_detr_r50_single_scale_dc5").replace(num_classes=2),
        ),
        (
            {"model_type": "detr", "backbone": "resnet101", "backbone_kwargs": {"output_stride": 16}},
            preset("detr_r101_dc5").replace(num_classes=2),
        ),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18.a1_in1k", "output_stride": None}},
            DeformableDETRConfig(num_classes=2, backbone=ResNetConfig(name="resnet18")),
        ),
        # transformers' own ResNet does not dilate.
        ({"backbone_config": {"model_type": "resnet"}, "dilation": True}, DeformableDETRConfig(num_classes=2)),
        (
            {"backbone_config": {"model_type": "resnet", "depths": [3, 4, 23, 3]}},
            DeformableDETRConfig(num_classes=2, backbone=ResNetConfig(name="resnet101")),
        ),
    ],
)
def test_configs_of_transformers_describe_the_same_model(changes, expected, tmp_path):
    assert pretrained_config(write(tmp_path, {"model_type": "deformable_detr"} | changes)) == expected


@pytest.mark.parametrize("config", [transformers.DeformableDetrConfig, transformers.DetrConfig])
def test_defaults_are_those_of_transformers(config, tmp_path):
    theirs = config(id2label=NAMES)
    theirs.save_pretrained(tmp_path)
    ours = pretrained_config(tmp_path)
    assert (ours.d_ffn, ours.num_queries, ours.num_classes) == (theirs.encoder_ffn_dim, theirs.num_queries, 3)
    # The same without what equals a default.
    (tmp_path / "few").mkdir()
    few = write(tmp_path / "few", {"model_type": theirs.model_type, "id2label": NAMES})
    assert pretrained_config(few) == ours


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model_type": "yolos"},
            "model_type is 'yolos'; of transformers' models, deformable_detr and detr can be read",
        ),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu' can be read"),
        ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
        ({"decoder_ffn_dim": 9}, "encoder_ffn_dim is 1024, but decoder_ffn_dim is 9; only equal ones"),
        ({"backbone": "swin_tiny"}, "the backbone is 'swin_tiny'"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1]}}, "a ResNet of bottleneck blocks, .*1, 1"),
        ({"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}}, "a ResNet of bottleneck"),
        ({"d_model": "wide"}, "d_model"),
        ({"id2label": 3}, "cannot be read"),
        ({"id2label": {"a": "b"}}, "invalid literal"),
    ],
)
def test_models_that_this_library_does_not_have_are_refused(changes, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"(?s)config\.json: .*{reason}"):
        pretrained_config(write(tmp_path, {"model_type": "deformable_detr"} | changes))


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (None, {}),
        ({"size": {"shortest_edge": 640, "longest_edge": 1000}}, {"short_side": 640, "max_size": 1000}),
        ({"size": 600, "max_size": 900}, {"short_side": 600, "max_size": 900}),
        ({"size": {"shortest_edge": 640}}, {"short_side": 640, "max_size": None}),
        ({"do_resize": False}, {"short_side": None}),
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 0.5]},
            {"image_mean": (0.1, 0.2, 0.3), "image_std": (1, 1, 0.5)},
        ),
        ({"do_normalize": False}, {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}),
    ],
)
def test_image_processors_are_read(preprocessor, expected, tmp_path):
    settings = pretrained_settings(write(tmp_path, {"model_type": "detr"}, preprocessor))
    assert settings.label_map.names == ("LABEL_0", "LABEL_1")
    assert settings == InferenceSettings(label_map=settings.label_map, **expected)


@pytest.mark.parametrize(
    ("preprocessor", "reason"),
    [
        ({"size": {"height": 9, "width": 9}}, "images are resized to .*height"),
        ({"do_rescale": False}, "images are scaled by 1 instead of 1/255"),
        ({"rescale_factor": 2}, "images are scaled by 2"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"image_mean": "grey"}, "image_mean"),
    ],
)
def test_other_preparations_are_refused(preprocessor, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"(?s)preprocessor_config\.json: .*{reason}"):
        pretrained_settings(write(tmp_path, {"model_type": "detr"}, preprocessor))
