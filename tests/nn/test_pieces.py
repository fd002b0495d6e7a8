"""Layers of every position alone give the same in pieces."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import EagerAndRecordGraphs

from deformdetr.nn import DeformableEncoderLayer, FeedForward, MSDeformAttn, _pieces
from deformdetr.nn._pieces import apply_by_pieces


@pytest.fixture
def rows(monkeypatch):
    """Cut into pieces of three rows, whatever the number of threads."""
    monkeypatch.setattr(_pieces, "_ROWS_PER_THREAD", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def test_pieces_are_cut_and_put_together_in_order(rows, rng):
    seen = []

    def add(a, b):
        seen.append(tuple(a.shape))
        return a + b

    a, b = (torch.randn(2, 5, 4, generator=rng) for _ in range(2))
    assert torch.equal(apply_by_pieces(add, a, b.transpose(1, 2).contiguous().transpose(1, 2)), a + b)
    assert seen == [(1, 3, 4)] * 3 + [(1, 1, 4)]


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 1, 4), (2, 0, 4)], ids=str)
def test_small_inputs_stay_whole(shape, rows, rng):
    seen = []
    apply_by_pieces(lambda x: (seen.append(tuple(x.shape)), x)[1], torch.randn(*shape, generator=rng))
    assert seen == [shape]


def test_other_devices_stay_whole(rows):
    seen = []
    apply_by_pieces(lambda x: (seen.append(tuple(x.shape)), x)[1], torch.empty(2, 5, 4, device="meta"))
    assert seen == [(2, 5, 4)]


@pytest.mark.compile
@pytest.mark.parametrize(("most", "pieces"), [(4, 4), (3, 1)])
def test_compilers_cut_known_sizes_into_few_pieces_and_leave_others_whole(most, pieces, rows, rng, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(_pieces, "_MOST_UNROLLED", most)
    backend = EagerAndRecordGraphs()

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(x):
        return apply_by_pieces(torch.sin, x)

    # The second size is compiled for all others.
    for positions in (5, 6, 7, 8):
        x = torch.randn(2, positions, 4, generator=rng)
        assert torch.equal(compiled(x), x.sin())
    sines = [sum(node.target is torch.sin for node in graph.graph.nodes) for graph in backend.graphs]
    assert sines == [pieces, 1]


@pytest.mark.compile
def test_exported_programs_hold_no_pieces(rows, rng):
    class Sine(nn.Module):
        def forward(self, x):
            return apply_by_pieces(torch.sin, x)

    program = torch.export.export(Sine(), (torch.randn(2, 5, 4, generator=rng),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.sin.default"]


def test_encoder_layer_gives_the_same_results_and_gradients_in_pieces(rng, monkeypatch):
    layer = DeformableEncoderLayer(MSDeformAttn(8, 1, 2, 2), FeedForward(8, 16, dropout=0.0), dropout=0.0).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    src, position = torch.randn(2, 2, 12, 8, generator=rng, dtype=torch.float64)
    references = torch.rand(2, 12, 1, 2, generator=rng, dtype=torch.float64)
    results = []
    for size in (1000, 5):
        monkeypatch.setattr(_pieces, "_ROWS_PER_THREAD", size)
        layer.zero_grad()
        tensor = src.clone().requires_grad_()
        out = layer(tensor, position, references, [(3, 4)])
        out.sin().sum().backward()
        results.append([out.detach(), tensor.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
