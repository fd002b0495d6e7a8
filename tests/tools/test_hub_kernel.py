"""The folder for the package `kernels`: loaded as that package loads it, and by that package where it is installed."""

import ast
import base64
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from tools import hub_kernel
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr import modeling_deformable_detr
from transformers.utils import is_kernels_available

from deformdetr.kernels import ms_deform_attn
from deformdetr.testing import random_inputs

SHAPES = [(9, 7), (4, 4), (1, 3)]
OPTIONAL = {"llvmlite", "numba", "numpy", "triton"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    out = tmp_path_factory.mktemp("kernel")
    hub_kernel.build(out, version=3)
    return out


@pytest.fixture(scope="module")
def kernel(repository):
    """Load the folder where neither this library nor jaxtyping can be imported."""
    folder = repository / "build" / "torch-cpu"
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for hidden in [each for each in sys.modules if each.partition(".")[0] in ("deformdetr", "jaxtyping")]:
            patch.setitem(sys.modules, hidden, None)
        spec.loader.exec_module(module)
    return module


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    absolute = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    absolute |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in absolute}


def test_modules_that_would_replace_each_other_are_refused(monkeypatch):
    monkeypatch.setitem(hub_kernel._OWN, "_levels.py", "layers.py")
    with pytest.raises(ValueError, match=r"_levels\.py and .*layers\.py would both be _levels\.py"):
        hub_kernel.collect_sources()


def test_folder_holds_what_the_operator_needs_and_its_metadata(repository):
    folders = sorted((repository / "build").iterdir())
    assert [folder.name for folder in folders] == ["torch-cpu", "torch-cuda", "torch-rocm"]
    assert (repository / "LICENSE").exists()
    for folder in folders:
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["name"] == "ms-deform-attn"
        assert metadata["version"] == 3
        assert metadata["backend"] == {"type": folder.name.removeprefix("torch-")}
        assert metadata["id"].isidentifier()
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        del files["metadata.json"]
        digests = {
            name: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for name, path in files.items()
        }
        assert metadata["digest"] == {"algorithm": "sha256", "files": digests}
        assert {Path(name).suffix for name in files} == {".py", ".json"}
        assert not [name for name in files if "linear" in name or "dropout" in name]
        foreign = {module for path in folder.rglob("*.py") for module in imported(path)} - sys.stdlib_module_names
        assert foreign == {"torch", *OPTIONAL}
        # Optional packages are imported where they are needed, by modules that nothing imports before.
        assert imported(folder / "_op.py") - sys.stdlib_module_names == {"torch"}
        assert f'"{metadata["id"]}::ms_deform_attn"' in (folder / "_op.py").read_text()


def test_identifiers_change_with_the_content_alone(repository, tmp_path, monkeypatch):
    def identifier():
        return json.loads((hub_kernel.build(tmp_path)[0] / "metadata.json").read_text())["id"]

    first = json.loads((repository / "build" / "torch-cpu" / "metadata.json").read_text())["id"]
    assert identifier() == first
    sources = hub_kernel.collect_sources()
    monkeypatch.setattr(hub_kernel, "collect_sources", lambda: sources | {"layers.py": "# Another file.\n"})
    assert identifier() != first


def test_loaded_folder_computes_the_operator_and_its_gradients_beside_this_library(kernel, rng, monkeypatch):
    # Numba would compile its kernels anew in every temporary folder.
    monkeypatch.setattr(kernel._ms_deform_attn._op._numba, "is_usable", lambda *_: False)
    inputs = [tensor.float().requires_grad_() for tensor in random_inputs(rng, SHAPES)]
    expected = ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    got = kernel.ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(got, expected)
    grad = torch.randn(expected.shape, generator=rng)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, grad) for out in (expected, got)), strict=True):
        # Two kernels: gradients of locations reach 200, and differed by at most 1e-4 in 300 draws.
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="hold 82 pixels, but value holds 79"):
        kernel.ms_deform_attn(inputs[0][:, :-3], SHAPES, *inputs[1:])


def test_every_module_of_the_folder_can_be_imported(kernel, repository):
    folder = Path(kernel.__file__).parent
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        names = [part for part in parts if part != "__init__"]
        importlib.import_module(".".join([kernel.__name__, *names]))


def test_layer_has_the_form_that_transformers_replaces(kernel):
    layer, theirs = kernel.layers.MultiScaleDeformableAttention, modeling_deformable_detr.MultiScaleDeformableAttention
    assert layer.__init__ is torch.nn.Module.__init__
    assert vars(layer).keys() - vars(torch.nn.Module).keys() <= {
        "has_backward",
        "can_torch_compile",
        "__firstlineno__",
        "__static_attributes__",
    }
    for ours, original in zip(
        *(inspect.signature(each.forward).parameters.values() for each in (layer, theirs)), strict=True
    ):
        assert (ours.name, ours.kind) == (original.name, original.kind)


def tiny_model():
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]}
    config = DeformableDetrConfig(
        backbone_config=backbone, num_labels=3, num_queries=5, num_feature_levels=2, d_model=32,
        encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16,
    )  # fmt: skip
    return DeformableDetrForObjectDetection(config).eval()


@pytest.mark.skipif(not is_kernels_available(), reason="transformers finds no release of `kernels` that it can use")
def test_models_of_transformers_take_the_layer_by_use_kernels(repository, rng):
    import kernels

    model, images = tiny_model(), torch.randn(1, 3, 64, 96, generator=rng)
    with torch.no_grad():
        expected = model(images)
        layer = kernels.LocalLayerRepository(repository, layer_name="MultiScaleDeformableAttention")
        with kernels.use_kernel_mapping({"MultiScaleDeformableAttention": {"cpu": layer}}):
            model.set_use_kernels(True)
        got = model(images)
    (loaded,) = [each for each in kernels.get_loaded_kernels() if each.metadata.version == 3]
    attentions = [
        part for part in model.modules() if type(part) is modeling_deformable_detr.MultiScaleDeformableAttention
    ]
    assert len(attentions) == 3
    assert all(part.forward.__module__ == f"{loaded.metadata.id}.layers" for part in attentions)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-5)
