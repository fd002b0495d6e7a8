"""Two trainings, one after the other in the same processes: of a compiled model, and in bfloat16."""

import sys
from pathlib import Path

from torch import nn

from deformdetr.engine import read_experiment, train

_compile = nn.Module.compile


def _compile_without_code(module: nn.Module) -> None:
    # All of torch.compile but its code generator, which takes a minute.
    _compile(module, backend="aot_eager")
    sys.stdout.write("compiled\n")


if __name__ == "__main__":
    config, folder = sys.argv[1], Path(sys.argv[2])
    nn.Module.compile = _compile_without_code
    train(read_experiment(config, {"train": {"compile": True}}), folder / "compiled")
    train(read_experiment(config, {"train": {"precision": "bfloat16"}}), folder / "bfloat16")
