"""Without the names that PyTorch does not document, everything runs and computes the same."""

import ast
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.flop_counter import FlopCounterMode

from deformdetr import DeformableDETRConfig, _compat
from deformdetr.config import ResNetConfig
from deformdetr.integrations.transformers import accelerate
from deformdetr.kernels import _chunks, ms_deform_attn, register_flop_formulas, set_layer_kernels
from deformdetr.kernels._numba import _threads
from deformdetr.nn import MSDeformAttn
from sampling import assert_close

SOURCES = Path(__file__).parents[1] / "src" / "deformdetr"
# Undocumented without an underscore, or in a namespace where hardly anything is documented.
UNDOCUMENTED = ("torch.fx.experimental", "torch.mkldnn_convolution", "torch.ops", "torch.utils.pytree")
DOCUMENTED = ("torch.ops.aten.upsample_nearest2d.vec", "torch.ops.deformdetr")
FOREIGN = {"_hf_hook", "_old_forward", "onnxruntime_pybind11_state"}
# What every module, tensor and optimizer has.
INHERITED = {
    name
    for kind in (nn.Linear(1, 1), torch.empty(0), optim.SGD([torch.empty(0, requires_grad=True)]))
    for name in dir(kind)
    if name.startswith("_") and not name.startswith("__")
}

NAMES = {
    "dispatch_modes": (torch._C, "_len_torch_dispatch_stack"),
    "transforms": (torch._C._functorch, "get_interpreter_stack"),
    "storages": (torch._C, "_has_storage"),
    "global_hooks": (nn.modules.module, "_global_forward_hooks"),
    "product": (torch.ops, "mkldnn"),
    "extension": (torch._C, "__file__"),
}


@pytest.fixture
def removed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that hides names from the library, but not from PyTorch itself."""

    def reload() -> None:
        importlib.reload(_compat)
        _threads._openmp_parallel.cache_clear()

    def remove(*names: str) -> None:
        with monkeypatch.context() as patch:
            for name in names:
                owner, attribute = NAMES[name]
                if attribute == "mkldnn":
                    patch.setattr(owner, attribute, SimpleNamespace())
                else:
                    patch.delattr(owner, attribute)
            reload()

    yield remove
    reload()


@pytest.fixture
def onednn() -> Iterator[None]:
    """Multiply by oneDNN on any processor."""
    with set_layer_kernels(["linear"]):
        yield


def layer_and_inputs(rng: torch.Generator) -> tuple[MSDeformAttn, tuple[Any, ...]]:
    layer = MSDeformAttn(16, 2, 2, 2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=rng)
    query, features = (torch.randn(2, count, 16, generator=rng) for count in (600, 30))
    return layer, (query, torch.rand(2, 600, 2, 2, generator=rng), features, [(4, 6), (2, 3)])


def layer_step(layer: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the output and all gradients."""
    query, references, features, shapes = inputs
    tensors = [query.requires_grad_(), references.requires_grad_(), features.requires_grad_(), *layer.parameters()]
    out = layer(query, references, features, shapes)
    return [out, *torch.autograd.grad(out.sin().sum(), tensors)]


def training_step(seed: int) -> list[Tensor]:
    """Return the loss of a small detector, and its parameters after a step."""
    torch.manual_seed(seed)
    config = DeformableDETRConfig(
        num_classes=3,
        num_queries=6,
        d_model=16,
        n_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ffn=24,
        norm_groups=2,
        dropout=0.0,
        backbone=ResNetConfig(name="resnet18", weights=None),
    )
    model, criterion = config.build(), config.build_criterion()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    targets = [{"boxes": torch.tensor([[0.5, 0.4, 0.2, 0.3]]), "labels": torch.tensor([1])}] * 2
    loss = criterion.total(criterion(model(torch.randn(2, 3, 64, 96)), targets))
    loss.backward()
    optimizer.step()
    return [loss, *model.parameters()]


def transformed(rng: torch.Generator) -> list[Tensor]:
    """Return the operator and the layer under transforms of `torch.func`."""
    value, locations = torch.randn(3, 2, 6, 2, 4, generator=rng), torch.rand(3, 2, 5, 2, 1, 2, 2, generator=rng)
    weights = torch.rand(3, 2, 5, 2, 1, 2, generator=rng)

    def loss(*tensors: Tensor) -> Tensor:
        value, locations, weights = tensors
        return ms_deform_attn(value, [(2, 3)], locations, weights).sin().sum()

    layer, (query, references, features, shapes) = layer_and_inputs(rng)
    mapped = torch.func.vmap(lambda *tensors: layer(*tensors, shapes))(
        query[:, None], references[:, None], features[:, None]
    )
    return [*torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(value, locations, weights), mapped]


def counted(rng: torch.Generator) -> int:
    register_flop_formulas()
    layer, inputs = layer_and_inputs(rng)
    with FlopCounterMode(display=False) as counter:
        layer(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [tuple(NAMES)], ids="+".join)
def test_everything_computes_the_same_without(names, removed, onednn, rng, seed):
    state = rng.get_state()

    def compute() -> list[Tensor]:
        rng.set_state(state)
        return [*layer_step(*layer_and_inputs(rng)), *transformed(rng), *training_step(seed)]

    expected = compute()
    flops = counted(rng)
    removed(*names)
    for got, wanted in zip(compute(), expected, strict=True):
        # Gradients are sums over many rows, whose rounding errors are those of their largest.
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * max(1, float(wanted.detach().abs().max())))
    # With all of them gone, counters of operations cannot be seen.
    assert counted(rng) == flops or set(names) == set(NAMES)


