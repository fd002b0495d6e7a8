"""Print the processor time that each CPU kernel of layers saves a whole model.

`python -m benchmarks.layer_kernels` prints the ratios of times without and with each kernel, of a forward and of a
training step.
"""

import argparse
import operator
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import get_args

import torch

from benchmarks.cases import Direction, ModelSizes
from benchmarks.measure import interleave
from benchmarks.model import prepare_model
from benchmarks.pages import markdown
from deformdetr.kernels import LayerKernel, set_layer_kernels

KERNELS: tuple[LayerKernel, ...] = get_args(LayerKernel)


def measure(sizes: ModelSizes, direction: Direction, rounds: int) -> dict[str, float]:
    """Return for each kernel, and for all, the time without it over the time with all."""
    call = prepare_model(sizes, direction, "cpu", seed=0).candidates["ours"]().call
    selections = {"": KERNELS, **{name: tuple(set(KERNELS) - {name}) for name in KERNELS}, "all": ()}
    samples = {name: partial(_sample, call, selection) for name, selection in selections.items()}
    # The first round warms up.
    times = {name: taken[1:] for name, taken in interleave(samples, rounds + 1).items()}
    with_all = times.pop("")
    return {name: median(map(operator.truediv, without, with_all)) for name, without in times.items()}


def _sample(call: Callable[[], object], selection: tuple[LayerKernel, ...]) -> float:
    with set_layer_kernels(selection):
        # Processor time, which other work on the machine distorts less than wall time.
        started = time.process_time()
        call()
        return time.process_time() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args()
    sizes = ModelSizes("deformable_detr_r50", *given.size)
    forward, step = (measure(sizes, direction, given.rounds) for direction in ("forward", "training_step"))
    print(f"{sizes.height} x {sizes.width}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    rows = ([name, f"{forward[name]:.3f}", f"{step[name]:.3f}"] for name in forward)
    print(markdown(["kernel", "forward without it / with it", "training step without it / with it"], rows))
