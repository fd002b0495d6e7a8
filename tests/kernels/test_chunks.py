"""Functions of single rows give the same results in chunks."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import EagerAndRecordGraphs

from deformdetr.kernels import _chunks, set_layer_kernels
from deformdetr.kernels._chunks import apply_in_chunks
from deformdetr.nn import DeformableEncoderLayer, FeedForward, MSDeformAttn


@pytest.fixture
def rows(monkeypatch):
    """Use chunks of three rows for any number of threads, on any processor."""
    monkeypatch.setattr(_chunks, "_ROWS_PER_THREAD", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with set_layer_kernels(["chunks"]):
        yield


def test_chunks_are_cut_and_concatenated_in_order(rows, rng):
    seen = []

    def add(a, b):
        seen.append(tuple(a.shape))
        return a + b

    a, b = (torch.randn(2, 5, 4, generator=rng) for _ in range(2))
    assert torch.equal(apply_in_chunks(add, a, b.transpose(1, 2).contiguous().transpose(1, 2)), a + b)
    assert seen == [(1, 3, 4)] * 3 + [(1, 1, 4)]


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 1, 4), (2, 0, 4)], ids=str)
def test_small_inputs_stay_whole(shape, rows, rng):
    seen = []
    apply_in_chunks(lambda x: (seen.append(tuple(x.shape)), x)[1], torch.randn(*shape, generator=rng))
    assert seen == [shape]


def test_other_devices_stay_whole(rows):
    seen = []
    apply_in_chunks(lambda x: (seen.append(tuple(x.shape)), x)[1], torch.empty(2, 5, 4, device="meta"))
    assert seen == [(2, 5, 4)]


@pytest.mark.compile
@pytest.mark.parametrize(("most", "chunks"), [(4, 4), (3, 1)])
def test_compilers_cut_static_sizes_into_few_chunks_and_leave_dynamic_ones_whole(most, chunks, rows, rng, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(_chunks, "_MAX_COMPILED_CHUNKS", most)
    backend = EagerAndRecordGraphs()

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(x):
        return apply_in_chunks(torch.sin, x)

    # The second size is compiled for all others.
    for positions in (5, 6, 7, 8):
        x = torch.randn(2, positions, 4, generator=rng)
        assert torch.equal(compiled(x), x.sin())
    sines = [sum(node.target is torch.sin for node in graph.graph.nodes) for graph in backend.graphs]
    assert sines == [chunks, 1]


@pytest.mark.compile
def test_exported_programs_hold_no_chunks(rows, rng):
    class Sine(nn.Module):
        def forward(self, x):
            return apply_in_chunks(torch.sin, x)

    program = torch.export.export(Sine(), (torch.randn(2, 5, 4, generator=rng),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.sin.default"]


def test_encoder_layer_gives_the_same_results_and_gradients_in_chunks(rng, monkeypatch):
    layer = DeformableEncoderLayer(MSDeformAttn(8, 1, 2, 2), FeedForward(8, 16, dropout=0.0), dropout=0.0).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    src, position = torch.randn(2, 2, 12, 8, generator=rng, dtype=torch.float64)
    references = torch.rand(2, 12, 1, 2, generator=rng, dtype=torch.float64)
    results = []
    monkeypatch.setattr(_chunks, "_ROWS_PER_THREAD", 5)
    for kernels in ([], ["chunks"]):
        layer.zero_grad()
        tensor = src.clone().requires_grad_()
        with set_layer_kernels(kernels):
            out = layer(tensor, position, references, [(3, 4)])
        out.sin().sum().backward()
        results.append([out.detach(), tensor.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
