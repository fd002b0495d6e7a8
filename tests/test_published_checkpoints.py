"""The table of published checkpoints: presets that exist, formats that are read, and addresses that can be located."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from deformdetr._files import HubName
from deformdetr.config import DeformableDETRConfig, preset
from deformdetr.integrations import CheckpointFormat, save_checkpoint

PAGE = (Path(__file__).parents[1] / "docs" / "published_checkpoints.md").read_text()
TABLE = PAGE.partition("## Models")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| ")][
    2:
]


def described(cell):
    """Return the config in a cell: a preset, and changes in YAML."""
    name, *changes = re.findall(r"`([^`]+)`", cell)
    return preset(name).replace(**{key: value for change in changes for key, value in yaml.safe_load(change).items()})


def test_every_cell_of_the_table_is_valid():
    assert len(ROWS) > 30
    for name, address, form, precision, config in ROWS:
        assert re.fullmatch(r"`(\w+)`", form)[1] in get_args(CheckpointFormat), name
        assert precision == "–" or 30 < float(precision) < 60, name
        described(config)
        by_name = re.fullmatch(r"`([^`]+)`", address)
        if by_name:
            assert HubName.parse(by_name[1]) is not None
            assert form == "`hugging_face_4`"
        else:
            assert re.fullmatch(r"<https://\S+\.pth>|\[[\w ]+\]\(https://drive\.google\.com/\S+\)", address), name


def test_addresses_are_listed_once():
    addresses = [row[1] for row in ROWS if "drive" not in row[1]]
    assert len(addresses) == len(set(addresses))


@pytest.mark.parametrize("cell", sorted({(row[4], row[2].strip("`")) for row in ROWS}), ids=str)
def test_formats_can_hold_the_models(cell, tmp_path):
    config = described(cell[0])
    # With few channels and layers, which formats do not tell apart.
    small = {"d_model": 32, "n_heads": 4, "d_ffn": 16, "num_encoder_layers": 1, "num_decoder_layers": 2}
    if not config.backbone.dilation:
        small["backbone"] = config.backbone.replace(name="resnet18")
    if isinstance(config, DeformableDETRConfig):
        small["norm_groups"] = 8
    model = config.replace(**small).build()
    with torch.no_grad():
        # mmdetection's necks have no biases.
        for name, parameter in model.named_parameters():
            if name.startswith("neck.") and name.endswith("conv.bias"):
                parameter.zero_()
    assert save_checkpoint(model, tmp_path / "model.pth", cell[1]).lossless
