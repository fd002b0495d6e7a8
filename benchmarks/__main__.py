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
from benchmarks.compare import compare, describe, regressions
from benchmarks.display import Display
from benchmarks.documents import IMAGES, write_pages
from benchmarks.pages import RESULTS
from benchmarks.plots import write_charts
from benchmarks.problems.operator_providers import PROVIDERS
from benchmarks.results import Results, Row, Run, describe_environment, file_name, load, load_all, save, today
from benchmarks.runner import Settings, run_task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status: 1 if ours went wrong or got slower."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(given)
    if options.command == "run":
        return _run(parser, options, f"python -m benchmarks {shlex.join(given)}")
    if options.command == "compare":
        return _compare(parser, options)
    return _plot()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, and write benchmarks/results/KIND_DEVICE.json")
    run.add_argument("--kind", choices=KINDS, action="append", help="only these kinds; repeat it for several")
    run.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="only cases with this in KIND/NAME; * and ? work"
    )
    run.add_argument(
        "--provider", metavar="PATTERN", action="append", default=[], help="only these, and the baseline of each kind"
    )
    run.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one, else cpu")
    run.add_argument("--threads", type=int, help="of PyTorch on the CPU; all cores by default")
    run.add_argument("--rounds", type=int, default=20, help="turns of every contender (default: %(default)s)")
    run.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="after so long a slow one takes no more turns (default: %(default)s)",
    )
    run.add_argument("--seed", type=int, help="of all inputs; a fresh one by default, stored with the results")
    run.add_argument("--cold", action="store_true", help="overwrite the GPU's caches before every call")
    run.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works; stored only with --out")
    run.add_argument("--out", type=Path, help="directory for the results (default: benchmarks/results)")
    run.add_argument("--keep", action="store_true", help="keep what the files have of other cases")
    run.add_argument("--commit", help="of the code, where there is no git to ask")
    run.add_argument("--list", action="store_true", help="list cases and providers, and measure nothing")

    comparison = commands.add_parser("compare", help="print what changed; exit status 1 if ours got slower")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    comparison.add_argument("--tolerance", type=float, default=0.1, help="fraction (default: %(default)s)")
    comparison.add_argument(
        "--by",
        choices=("speedup", "time"),
        default="speedup",
        help="speedup: relative to each run's baseline, whatever else the machine was doing (default); time: as it is",
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
    cases = select(options.kind or KINDS, options.only)
    if not cases:
        parser.error(
            f"no case of {', '.join(options.kind or KINDS)} has {' or '.join(options.only)} in its name; see --list"
        )
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
    measured = _measure(chosen, settings, command, options)
    wrong = [row for rows in measured.values() for row in rows if row.is_ours and _went_wrong(row)]
    for row in wrong:
        print(f"{row.provider} {row.status} in {row.kind}/{row.case} {row.direction}: {row.reason}", file=sys.stderr)
    return 1 if wrong else 0


def _measure(
    chosen: Sequence[Task], settings: Settings, command: str, options: argparse.Namespace
) -> dict[Kind, list[Row]]:
    """Run the tasks, and store after each of them what is there, in a file per kind."""
    environment = describe_environment(settings.device, options.commit)
    directory = options.out or (None if options.quick else RESULTS)
    paths = {task.case.kind: directory / file_name(task.case.kind, environment) for task in chosen if directory}
    before = {kind: load(path) for kind, path in paths.items() if options.keep and path.exists()}
    rows: dict[Kind, list[Row]] = {task.case.kind: [] for task in chosen}
    with Display(chosen) as display:
        for index, task in enumerate(chosen):
            kind = task.case.kind
            display.start(task)
            rows[kind] += run_task(task, settings, display.report)
            display.finish(task, [row for row in rows[kind] if row.key[:3] == task.key])
            run = Run(
                environment=environment,
                command=command,
                date=today(),
                seed=settings.seed,
                cold=settings.cold,
                complete=all(later.case.kind != kind for later in chosen[index + 1 :]),
            )
            if kind in paths:
                earlier = before.get(kind, Results(kind=kind, runs=[], rows=[]))
                save(earlier.followed_by(run, rows[kind]), paths[kind])
    for path in paths.values():
        print(f"wrote {path}")
    return rows


def _went_wrong(row: Row) -> bool:
    return row.status in ("failed", "disagrees")


def _list(cases: Sequence[Case]) -> None:
    for case in cases:
        on_devices = [
            f"{device} ({', '.join(case.cpu_dtypes if device == 'cpu' else case.cuda_dtypes)})"
            for device in case.devices
        ]
        print(f"{case.kind}/{case.name}: {', '.join(case.directions)} on {' and '.join(on_devices)}")
    print(f"\nproviders of the operator: {', '.join(provider.name for provider in PROVIDERS)}")
    print("providers of models: ours, hugging_face; of the matcher and the criterion: ours, plain")


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        before, after = load(options.before), load(options.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if before.kind != after.kind:
        parser.error(f"{options.before} holds results of the {before.kind}, {options.after} of the {after.kind}")
    changes = compare(before, after, tolerance=options.tolerance, by=options.by)
    for change in changes:
        print(describe(change))
    worse = regressions(changes)
    print(f"\n{len(worse)} of our rows got slower by more than {options.tolerance:.0%}, or are gone")
    return 1 if worse else 0


def _plot() -> int:
    for kind in KINDS:
        for results in load_all(RESULTS, kind):
            for path in write_charts(results, IMAGES):
                print(f"wrote {path}")
    complaints = write_pages()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
