"""`python -m tools.hub_kernel OUT` writes the folder."""

import argparse
from pathlib import Path

from tools.hub_kernel import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.hub_kernel", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write `build/` into")
    parser.add_argument("--version", type=int, default=0, help="version of the kernel; 0 promises no compatibility")
    arguments = parser.parse_args()
    for folder in build(arguments.out, version=arguments.version):
        print(folder)


if __name__ == "__main__":
    main()
