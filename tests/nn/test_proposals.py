"""Queries that are selected from the encoder's proposals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import ProposalQueries, class_head, proposal_embedding, proposal_logits
from goldens import load_golden, unit
from pyramids import SHAPES, VALID, masks_of, random_pyramid
from random_weights import shaken

D_MODEL = 16
PARTS = load_golden("parts").arrays
GOLDEN_PADDING = torch.cat(
    [torch.from_numpy(PARTS[f"transformer/mask{level}"]).flatten(1) for level in range(3)], dim=1
)
GOLDEN_SHAPES = [(8, 10), (4, 5), (2, 3)]


def _proposal_queries(rng, num_queries=11, **settings):
    return shaken(ProposalQueries(num_queries, D_MODEL, nn.Linear(D_MODEL, 5), nn.Linear(D_MODEL, 4), **settings), rng)


def _mixed(rng, num_queries=11):
    return _proposal_queries(rng, num_queries, content=nn.Embedding(num_queries, D_MODEL), class_agnostic=False)


def _scored(module, pyramid):
    """Compute logits and boxes of all pixels step by step."""
    grid = proposal_logits(SHAPES, pyramid.padding_mask)
    memory = pyramid.features.masked_fill(grid.isinf().any(-1, keepdim=True), 0)
    memory = F.linear(memory, module.memory_projection.weight, module.memory_projection.bias)
    memory = F.layer_norm(memory, (D_MODEL,), module.memory_norm.weight, module.memory_norm.bias)
    return module.class_head(memory), (module.box_head(memory) + grid).sigmoid()


def _propose(module, pyramid):
    return module(pyramid.features, pyramid.spatial_shapes, pyramid.padding_mask)


def _usable(pyramid):
    return proposal_logits(pyramid.spatial_shapes, pyramid.padding_mask).isfinite().all(-1)


def test_proposal_logits_are_the_golden_ones():
    expected = torch.from_numpy(PARTS["transformer/proposals_logit"])
    torch.testing.assert_close(proposal_logits(GOLDEN_SHAPES, GOLDEN_PADDING), expected, rtol=0, atol=2e-6)
    assert expected.isinf().any()


def test_proposal_memory_is_the_golden_one():
    module = ProposalQueries(3, 64, nn.Identity(), nn.Linear(64, 4))
    with torch.no_grad():
        module.memory_projection.weight.copy_(torch.eye(64))
        module.memory_projection.bias.zero_()
    memory = unit("transformer.memory", (2, 106, 64)).float()
    scored = module(memory, GOLDEN_SHAPES, GOLDEN_PADDING).predictions["enc_outputs"]["pred_logits"]
    expected = torch.from_numpy(PARTS["transformer/proposal_memory_layernorm_of_identity"])
    torch.testing.assert_close(scored, expected, rtol=0, atol=5e-6)


def test_proposal_embedding_is_the_golden_one():
    boxes = unit("transformer.proposals", (1, 5, 4)).float()
    expected = torch.from_numpy(PARTS["transformer/proposal_embedding"])
    torch.testing.assert_close(proposal_embedding(boxes, 256), expected, rtol=0, atol=1e-5)


def test_proposal_logits_agree_with_loops_over_pixels():
    masks = masks_of(VALID, SHAPES)
    logits = proposal_logits(SHAPES, torch.cat([mask.flatten(1) for mask in masks], dim=1))
    for image, sizes in enumerate(VALID):
        place = 0
        for level, ((height, width), (valid_height, valid_width)) in enumerate(zip(SHAPES, sizes, strict=True)):
            for y in range(height):
                for x in range(width):
                    box = [(x + 0.5) / valid_width, (y + 0.5) / valid_height, 0.05 * 2**level, 0.05 * 2**level]
                    if y < valid_height and x < valid_width and all(0.01 < number < 0.99 for number in box):
                        expected = [math.log(number / (1 - number)) for number in box]
                    else:
                        expected = [math.inf] * 4
                    assert logits[image, place].tolist() == pytest.approx(expected, abs=1e-5)
                    place += 1
        assert place == logits.shape[1]


def test_pixels_too_near_the_edge_or_of_too_coarse_a_level_propose_nothing():
    edges = proposal_logits([(1, 80)], torch.zeros(1, 80, dtype=torch.bool))[0, :, 0].isfinite()
    # 0.5 / 80 is closer than 0.01 to the edge, 1.5 / 80 is not.
    assert edges.tolist() == [False, *[True] * 78, False]
    shapes = [(2, 2)] * 6
    by_level = proposal_logits(shapes, torch.zeros(1, 24, dtype=torch.bool)).isfinite().all(-1).view(6, 4)
    assert by_level.all(1).tolist() == [True, True, True, True, True, False]


def test_padded_pixels_inside_the_image_propose_nothing():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 2, 3] = True
    usable = proposal_logits([(4, 5)], mask.flatten(1)).isfinite().all(-1)
    assert torch.equal(usable, ~mask.flatten(1))


@pytest.mark.parametrize("num_queries", [1, 11, 40])
def test_best_proposals_of_the_first_class_become_boxes(rng, pyramid, num_queries):
    module = _proposal_queries(rng, num_queries)
    queries = _propose(module, pyramid)
    scores = queries.predictions["enc_outputs"]["pred_logits"][..., 0]
    boxes = queries.predictions["enc_outputs"]["pred_boxes"]
    for image in range(2):
        best = sorted(range(scores.shape[1]), key=lambda pixel: -scores[image, pixel].item())[:num_queries]
        chosen = scores[image].sort(descending=True).values[:num_queries]
        torch.testing.assert_close(scores[image, best], chosen)
        # Unusable pixels tie, and any of them may be taken.
        usable = _usable(pyramid)[image, best]
        torch.testing.assert_close(queries.reference_points[image][usable], boxes[image, best][usable])


def test_proposals_add_the_box_head_to_the_grid(rng, pyramid):
    module = _proposal_queries(rng)
    grid = proposal_logits(SHAPES, pyramid.padding_mask)
    usable = grid.isfinite().all(-1)
    memory = F.linear(
        pyramid.features * usable[..., None], module.memory_projection.weight, module.memory_projection.bias
    )
    memory = F.layer_norm(memory, (D_MODEL,), module.memory_norm.weight, module.memory_norm.bias)
    proposals = _propose(module, pyramid).predictions["enc_outputs"]
    torch.testing.assert_close(proposals["pred_logits"], module.class_head(memory))
    torch.testing.assert_close(proposals["pred_boxes"], (module.box_head(memory) + grid).sigmoid())
    assert torch.equal(proposals["pred_boxes"][~usable], torch.ones(int((~usable).sum()), 4))


def test_content_and_position_come_from_the_chosen_boxes(rng, pyramid):
    module = _proposal_queries(rng)
    queries = _propose(module, pyramid)
    angles = queries.reference_points[..., None] * 2 * math.pi / 10000 ** (torch.arange(0, 8, 2) / 8)
    embedding = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(2)
    projected = module.position_norm(module.position_projection(embedding))
    torch.testing.assert_close(queries.position, projected[..., :D_MODEL], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(queries.content, projected[..., D_MODEL:], rtol=1e-4, atol=1e-5)


def test_chosen_boxes_are_detached_from_the_heads_that_proposed_them(rng, pyramid):
    module = _proposal_queries(rng)
    queries = _propose(module, pyramid)
    assert not queries.reference_points.requires_grad
    (queries.content.square().sum() + queries.position.square().sum()).backward()
    untouched = [module.class_head, module.box_head, module.memory_projection, module.memory_norm]
    assert all(parameter.grad is None for part in untouched for parameter in part.parameters())
    assert module.position_projection.weight.grad.any()


def test_proposals_train_the_heads_with_finite_gradients(rng, pyramid):
    module = _proposal_queries(rng)
    proposals = _propose(module, pyramid).predictions["enc_outputs"]
    (proposals["pred_logits"].square().sum() + proposals["pred_boxes"].square().sum()).backward()
    for part in (module.class_head, module.box_head, module.memory_projection, module.memory_norm):
        for name, parameter in part.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_padded_memory_does_not_influence_proposals(rng, pyramid, poison):
    module = _proposal_queries(rng)
    features = pyramid.features.masked_fill(pyramid.padding_mask[..., None], poison)
    ours, expected = _propose(module, pyramid._replace(features=features)), _propose(module, pyramid)
    for name in ("content", "position", "reference_points"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))
    for name in ("pred_logits", "pred_boxes"):
        assert torch.equal(ours.predictions["enc_outputs"][name], expected.predictions["enc_outputs"][name])


def test_padded_image_gives_the_proposals_of_the_same_image_alone(rng, pyramid):
    module, valid = _proposal_queries(rng), ~pyramid.padding_mask[1]
    alone = module(
        pyramid.features[1:, valid], VALID[1], torch.zeros(1, int(valid.sum()), dtype=torch.bool)
    ).predictions["enc_outputs"]
    padded = _propose(module, pyramid).predictions["enc_outputs"]
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(padded[name][1:, valid], alone[name], rtol=1e-4, atol=1e-5)


def test_fewer_pixels_than_queries_give_all_of_them(rng, pyramid):
    for module in (_proposal_queries(rng, num_queries=300), _mixed(rng, 300)):
        queries = _propose(module, pyramid)
        assert queries.content.shape == (2, 75, D_MODEL)
        assert queries.position is None or queries.position.shape == (2, 75, D_MODEL)
        assert queries.reference_points.shape == (2, 75, 4)


def test_proposal_queries_are_initialized_by_xavier_with_pytorchs_biases():
    module = ProposalQueries(300, 256, class_head(256, 91), nn.Linear(256, 4))
    for linear, width in ((module.memory_projection, 256), (module.position_projection, 512)):
        assert fills_uniform_bound(linear.weight, xavier_bound(width, width))
        assert fills_uniform_bound(linear.bias, 1 / math.sqrt(width))


@pytest.mark.parametrize("autocast", [True, False])
def test_proposals_stay_in_float32_in_half_precision(rng, pyramid, autocast):
    module = _proposal_queries(rng)
    expected = _propose(module, pyramid).predictions["enc_outputs"]["pred_boxes"]
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            queries = _propose(module, pyramid)
            assert torch.equal(proposal_logits(SHAPES, pyramid.padding_mask).isfinite().all(-1), _usable(pyramid))
    else:
        queries = _propose(module.bfloat16(), pyramid._replace(features=pyramid.features.bfloat16()))
        assert queries.content.dtype == torch.bfloat16
    boxes = queries.predictions["enc_outputs"]["pred_boxes"]
    assert (queries.reference_points.dtype, boxes.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=0.05)
    # The grid is not rounded: with a box head of zeros, boxes are exact.
    module.box_head = nn.Linear(D_MODEL, 4).to(module.memory_projection.weight.dtype)
    nn.init.zeros_(module.box_head.weight)
    nn.init.zeros_(module.box_head.bias)
    features = pyramid.features.to(module.memory_projection.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        silent = _propose(module, pyramid._replace(features=features)).predictions["enc_outputs"]["pred_boxes"]
    torch.testing.assert_close(silent, proposal_logits(SHAPES, pyramid.padding_mask).sigmoid(), rtol=0, atol=1e-7)


def test_proposals_need_a_multiple_of_four_channels():
    with pytest.raises(ValueError, match="d_model must be a multiple of 4, got 10"):
        ProposalQueries(3, 10, nn.Identity(), nn.Identity())


def test_learned_content_has_a_row_for_every_query():
    with pytest.raises(ValueError, match=r"content must have num_queries \(3\) rows, got 4"):
        ProposalQueries(3, 8, nn.Identity(), nn.Identity(), content=nn.Embedding(4, 8))


def test_content_and_score_are_chosen_independently(rng, pyramid):
    for settings in ({"class_agnostic": False}, {"content": nn.Embedding(11, D_MODEL)}):
        module = _proposal_queries(rng, **settings)
        queries, (logits, boxes) = _propose(module, pyramid), _scored(module, pyramid)
        scores = logits[..., 0] if module.class_agnostic else logits.amax(-1)
        best = scores[0].argmax()
        assert (queries.reference_points[0] - boxes[0, best]).abs().amax(-1).min() < 1e-5
        assert (queries.position is None) == ("content" in settings)
        assert queries.predictions.keys() == {"enc_outputs" if module.class_agnostic else "interm_outputs"}


def test_parameters_have_the_names_and_the_order_of_saved_runs(rng):
    # Optimizers save their state by the order of parameters.
    scored = ["memory_projection", "memory_norm"]
    heads = ["class_head", "box_head"]
    for module, parts in (
        (_proposal_queries(rng), [*scored, "position_projection", "position_norm", *heads]),
        (_mixed(rng), ["content", *scored, *heads]),
    ):
        names = [
            f"{part}.{kind}" for part in parts for kind in ("weight", "bias") if (part, kind) != ("content", "bias")
        ]
        assert [name for name, _ in module.named_parameters()] == list(module.state_dict()) == names


@pytest.mark.compile
def test_compiled_proposals_serve_new_sizes_without_recompiling(rng):
    torch.compiler.reset()
    module = _proposal_queries(rng)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for index, (height, width) in enumerate([(9, 12), (13, 10), (16, 21)]):
        shapes = [(height, width), (height // 2, width // 2), (height // 3, width // 3)]
        pyramid = random_pyramid(rng, D_MODEL, [shapes] * 2, shapes)
        if index == 2:
            compilations = counter.frame_count
        ours, expected = _propose(compiled, pyramid), _propose(module, pyramid)
        torch.testing.assert_close(
            ours.predictions["enc_outputs"], expected.predictions["enc_outputs"], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(ours.content, expected.content, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == compilations <= 2


@pytest.mark.parametrize("num_queries", [1, 11, 25])
def test_boxes_of_the_pixels_with_the_best_class_are_chosen(rng, pyramid, num_queries):
    module = _mixed(rng, num_queries)
    queries, (logits, boxes) = _propose(module, pyramid), _scored(module, pyramid)
    for image in range(2):
        best = sorted(range(logits.shape[1]), key=lambda pixel: -logits[image, pixel].max().item())[:num_queries]
        # Pixels that propose nothing tie.
        usable = boxes[image, best].amax(-1) < 1
        torch.testing.assert_close(queries.predictions["interm_outputs"]["pred_logits"][image], logits[image, best])
        torch.testing.assert_close(queries.reference_points[image][usable], boxes[image, best][usable])
        assert torch.equal(queries.reference_points[image], queries.predictions["interm_outputs"]["pred_boxes"][image])
    assert not torch.equal(logits.amax(-1).argsort(stable=True), logits[..., 0].argsort(stable=True))


def test_chosen_boxes_are_detached_and_content_is_learned(rng, pyramid):
    module = _mixed(rng)
    queries = _propose(module, pyramid)
    assert not queries.reference_points.requires_grad
    assert torch.equal(queries.content[1], module.content.weight)
    assert queries.position is None
    assert queries.predictions.keys() == {"interm_outputs"}
    (
        queries.predictions["interm_outputs"]["pred_logits"].square().sum()
        + queries.predictions["interm_outputs"]["pred_boxes"].square().sum()
    ).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith("content"), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("autocast", [True, False])
def test_boxes_of_mixed_queries_stay_in_float32_in_half_precision(rng, pyramid, autocast):
    features = pyramid.features if autocast else pyramid.features.bfloat16()
    module = _mixed(rng) if autocast else _mixed(rng).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        queries = _propose(module, pyramid._replace(features=features))
    assert queries.reference_points.dtype == torch.float32
