"""Find launch parameters for the GPU at hand, and add them to the library's table.

    python -m benchmarks.tune --write

tries every combination on an encoder and on a decoder, for both directions and both precisions of the value, and writes
the fastest ones for this GPU's architecture, with their source. It takes some minutes.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import torch

from deformdetr.kernels._levels import pack_shapes
from deformdetr.kernels._triton import _launch_table

TABLE = Path(_launch_table.__file__).with_name(_launch_table.TABLE)

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
PIXELS = sum(height * width for height, width in LEVELS)
# (batch, queries): an encoder, and a decoder.
SIZES: dict[_launch_table.Size, tuple[int, int]] = {"many": (2, PIXELS), "few": (4, 300)}
DTYPES: dict[_launch_table.Precision, torch.dtype] = {"float32": torch.float32, "half": torch.bfloat16}

Timer = Callable[[Callable[[], object]], float]


def candidates(size: _launch_table.Size) -> Iterator[dict[str, int]]:
    """Give all combinations; queries that are not the pixels cannot be served in tiles."""
    tiled = (0, 1) if size == "many" else (0,)
    for warps, chunks, tile in itertools.product((1, 2, 4, 8), (1, 2), tiled):
        yield {"warps": warps, "chunks": chunks, "tiled": tile}


def calls(
    size: _launch_table.Size, precision: _launch_table.Precision
) -> dict[_launch_table.Direction, Callable[[], object]]:
    """Give both directions on random input of that size, as a layer in training calls them."""
    from deformdetr.kernels import _triton

    batch, queries = SIZES[size]
    dtype = DTYPES[precision]
    value = torch.randn(batch, PIXELS, 8, 32, device="cuda", dtype=dtype)
    if queries == PIXELS:
        centers = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in LEVELS
        ]
        references = torch.cat(centers).cuda()[None, :, None].expand(batch, -1, len(LEVELS), -1).contiguous()
    else:
        references = torch.rand(batch, queries, 1, 2, device="cuda").expand(-1, -1, len(LEVELS), -1).contiguous()
    offsets = 2 * torch.randn(batch, queries, 8, len(LEVELS), 4, 2, device="cuda")
    logits = torch.randn(batch, queries, 8, len(LEVELS), 4, device="cuda")
    sampling = _triton.Sampling(offsets.to(dtype), logits.to(dtype), references)
    pyramid = pack_shapes(LEVELS)
    out = _triton.forward(value, pyramid, sampling)
    needs = _triton.Needs(value=True, locations=True, weights=True)
    return {
        "forward": lambda: _triton.forward(value, pyramid, sampling),
        "backward": lambda: _triton.backward(out, out, value, pyramid, sampling, needs, deterministic=False),
    }


def tune(
    architecture: str,
    time: Timer,
    make_calls: Callable[..., dict[_launch_table.Direction, Callable[[], object]]] = calls,
):
    """Give the fastest entries for an architecture, and print all times."""
    best: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for size, precision in itertools.product(SIZES, DTYPES):
        for direction, call in make_calls(size, precision).items():
            times = {}
            for entry in candidates(size):
                table = {"launches": {"any": {direction: {precision: {size: entry}}}}}
                with mock.patch.object(_launch_table, "read_table", lambda table=table: table):
                    times[json.dumps(entry)] = time(call)
                print(f"{architecture} {direction} {precision} {size} {entry}: {times[json.dumps(entry)] * 1e3:.1f} us")
            fastest = min(times, key=times.__getitem__)
            best.setdefault(direction, {}).setdefault(precision, {})[size] = json.loads(fastest)
    return best


def add(table: dict, architecture: str, entries: dict, source: str) -> dict:
    """Give the table with these entries for the architecture, and where they come from."""
    return {
        "sources": table["sources"] | {architecture: source},
        "launches": table["launches"] | {architecture: entries},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table of the library")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU, and torch finds none")
    import triton

    device = torch.device("cuda", torch.cuda.current_device())
    architecture = _launch_table.architecture_of(device).name
    # Replayed from a graph, so that only the device's time counts.
    entries = tune(architecture, lambda call: triton.testing.do_bench_cudagraph(call, rep=50))
    source = (
        f"Measured on {torch.cuda.get_device_name(device)} by `python -m benchmarks.tune --write`, torch "
        f"{torch.__version__}, triton {triton.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    )
    table = add(_launch_table.read_table(), architecture, entries, source)
    print(json.dumps(table["launches"][architecture], indent=2))
    if arguments.write:
        TABLE.write_text(json.dumps(table, indent=2) + "\n")
        print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
