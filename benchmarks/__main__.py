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

from benchmarks.cases import KINDS, Case, Device, Kind, Task, select, tasks
from benchmarks.compare import compare, regressions
from benchmarks.documents import IMAGES, parts
from benchmarks.pages import RESULTS, digits, write_parts
from benchmarks.pictures import write_charts
from benchmarks.problems.operator_providers import PROVIDERS
from benchmarks.results import Results, Row, Run, describe_environment, file_name, load, load_all, save, today
from benchmarks.runner import Settings, run_task


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
        for path in write_charts(results, IMAGES):
            print(f"wrote {path}")
    write_parts(parts())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, and write benchmarks/results/KIND_DEVICE.json")
    add = run.add_argument
    add("--kind", choices=KINDS, action="append", help="only these kinds; repeatable")
    add(
        "--only", metavar="PATTERN", action="append", default=[], help="only cases with this in KIND/NAME; * and ? work"
    )
    add("--provider", metavar="PATTERN", action="append", default=[], help="only these, and the baseline of each kind")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if available, else cpu")
    add("--threads", type=int, help="of PyTorch on the CPU; all cores by default")
    add("--rounds", type=int, default=20, help="turns of every contender (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="time limit of a contender in a task (default: %(default)s)")
    add("--seed", type=int, help="of all inputs; a fresh one by default, stored with the results")
    add("--cold", action="store_true", help="overwrite the GPU's caches before every call")
    add("--quick", action="store_true", help="tiny shapes, to see that it works; stored only with --out")
    add("--out", type=Path, help="directory for the results (default: benchmarks/results)")
    add("--keep", action="store_true", help="keep the results of other cases in the files")
    add("--commit", help="of the code, where there is no git to ask")
    add("--list", action="store_true", help="list cases and providers, and measure nothing")

    comparison = commands.add_parser("compare", help="print what changed; exit status 1 if ours got slower")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    comparison.add_argument("--tolerance", type=float, default=0.1, help="fraction (default: %(default)s)")
    comparison.add_argument(
        "--by",
        choices=("speedup", "time"),
        default="speedup",
        help="speedup: relative to each run's baseline, however busy the machine (default); time: absolute",
    )
    commands.add_parser("plot", help="draw charts into docs/images and write the tables of docs and README")
    return parser


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace, command: str) -> int:
    device: Device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    for name in ("rounds", "threads", "seconds"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    kinds = options.kind or KINDS
    cases = select(kinds, options.only)
    if not cases:
        parser.error(f"no case of {', '.join(kinds)} has {' or '.join(options.only)} in its name; see --list")
    if options.list:
        _list(cases)
        return 0
    chosen = list(tasks([case.quick() for case in cases] if options.quick else cases, device))
    if not chosen:
        parser.error(f"{', '.join(case.name for case in cases)} is not measured on {device}; see --list")
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(
        device=device,
        rounds=options.rounds,
        seconds=options.seconds,
        seed=random.SystemRandom().randrange(2**31) if options.seed is None else options.seed,
        cold=options.cold,
        providers=options.provider,
    )
    rows = _measure(chosen, settings, command, options)
    wrong = [row for row in rows if row.is_ours and row.status in ("failed", "disagrees")]
    for row in wrong:
        print(f"{row.provider} {row.status} in {row.kind}/{row.case} {row.direction}: {row.reason}", file=sys.stderr)
    return 1 if wrong else 0


def _measure(chosen: Sequence[Task], settings: Settings, command: str, options: argparse.Namespace) -> list[Row]:
    """Run the tasks, and after each one store what has been measured, in a file per kind."""
    environment = describe_environment(settings.device, options.commit)
    directory = options.out or (None if options.quick else RESULTS)
    paths = {task.case.kind: directory / file_name(task.case.kind, environment) for task in chosen if directory}
    before = {kind: load(path) for kind, path in paths.items() if options.keep and path.exists()}
    rows: dict[Kind, list[Row]] = {task.case.kind: [] for task in chosen}
    for index, task in enumerate(chosen):
        kind = task.case.kind
        print(f"{task} ({index + 1} of {len(chosen)})", flush=True)
        measured = run_task(task, settings)
        print(*map(_describe, measured), sep="\n", flush=True)
        rows[kind] += measured
        if kind in paths:
            run = Run(
                environment=environment,
                command=command,
                date=today(),
                seed=settings.seed,
                cold=settings.cold,
                complete=all(later.case.kind != kind for later in chosen[index + 1 :]),
            )
            earlier = before.get(kind, Results(kind=kind, runs=[], rows=[]))
            save(earlier.followed_by(run, rows[kind]), paths[kind])
    for path in paths.values():
        print(f"wrote {path}")
    return [row for each in rows.values() for row in each]


def _describe(row: Row) -> str:
    if row.time is None:
        return f"  {row.provider:<22} {row.status}: {row.reason}"
    times = [digits(each * 1e3) for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile)]
    factor = f", {row.speedup.median:.2f} times as fast" if row.speedup and row.provider != row.baseline else ""
    return f"  {row.provider:<22} {times[0]} ms ({times[1]} to {times[2]}){factor}"


def _list(cases: Sequence[Case]) -> None:
    for case in cases:
        devices = [f"{device} ({', '.join(getattr(case.dtypes, device))})" for device in case.devices]
        print(f"{case.kind}/{case.name}: {', '.join(case.directions)} on {' and '.join(devices)}")
    print(f"\nproviders of the operator: {', '.join(provider.name for provider in PROVIDERS)}")
    print("of its overhead: ours, ours_fused, ours_layer, grid_sample; of models: ours, hugging_face")
    print("of the matcher and the criterion: ours, plain")


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        before, after = load(options.before), load(options.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if before.kind != after.kind:
        parser.error(f"{options.before} holds results of the {before.kind}, {options.after} of the {after.kind}")
    changes = compare(before, after, tolerance=options.tolerance, by=options.by)
    print(*changes, sep="\n")
    worse = regressions(changes)
    print(f"\n{len(worse)} of our rows got slower by more than {options.tolerance:.0%}, or are gone")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
