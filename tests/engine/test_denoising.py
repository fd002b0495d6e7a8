"""Denoising training."""

import json
import math

import pytest

from deformdetr.engine import Experiment, train
from experiments import SETTINGS

KINDS = {
    "dn": {"query_selection": "pure", "two_stage": False, "denoising": {"kind": "dn", "num_groups": 2}},
    "cdn": {"query_selection": "mixed", "look_forward_twice": True, "denoising": {"kind": "cdn", "dn_number": 8}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_denoises_and_lowers_its_losses(kind, tmp_path):
    model = SETTINGS["model"] | {"anchor_queries": True} | KINDS[kind]
    settings = SETTINGS["train"] | {"epochs": 4, "eval_every": 4, "gradient_checkpointing": kind == "dn"}
    result = train(Experiment.model_validate(SETTINGS | {"model": model, "train": settings}), tmp_path / "run")
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    names = {"loss_ce_dn", "loss_bbox_dn", "loss_giou_dn", "loss_ce_dn_0", "loss_bbox_dn_0", "loss_giou_dn_0"}
    assert names <= rows[0].keys()
    assert ("loss_ce_interm" in rows[0]) == (kind == "cdn")
    assert all(math.isfinite(rows[-1][name]) for name in names)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["loss_ce_dn"] < rows[0]["loss_ce_dn"]
    assert "AP" in rows[-1]
