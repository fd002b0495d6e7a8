"""Processor time that each CPU kernel of layers saves a whole model: `python -m benchmarks.layer_kernels`."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import get_args

import torch

from benchmarks.cases import MODEL_CASES, ModelCase
from benchmarks.measure import interleave
from benchmarks.problems.model import prepare_model
from benchmarks.problems.problem import Contender
from deformdetr.kernels import LayerKernel, set_layer_kernels

KERNELS: tuple[LayerKernel, ...] = get_args(LayerKernel)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of kernels, with the ratio of times without and with each, of a forward and of a training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    given = parser.parse_args(arguments)
    case = replace(MODEL_CASES[0], height=given.size[0], width=given.size[1])
    forward, step = measure(case.quick() if given.quick else case, given.rounds)
    print(f"{case.height} x {case.width}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| kernel | forward without it / with it | training step without it / with it |\n| --- | ---: | ---: |")
    for name in forward:
        print(f"| {name} | {forward[name]:.3f} | {step[name]:.3f} |")


def measure(case: ModelCase, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return for each kernel, and for all, the time without it over the time with all, of a forward and of a step."""
    selections = {"": KERNELS, **{name: tuple(set(KERNELS) - {name}) for name in KERNELS}, "all": ()}

    def sample(contender: Contender, selection: tuple[LayerKernel, ...]) -> float:
        with set_layer_kernels(selection):
            # Processor time, which other work on the machine distorts less than wall time.
            started = time.process_time()
            contender.call()
            return time.process_time() - started

    ratios = []
    for direction in ("forward", "training_step"):
        contender = prepare_model(case, "float32", direction, "cpu", seed=0).candidates["ours"]()
        samples = {name: partial(sample, contender, selection) for name, selection in selections.items()}
        # The first round warms up.
        times = interleave(samples, dict.fromkeys(samples, rounds + 1))
        with_all = times.pop("")[1:]
        ratios.append(
            {
                name: median(without / with_it for without, with_it in zip(taken[1:], with_all, strict=True))
                for name, taken in times.items()
            }
        )
    return ratios[0], ratios[1]


if __name__ == "__main__":
    main()
