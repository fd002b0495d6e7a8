"""Measure speed and memory, compare two runs, and write what the pages say of them.

`python -m benchmarks run` measures, `compare` compares two files of results, `plot` draws charts and writes tables.
"""

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import convergence, pages
from benchmarks.cases import KINDS, Device, select, tasks
from benchmarks.documents import all_parts
from benchmarks.pages import RESULTS
from benchmarks.pictures import IMAGES, chart, draw_times
from benchmarks.providers import PROVIDERS
from benchmarks.results import compare, load, load_all, wrong_rows_of_ours
from benchmarks.runner import Settings, run_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status: 1 if ours failed, disagreed or got slower."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(given)
    if options.command == "run":
        return _run(parser, options, f"python -m benchmarks {shlex.join(given)}")
    if options.command == "compare":
        return _compare(parser, options)
    for results in (results for kind in KINDS for results in load_all(RESULTS, kind)):
        if name := chart(results):
            draw_times(results, IMAGES / name)
    convergence.draw(convergence.CHART)
    pages.write(all_parts())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, and write benchmarks/results/KIND_DEVICE.json")
    add = run.add_argument
    add("--kind", choices=KINDS, action="append", help="only these kinds; repeatable")
    add("--only", metavar="PATTERN", action="append", help="only cases with this in KIND/NAME; * and ? work")
    add("--provider", metavar="PATTERN", action="append", help="only these, and the baseline of each kind")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if available, else cpu")
    add("--threads", type=int, help="of PyTorch on the CPU; all cores by default")
    add("--rounds", type=int, default=20, help="turns of every contender (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="time limit of a contender in a task (default: %(default)s)")
    add("--seed", type=int, help="of all inputs; a fresh one by default, stored with the results")
    add("--quick", action="store_true", help="tiny shapes, to see that it works; stored only with --out")
    add("--out", type=Path, help="directory for the results (default: benchmarks/results)")
    add("--keep", action="store_true", help="keep the results of other cases in the files")
    add("--commit", help="of the code, where there is no git to ask")
    add("--list", action="store_true", help="list cases and the operator's providers, and measure nothing")

    comparison = commands.add_parser("compare", help="print what changed; exit status 1 if ours got slower")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    comparison.add_argument("--tolerance", type=float, default=0.1, help="fraction (default: %(default)s)")
    commands.add_parser("plot", help="draw all charts into docs/images and write all tables of docs and README")
    return parser


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace, command: str) -> int:
    device: Device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    for name in ("rounds", "threads", "seconds"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    cases = select(options.kind or KINDS, options.only or [])
    if options.list:
        print(*cases, f"\nproviders of the operator: {', '.join(PROVIDERS)}", sep="\n")
        return 0
    chosen = tasks([case.quick() for case in cases] if options.quick else cases, device)
    if not chosen:
        parser.error(f"no case that is measured on {device} has such a name; see --list")
    if options.threads:
        torch.set_num_threads(options.threads)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    settings = Settings(device, options.rounds, options.seconds, seed, options.provider or ())
    folder = options.out or (None if options.quick else RESULTS)
    rows = run_tasks(chosen, settings, command, folder, keep=options.keep, commit=options.commit)
    wrong = wrong_rows_of_ours(rows)
    for each in wrong:
        print(each, file=sys.stderr)
    return int(bool(wrong))


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        before, after = load(options.before), load(options.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if before.kind != after.kind:
        parser.error(f"{options.before} holds results of the {before.kind}, {options.after} of the {after.kind}")
    changes = compare(before, after, tolerance=options.tolerance)
    print(*(f"{verdict:>10}  {text}" for verdict, text in changes), sep="\n")
    worse = sum(verdict.isupper() for verdict, _ in changes)
    print(f"\n{worse} of our rows got slower by more than {options.tolerance:.0%}, or are gone")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
