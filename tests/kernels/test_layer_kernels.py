"""One setting switches all kernels of layers, and processors that were not measured use PyTorch's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from deformdetr.kernels import _layer_kernels, _linear, set_layer_kernels
from deformdetr.kernels._chunks import apply_in_chunks
from deformdetr.kernels._layer_kernels import is_selected
from deformdetr.kernels._layers import apply_dropout, apply_linear, to_fast_format

KERNELS = ("channels_last", "chunks", "dropout", "linear")


@pytest.fixture(autouse=True)
def _default():
    """Start from the default, and return to it."""
    with set_layer_kernels(None):
        yield


@pytest.fixture
def processor(monkeypatch):
    """Return a function that stands another processor in for this one."""

    def replace(vendor, capability="AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(_layer_kernels, "_vendor", lambda cpuinfo: vendor)
        _layer_kernels._faster_here.cache_clear()

    yield replace
    monkeypatch.undo()
    _layer_kernels._faster_here.cache_clear()


def selected():
    return [kernel for kernel in KERNELS if is_selected(kernel)]


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", ["channels_last", "chunks", "dropout", "linear"]),
        ("GenuineIntel", "AVX512", ["channels_last", "chunks", "dropout"]),
        ("AuthenticAMD", "AVX2", []),
        ("GenuineIntel", "DEFAULT", []),
        ("", "AVX512", []),
        ("", "NO AVX", []),
    ],
)
def test_processors_use_what_was_measured_to_be_faster_on_them(vendor, capability, expected, processor):
    processor(vendor, capability)
    assert selected() == expected


def test_selection_lasts_until_the_next_one_or_the_end_of_the_block():
    set_layer_kernels(["linear"])
    assert selected() == ["linear"]
    with set_layer_kernels(["chunks", "dropout"]):
        assert selected() == ["chunks", "dropout"]
        with set_layer_kernels([]):
            assert selected() == []
        assert selected() == ["chunks", "dropout"]
    assert selected() == ["linear"]


@pytest.mark.unchecked
def test_unknown_kernel_is_refused_and_changes_nothing():
    before = selected()
    with pytest.raises(ValueError, match=r"kernels must be among .*; got attention, linear"):
        set_layer_kernels(["linear", "attention"])
    assert selected() == before


def test_empty_selection_calls_pytorchs_functions(processor, rng, monkeypatch):
    processor("AuthenticAMD")
    x, layer, images = torch.randn(2, 5000, 8, generator=rng), nn.Linear(8, 4), torch.rand(1, 3, 4, 5, generator=rng)
    fast, calls = _linear.linear, []
    monkeypatch.setattr(_linear, "linear", lambda *args: (calls.append("linear"), fast(*args))[1])

    def sine(rows):
        calls.append("sine")
        return rows.sin()

    def run():
        torch.manual_seed(3)
        dropped = apply_dropout(nn.Dropout(0.5), x)
        apply_linear(layer, x)
        apply_in_chunks(sine, x)
        return dropped, to_fast_format(images)

    with set_layer_kernels([]):
        dropped, kept = run()
    torch.manual_seed(3)
    assert torch.equal(dropped, nn.functional.dropout(x, 0.5))
    assert kept is images
    assert calls == ["sine"]
    dropped_here, converted = run()
    assert not torch.equal(dropped_here, dropped)
    assert converted.is_contiguous(memory_format=torch.channels_last)
    assert calls.count("linear") == 1
    assert calls.count("sine") > 2


def test_few_rows_are_multiplied_by_pytorch():
    layer = nn.Linear(8, 4)
    with set_layer_kernels(["linear"]):
        assert [_linear.uses_onednn(torch.rand(rows, 8), layer.weight, layer.bias) for rows in (1, 63, 64)] == [
            False,
            False,
            True,
        ]


def test_vendor_is_read_from_the_system(tmp_path):
    path = tmp_path / "cpuinfo"
    assert _layer_kernels._vendor(path) == ""
    path.write_text("processor : 0\n\n")
    assert _layer_kernels._vendor(path) == ""
    path.write_text("processor : 0\nvendor_id\t: AuthenticAMD\nmodel name : x\n")
    assert _layer_kernels._vendor(path) == "AuthenticAMD"
    assert _layer_kernels._vendor(Path("/proc/cpuinfo")) in ("", "AuthenticAMD", "GenuineIntel")
