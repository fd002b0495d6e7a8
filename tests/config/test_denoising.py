"""Configs of models whose queries are boxes, and of denoising."""

import pytest
from pydantic import ValidationError

from bounds import fills_uniform_bound, xavier_bound
from checkpoints import tiny_config
from deformdetr import preset
from deformdetr.config import ContrastiveDenoisingConfig, DeformableDETRConfig, DenoisingConfig
from deformdetr.nn import AnchorPosition, AnchorQueries, ContrastiveDenoising, Denoising, ProposalQueries

ANCHORS = {"anchor_queries": True, "with_box_refine": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"denoising": {"kind": "dn"}, "look_forward_twice": True},
            "look_forward_twice, denoising need anchor_queries",
        ),
        ({"inverse_sigmoid_eps": 1e-3, "share_heads": True}, "share_heads, inverse_sigmoid_eps need anchor_queries"),
        ({"decoder_norm": True, "query_scale": True}, "query_scale, decoder_norm need anchor_queries=True"),
        ({"anchor_queries": True}, "anchor_queries=True needs with_box_refine=True"),
        ({**ANCHORS, "two_stage": True}, "query_selection='mixed' goes with .* got 'pure', True and True"),
        ({**ANCHORS, "query_selection": "mixed"}, "goes with two_stage=True .* got 'mixed', False and True"),
        ({"two_stage": True, "query_selection": "mixed"}, "got 'mixed', True and False"),
        ({**ANCHORS, "query_scale": True, "num_decoder_layers": 1}, "needs num_decoder_layers of at least 2"),
        ({**ANCHORS, "inverse_sigmoid_eps": 0.5}, "less than 0.5"),
        ({**ANCHORS, "denoising": {"kind": "cdn", "dn_number": 0}}, "greater than or equal to 1"),
        ({**ANCHORS, "denoising": {"kind": "dn", "label_noise_scale": 1.1}}, "less than or equal to 1"),
        ({**ANCHORS, "denoising": {"kind": "dn", "dn_number": 100}}, "Extra inputs are not permitted"),
        ({**ANCHORS, "denoising": {"kind": "dino"}}, "does not match any of the expected tags"),
    ],
)
def test_incompatible_fields_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        DeformableDETRConfig(**fields)


def test_every_field_reaches_its_module():
    denoising = DenoisingConfig(num_groups=3, label_noise_scale=0.1, box_noise_scale=0.6)
    model = tiny_config(**ANCHORS, denoising=denoising, query_scale=True, inverse_sigmoid_eps=1e-4).build()
    assert isinstance(model.queries, AnchorQueries)
    assert isinstance(model.decoder.position, AnchorPosition)
    assert isinstance(model.denoising, Denoising)
    assert (model.denoising.num_groups, model.denoising.label_noise_scale, model.denoising.box_noise_scale) == (
        3,
        0.1,
        0.6,
    )
    assert model.denoising.eps == model.decoder.eps == 1e-4
    assert model.decoder.position.scale is not None
    assert model.queries.content.embedding_dim == model.queries.d_model - 1
    assert len(model.class_heads) == len(model.decoder.box_heads) == 3
    assert [head.layers[-1].bias[2:].tolist() for head in model.decoder.box_heads] == [[-2, -2], [0, 0], [0, 0]]


def test_the_dino_preset_has_the_parts_of_the_paper():
    config = preset("dino_r50_4scale").replace(
        num_encoder_layers=0, num_decoder_layers=2, d_model=32, d_ffn=16, backbone=tiny_config().backbone
    )
    model = config.build()
    assert isinstance(model.queries, ProposalQueries)
    assert not model.queries.class_agnostic
    assert model.queries.content.weight.shape == (900, 32)
    assert fills_uniform_bound(model.queries.content.weight, xavier_bound(900, 32))
    assert isinstance(model.decoder.position, AnchorPosition)
    assert model.decoder.look_forward_twice
    assert model.decoder.norm is not None
    assert model.decoder.position.scale is None
    assert len(model.class_heads) == len(model.decoder.box_heads) == 1
    assert isinstance(model.denoising, ContrastiveDenoising)
    assert (model.denoising.dn_number, model.denoising.label_noise_ratio) == (100, 0.5)
    assert (model.position.temperature, model.position.offset) == (20, 0)
    assert config.build_criterion().weights == {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}


def test_fields_of_contrastive_denoising_reach_their_module():
    noise = ContrastiveDenoisingConfig(dn_number=7, label_noise_ratio=0.2, box_noise_scale=1.0)
    module = tiny_config(**ANCHORS, denoising=noise).build().denoising
    assert (module.dn_number, module.label_noise_ratio, module.box_noise_scale) == (7, 0.2, 1.0)
