"""Find launch parameters for the GPU at hand, and add them to the library's table.

`python -m benchmarks.tune --write` tries every combination on an encoder and on a decoder, for both directions and both
precisions of the value. It writes the fastest ones for this GPU's architecture, with their source. It takes minutes.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import OperatorSizes, select
from benchmarks.environment import describe_environment, today
from benchmarks.measure import DeviceClock
from benchmarks.operator import draw, timed, track
from benchmarks.providers import OFFSETS, PROVIDERS
from deformdetr.kernels._triton import _launch_table as _launch

TABLE = Path(_launch.__file__).with_name(_launch.TABLE)
CASES: dict[_launch.Size, str] = {"many": "encoder_800x1333_b2", "few": "decoder300_800x1333_b4"}
DTYPES: dict[_launch.Precision, torch.dtype] = {"float32": torch.float32, "half": torch.bfloat16}

Calls = Mapping[_launch.Direction, Callable[[], object]]


def candidates(size: _launch.Size) -> Iterator[dict[str, int]]:
    """Yield all combinations; only queries that are the pixels can be computed in tiles."""
    tiled = (0, 1) if size == "many" else (0,)
    for warps, chunks, tile in itertools.product((1, 2, 4, 8), (1, 2), tiled):
        yield {"warps": warps, "chunks": chunks, "tiled": tile}


def calls(sizes: OperatorSizes, dtype: torch.dtype, device: str = "cuda") -> Calls:
    """Return the forward and the backward of the operator, on random inputs like those of a layer in training."""
    tensors, leaves = track(draw(sizes, dtype, device, seed=0), OFFSETS)
    function = partial(PROVIDERS["ours_fused"].load(), tensors, sizes.levels)
    with torch.no_grad():
        grad_output = torch.randn_like(function())
    return {each: timed(function, list(leaves.values()), each, grad_output) for each in ("forward", "backward")}


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call on the GPU."""
    call()
    clock = DeviceClock(call)
    return median(clock.sample() for _ in range(5))


def tune(make_calls: Callable[..., Calls] = calls, time: Callable[..., float] = seconds) -> dict[str, Any]:
    """Return the fastest entries, and print all times."""
    best: dict[str, Any] = {}
    for (size, case), (precision, dtype) in itertools.product(CASES.items(), DTYPES.items()):
        for direction, call in make_calls(select(["operator"], [case])[0].sizes, dtype).items():
            times = {}
            for entry in candidates(size):
                table = {"launches": {"any": {direction: {precision: {size: entry}}}}}
                with mock.patch.object(_launch, "read_table", lambda table=table: table):
                    times[json.dumps(entry)] = time(call)
                print(f"{direction} {precision} {size} {entry}: {times[json.dumps(entry)] * 1e6:.1f} us", flush=True)
            fastest = min(times, key=times.__getitem__)
            best.setdefault(direction, {}).setdefault(precision, {})[size] = json.loads(fastest)
    return best


def add(table: Mapping[str, Any], architecture: str, entries: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the table with entries for an architecture, and their source, added."""
    return {
        "sources": table["sources"] | {architecture: source},
        "launches": table["launches"] | {architecture: entries},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table of the library")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU, and torch finds none")
    # The stream in which all forwards run, as graphs of their backwards require.
    with torch.cuda.stream(torch.cuda.Stream()):
        entries = tune()
    print(json.dumps(entries, indent=2))
    environment = describe_environment("cuda")
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "triton"))
    source = f"Measured on {environment['device_name']} by `python -m benchmarks.tune --write`, {versions}, {today()}."
    if options.write:
        architecture = _launch.architecture_of(torch.device("cuda", torch.cuda.current_device())).name
        TABLE.write_text(json.dumps(add(_launch.read_table(), architecture, entries, source), indent=2) + "\n")
        print(f"wrote {TABLE}")
