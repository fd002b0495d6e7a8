"""The two models in few lines are those of the library, and have as few lines as they say."""

import ast
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deformdetr

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"num_classes": 3, "num_queries": 7, "d_model": 32, "n_heads": 4, "d_ffn": 48}


def _define(name: str, example: str) -> type[torch.nn.Module]:
    return runpy.run_path(str(EXAMPLES / f"{example}.py"))[name]


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of Deformable DETR to those of the example, which shares its heads."""
    position, content = state.pop("queries.embedding.weight").chunk(2, dim=1)
    renamed = {"query_position.weight": position, "query_content.weight": content}
    places = {
        "queries.reference_points.": "reference_points.",
        "decoder.layers.": "decoder_layers.",
        "decoder.box_heads.0.": "box_head.",
        "class_heads.0.": "class_head.",
    }
    for name, tensor in state.items():
        for old, new in places.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


@pytest.fixture
def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two images, the second of which is padded."""
    padding_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding_mask[1, 48:], padding_mask[1, :, 64:] = True, True
    return torch.rand(2, 3, 64, 96, generator=rng), padding_mask


def _assert_same(ours: torch.nn.Module, library: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    state = library.state_dict()
    ours.load_state_dict(_rename(state) if "queries.embedding.weight" in state else state)
    with torch.no_grad():
        found, expected = ours.eval()(*batch), library.eval()(*batch)
    for got, want in zip([*found.pop("aux_outputs"), found], [*expected.pop("aux_outputs"), expected], strict=True):
        torch.testing.assert_close(got, dict(want))


def test_detr_in_forty_lines_is_detr(batch: tuple[Tensor, Tensor]):
    config = deformdetr.preset("detr_r50").replace(
        **SIZES, backbone={"kind": "conv"}, num_encoder_layers=2, num_decoder_layers=2
    )
    library = config.build()
    sizes = SIZES | {"num_classes": library.class_head.out_features - 1}
    _assert_same(_define("DETR", "detr_in_forty_lines")(library.backbone, **sizes, n_layers=2), library, batch)


def test_deformable_detr_in_sixty_lines_is_deformable_detr(batch: tuple[Tensor, Tensor]):
    config = deformdetr.preset("deformable_detr_r50").replace(
        **SIZES, backbone={"kind": "conv"}, num_encoder_layers=2, num_decoder_layers=2
    )
    library = config.build()
    ours = _define("DeformableDETR", "deformable_detr_in_sixty_lines")
    _assert_same(ours(library.backbone, **SIZES, n_layers=2), library, batch)


@pytest.mark.parametrize(("example", "most"), [("detr_in_forty_lines", 40), ("deformable_detr_in_sixty_lines", 60)])
def test_a_model_has_as_few_lines_as_its_file_says(example: str, most: int):
    tree = ast.parse((EXAMPLES / f"{example}.py").read_text())
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert model.end_lineno - model.lineno + 1 <= most
