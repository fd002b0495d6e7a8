"""Print the processor time that each CPU kernel of layers saves a whole model.

`python -m benchmarks.layer_kernels` prints the ratios of times without and with each kernel, of a forward and of a
training step.
"""

import argparse
from operator import truediv
from statistics import median
from typing import get_args

import torch

from benchmarks.cases import Direction, ModelSizes
from benchmarks.measure import processor_times
from benchmarks.model import prepare_model
from benchmarks.pages import markdown
from deformdetr.kernels import LayerKernel, set_layer_kernels

KERNELS: tuple[LayerKernel, ...] = get_args(LayerKernel)


def measure(sizes: ModelSizes, direction: Direction, rounds: int) -> dict[str, float]:
    """Return for each kernel, and for all, the time without it over the time with all."""
    call = prepare_model(sizes, direction, "cpu", seed=0).candidates["ours"]().call

    def call_with(*kernels: LayerKernel) -> None:
        with set_layer_kernels(kernels):
            call()

    calls = {name: lambda name=name: call_with(*(set(KERNELS) - {name})) for name in KERNELS}
    times = processor_times({"": lambda: call_with(*KERNELS), **calls, "all": call_with}, rounds)
    with_all = times.pop("")
    return {name: median(map(truediv, without, with_all)) for name, without in times.items()}


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
