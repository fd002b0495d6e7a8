"""Compile the CUDA extension of the original implementation, from its sources, for the PyTorch that is installed.

`python -m benchmarks.extension models/ops/src FOLDER` writes MultiScaleDeformableAttention.so, which can be imported
with FOLDER on the path. It needs nvcc.
"""

import argparse
import re
import shutil
from pathlib import Path

NAME = "MultiScaleDeformableAttention"


def modernize(text: str) -> str:
    """Replace what newer versions of PyTorch no longer have, without which it does not compile."""
    text = re.sub(r"\.type\(\)\.is_cuda\(\)", ".is_cuda()", text)
    text = re.sub(r"(AT_DISPATCH_\w+\(\s*\w+)\.type\(\)", r"\1.scalar_type()", text)
    return re.sub(r"\.data<", ".data_ptr<", text)


def build(source: Path, folder: Path) -> Path:
    """Compile a copy of the sources, and return the module's file."""
    from torch.utils import cpp_extension

    copied = shutil.copytree(source, folder / f"{NAME}_src", dirs_exist_ok=True)
    for path in copied.rglob("*.*"):
        if path.suffix in (".cpp", ".cu", ".cuh", ".h"):
            path.write_text(modernize(path.read_text()))
    cpp_extension.load(
        NAME,
        [str(path) for path in sorted(copied.rglob("*.c*")) if path.suffix in (".cpp", ".cu")],
        extra_include_paths=[str(copied)],
        extra_cflags=["-DWITH_CUDA"],
        extra_cuda_cflags=["-DWITH_CUDA", "-O3"],
        build_directory=str(folder),
        with_cuda=True,
        is_python_module=False,
        verbose=True,
    )
    return folder / f"{NAME}.so"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the original's folder models/ops/src")
    parser.add_argument("folder", type=Path, help="folder to write to")
    options = parser.parse_args()
    print(f"wrote {build(options.source, options.folder)}")