def test_work_is_shared_among_other_threads_without_the_path_of_the_runtime(removed, rng):
    layer, inputs = layer_and_inputs(rng)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = layer_step(layer, inputs)
        removed("extension")
        assert _threads._openmp_parallel() is None
        torch.testing.assert_close(layer_step(layer, inputs), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.compile
@pytest.mark.parametrize("names", [("product",), ("global_hooks",), tuple(NAMES)], ids="+".join)
def test_compiled_layer_computes_the_same_without(names, removed, onednn, rng):
    torch.compiler.reset()
    layer, inputs = layer_and_inputs(rng)
    expected = layer_step(layer, inputs)
    removed(*names)
    compiled = layer_step(torch.compile(layer, fullgraph=True, backend="aot_eager"), inputs)
    # Gradients of weights are sums over all rows, and small where these cancel.
    for got, wanted in zip(compiled, expected, strict=True):
        assert_close(got, wanted, 1e-5)


@pytest.mark.compile
def test_compilers_cut_nothing_without_a_way_to_tell_fixed_sizes(monkeypatch, rng):
    from torch.fx.experimental import symbolic_shapes

    from deformdetr.kernels import _compiling

    torch.compiler.reset()
    monkeypatch.delattr(symbolic_shapes, "has_static_value")
    monkeypatch.setattr(_compiling, "has_static_value", _compat.find_static_value())
    monkeypatch.setattr(_chunks, "_ROWS_PER_THREAD", 3)
    x = torch.randn(2, 5, 4, generator=rng)
    compiled = torch.compile(lambda x: _chunks.apply_in_chunks(torch.sin, x), fullgraph=True, backend="aot_eager")
    with set_layer_kernels(["chunks"]):
        assert torch.equal(compiled(x), x.sin())


def test_failures_of_onnxruntime_are_all_exceptions_where_it_hides_them(monkeypatch):
    import onnxruntime

    state = "onnxruntime.capi.onnxruntime_pybind11_state"
    failures = _compat.onnxruntime_failures()
    assert onnxruntime.capi.onnxruntime_pybind11_state.Fail in failures
    assert Exception not in failures
    monkeypatch.setitem(sys.modules, state, SimpleNamespace())
    assert set(_compat.onnxruntime_failures()) == {Exception}
    monkeypatch.setitem(sys.modules, state, None)
    assert _compat.onnxruntime_failures() == (Exception,)


def test_forward_that_is_wrapped_in_an_unknown_way_is_left_and_named():
    class MultiScaleDeformableAttention(nn.Module):
        def forward(
            self,
            value,
            value_spatial_shapes,
            value_spatial_shapes_list,
            level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        ):
            return value

    part = MultiScaleDeformableAttention()
    assert accelerate(nn.ModuleDict({"part": part})).accelerated == ["part"]
    part = MultiScaleDeformableAttention()
    part.forward = functools.partial(part.forward)
    wrapped = part.forward
    result = accelerate(nn.ModuleDict({"part": part}))
    assert (result.accelerated, list(result.left)) == ([], ["part"])
    assert "wrapped" in result.left["part"]
    assert part.forward is wrapped


def test_no_layer_is_plain_where_hooks_are_hidden(monkeypatch):
    layer = nn.Linear(2, 3)
    assert _compat.is_plain(layer, nn.Linear)
    # Hides the name that the constructor of every module sets.
    monkeypatch.setattr(nn, "Identity", object)
    importlib.reload(_compat)
    try:
        assert not _compat.is_plain(layer, nn.Linear)
    finally:
        monkeypatch.undo()
        importlib.reload(_compat)


def chain(node: ast.AST) -> str:
    """Return `a.b.c` for an attribute looked up from a name, else an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def is_private(path: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in path.split("."))


def undocumented_names(tree: ast.AST) -> list[str]:
    """List what code uses of PyTorch, accelerate and onnxruntime that they do not document."""
    aliases = {"torch": "torch"}
    paths: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            paths += [f"{node.module}.{alias.name}" for alias in node.names]
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        root, dot, rest = chain(node).partition(".")
        if dot and root in aliases:
            paths.append(f"{aliases[root]}.{rest}")
    found = [
        path for path in paths if path.split(".")[0] == "torch" and (is_private(path) or path.startswith(UNDOCUMENTED))
    ]
    # Parts of a documented path are met on the way to its end.
    found = [
        path
        for path in found
        if not any(f"{end}.".startswith(f"{path}.") or path.startswith(end) for end in DOCUMENTED)
    ]
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name in INHERITED | FOREIGN:
                found.append(name)
            case ast.ClassDef(body=members):
                found += [each.name for each in members if isinstance(each, ast.FunctionDef) and each.name in INHERITED]
            case ast.Constant(value=str(name)) if name in FOREIGN:
                found.append(name)
    return found


@pytest.mark.parametrize("file", sorted(SOURCES.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCES)))
def test_undocumented_names_are_used_in_one_module_alone(file):
    found = undocumented_names(ast.parse(file.read_text()))
    assert bool(found) == (file.name == "_compat.py"), found


@pytest.mark.parametrize(
    "code",
    [
        "import torch; torch._C._get_tracing_state()",
        "from torch import nn; nn.modules.batchnorm._BatchNorm",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "from torch.utils import _pytree as tree",
        "import torch._dynamo",
        "import torch; torch.ops.aten.convolution_backward(1)",
        "import torch; torch.mkldnn_convolution(1)",
        "from torch.fx.experimental.symbolic_shapes import has_static_value",
        "class A:\n    def _load_from_state_dict(self): pass",
        "layer._forward_hooks",
        "hasattr(part, '_hf_hook')",
    ],
)
def test_undocumented_name_is_found(code):
    assert undocumented_names(ast.parse(code))
