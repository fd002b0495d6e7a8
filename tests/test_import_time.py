"""Processor time and modules that the first use of a part costs, each in its own process."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "PIL",
    "accelerate",
    "llvmlite",
    "matplotlib",
    "numba",
    "onnx",
    "pycocotools",
    "safetensors",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "transformers",
    "triton",
)

# The code that uses a part, and the packages it needs, whose own import is not counted.
PARTS = {
    "layer": ("from deformdetr import MSDeformAttn; MSDeformAttn(16, 1, 2)", "torch"),
    "operator": ("from deformdetr import ms_deform_attn", "torch"),
    "layers": ("from deformdetr import nn; nn.FeedForward(8, 16); nn.MLP(4, 8, 2, 2)", "torch"),
    "matcher": ("from deformdetr.matching import HungarianMatcher; HungarianMatcher()", "torch, scipy.optimize"),
    "criterion": ("from deformdetr.losses import SetCriterion", "torch, scipy.optimize"),
    "model": ("from deformdetr import DeformableDETR", "torch, scipy.optimize"),
    "config": ("import deformdetr; deformdetr.DeformableDETRConfig(num_classes=3)", "torch, scipy.optimize, pydantic"),
    "preset": ("import deformdetr; deformdetr.preset('demo')", "torch, scipy.optimize, pydantic"),
}

MEASURE = """
import json, sys, time
import {needed}
before = set(sys.modules)
started = time.process_time()
{code}
seconds = time.process_time() - started
print(json.dumps({{"seconds": seconds, "loaded": sorted(set(sys.modules) - before)}}))
"""


def measure(part: str) -> tuple[float, list[str]]:
    code, needed = PARTS[part]
    process = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code, needed=needed)], check=False, capture_output=True, text=True
    )
    if process.returncode:
        pytest.fail(process.stderr)
    measured = json.loads(process.stdout)
    return measured["seconds"], measured["loaded"]


@pytest.mark.parametrize("part", PARTS)
def test_part_loads_nothing_heavy_and_takes_little_time(part):
    seconds, loaded = measure(part)
    assert any(name.startswith("deformdetr.") for name in loaded)
    assert [name for name in loaded if name.startswith(tuple(f"{heavy}." for heavy in HEAVY)) or name in HEAVY] == []
    # The least of a few runs: other work on the machine slows an import, and nothing speeds it up.
    attempts = [seconds]
    while min(attempts) > 0.5 and len(attempts) < 5:
        attempts.append(measure(part)[0])
    assert min(attempts) <= 0.5
