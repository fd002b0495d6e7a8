"""Check public implementations of multi-scale deformable attention, and write what was found into the documentation.

`python -m tools.conformance NAME...` checks the named implementations, or all, each in a process of its own. It needs
the packages named below and, for those without one, clones of their repositories in the folder of `--sources`. Results
go into `benchmarks/results/conformance.json` and from there into `docs/conformance.md`; without any, `--write` renews
the page alone. Triton's kernels run on the CPU, in Triton's interpreter: in float32 without the cases in
`NOT_INTERPRETED`, and in float16 by those in `INTERPRETED_IN_HALF`.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks import pages
from benchmarks.environment import ROOT, today
from benchmarks.pages import DOCS, Parts, markdown

from deformdetr.testing import CASES, Row, check_ms_deform_attn, tolerance

STORED = "conformance.json"
PAGE = DOCS / "conformance.md"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What rounding decides; the others take minutes more for the same code. The interpreter keeps bfloat16 as integers and
# adds those.
INTERPRETED_IN_HALF = (
    "pyramids", "hot_pixel", "long_sums", "large_values", "precise_locations", "half_precision_locations",
    "mixed_dtypes", "autocast",
)  # fmt: skip
# 65,537 images take hours, programs run one after the other and so in a fixed order, and compilers see the interpreter
# in place of a kernel.
NOT_INTERPRETED = ("huge_batch", "determinism", "compiled", "exported")
SEED = 20261128
# From the best to the worst.
_MARKS = {"inapplicable": "", "passed": "✓", "refused": "–", "failed": "✗"}
_NOT_RUN = "·"
_FORKED = multiprocessing.get_context("fork")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Implementation:
    """How to get a function, and how to call it.

    Attributes:
        load: Function that returns it, given the folder of the clones.
        packages: Packages whose releases say which one it is.
        clone: Folder of its repository among the clones, if it is not on the package index.
        convention: Names of its parameters in order, if its own do not tell what they get.
        is_interpreted: Whether it is Triton's, and runs in the interpreter.
        takes_one_dtype: Whether value and locations must have one dtype.
        left_out: Cases that would take minutes.
        how: What is called and what is replaced, for the page.
    """

    load: Callable[[Path], Function]
    packages: tuple[str, ...]
    clone: str = ""
    convention: tuple[str, ...] | None = None
    is_interpreted: bool = False
    takes_one_dtype: bool = False
    left_out: tuple[str, ...] = ()
    how: str = ""

    def cases(self, dtype: torch.dtype) -> list[str]:
        """Return the names of the cases that it is checked by in a dtype."""
        if self.is_interpreted and dtype != torch.float32:
            return list(INTERPRETED_IN_HALF) if dtype == torch.float16 else []
        left_out = {*self.left_out, *(NOT_INTERPRETED if self.is_interpreted else ())}
        return [case for case in CASES if case not in left_out]


def _from(module: str, path: str) -> Callable[[Path], Function]:
    """Return a function that imports a module and returns what has a name in it."""

    def load(_: Path) -> Function:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        return found

    return load


def _load_without_numba(_: Path) -> Function:
    from deformdetr.kernels import _numba, ms_deform_attn

    mock.patch.object(_numba, "is_usable", return_value=False).start()
    return ms_deform_attn


def _load_reference(_: Path) -> Function:
    import functools

    from deformdetr.kernels import ms_deform_attn

    return functools.partial(ms_deform_attn, backend="reference")


def _load_transformers(_: Path) -> Function:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    return MultiScaleDeformableAttention()


class _Anything(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> None:
        return None


def _load_mmcv(_: Path) -> Function:
    # `mmcv.ops` looks for functions of the compiled extension, of which none is called here.
    sys.modules["mmcv._ext"] = _Anything("mmcv._ext")
    return importlib.import_module("mmcv.ops.multi_scale_deform_attn").multi_scale_deformable_attn_pytorch


def _load_detrex(sources: Path) -> Function:
    # The file alone, because the package needs detectron2.
    path = sources / "detrex" / "detrex" / "layers" / "multi_scale_deform_attn.py"
    spec = importlib.util.spec_from_file_location("multi_scale_deform_attn", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["detrex"] = mock.MagicMock()
    spec.loader.exec_module(module)
    return module.multi_scale_deformable_attn_pytorch


def _load_deformops_triton(_: Path) -> Function:
    # Neither devices nor compilers are there for the interpreter.
    mock.patch("torch.cuda.device", contextlib.nullcontext).start()
    mock.patch("torch.library.wrap_triton", lambda kernel: kernel).start()
    return importlib.import_module("deformops.backends.triton.msda_query_tiled_fp32acc").forward


def _keep_one_launch(kernel: Any) -> None:
    """Launch a kernel by the first of its configs: the interpreter cannot time them, and they differ in speed alone."""
    kernel.configs = kernel.configs[:1]


def _load_rziga(sources: Path) -> Function:
    sys.path.insert(0, str(sources / "rziga-msda-triton" / "src"))
    mock.patch("importlib.metadata.version", return_value="0").start()
    frontend, kernels = (importlib.import_module(f"msda_triton.{name}") for name in ("frontend", "kernels"))
    for direction in ("fwd", "bwd"):
        _keep_one_launch(getattr(kernels, f"triton_multi_scale_deformable_attention_{direction}_kernel"))
    apply = frontend._TritonMultiscaleDeformableAttentionFunction.apply

    def attend(value: Any, spatial_shapes: Any, sampling_locations: Any, attention_weights: Any) -> Any:
        return apply(value, spatial_shapes, sampling_locations, attention_weights, "zeros", False).flatten(2)

    return attend


def _load_roulbac(sources: Path) -> Function:
    sys.path.insert(0, str(sources / "roulbac-msda-triton" / "src"))
    ops, kernels = (importlib.import_module(f"msda_triton.{name}") for name in ("ops", "kernels"))
    _keep_one_launch(kernels._msda_forward_kernel)

    def attend(
        value: Any, spatial_shapes: Any, level_start_index: Any, sampling_locations: Any, attention_weights: Any
    ) -> Any:
        if not value.dtype == sampling_locations.dtype == attention_weights.dtype:
            raise ValueError("value/sampling_locations/attention_weights dtypes must match")
        if not sampling_locations.shape[0] or not sampling_locations.shape[1]:
            return value.new_zeros(*sampling_locations.shape[:2], value.shape[2] * value.shape[3])
        tensors = [each.contiguous() for each in (value, sampling_locations, attention_weights)]
        return ops._MSDAFunction.apply(tensors[0], spatial_shapes, level_start_index, *tensors[1:], False)

    return attend


IMPLEMENTATIONS: dict[str, Implementation] = {
    "deformdetr": Implementation(_from("deformdetr.kernels", "ms_deform_attn"), ("deformdetr", "numba")),
    "deformdetr without Numba": Implementation(_load_without_numba, ("deformdetr",), left_out=("huge_batch",)),
    "deformdetr reference": Implementation(_load_reference, ("deformdetr",)),
    "deformdetr Triton": Implementation(
        _from("deformdetr.kernels", "ms_deform_attn"), ("deformdetr", "triton"), is_interpreted=True
    ),
    "transformers": Implementation(_load_transformers, ("transformers",), takes_one_dtype=True),
    "mmcv PyTorch": Implementation(
        _load_mmcv, ("mmcv-lite",), takes_one_dtype=True, how="`multi_scale_deformable_attn_pytorch`"
    ),
    "detrex PyTorch": Implementation(
        _load_detrex, (), "detrex", takes_one_dtype=True, how="`multi_scale_deformable_attn_pytorch`"
    ),
    "torch-ms-deform-attn": Implementation(
        _from("torch_ms_deform_attn", "ms_deform_attn"), ("torch-ms-deform-attn",), takes_one_dtype=True
    ),
    "deformops eager": Implementation(
        _from("deformops.registry", "msda"), ("deformops",), takes_one_dtype=True, how="`msda` on a CPU"
    ),
    "deformops Triton": Implementation(
        _load_deformops_triton,
        ("deformops", "triton"),
        is_interpreted=True,
        takes_one_dtype=True,
        how="`forward` of `msda_query_tiled_fp32acc`",
    ),
    "rziga/msda-triton": Implementation(
        _load_rziga,
        ("triton",),
        "rziga-msda-triton",
        is_interpreted=True,
        takes_one_dtype=True,
        how="the autograd function, with zero padding and without aligned corners",
    ),
    "roulbac/msda-triton": Implementation(
        _load_roulbac,
        ("triton",),
        "roulbac-msda-triton",
        is_interpreted=True,
        takes_one_dtype=True,
        how="the autograd function after the checks of its public function, except that for CUDA",
    ),
}


def check(name: str, sources: Path) -> dict[str, Any]:
    """Check one implementation in this process, and return the entry to store."""
    given = IMPLEMENTATIONS[name]
    function = given.load(sources)
    pairs = [(case, dtype) for dtype in DTYPES for case in given.cases(dtype)]
    rows = [row for case, dtype in pairs for row in _check_apart(given, function, case, dtype)]
    return {
        "versions": _versions(given, sources),
        "command": _command(name, given),
        "date": today(),
        "results": _results(rows),
        "reasons": _reasons(rows),
    }


def _check_apart(given: Implementation, function: Function, case: str, dtype: torch.dtype) -> list[Row]:
    """Check one case in a process forked from this one, because an invalid access to memory ends it."""
    receiver, sender = _FORKED.Pipe(duplex=False)

    def run() -> None:
        report = check_ms_deform_attn(
            function,
            dtypes=[dtype],
            cases=[case],
            convention=given.convention,
            locations_dtype=dtype if given.takes_one_dtype else None,
            seed=SEED,
        )
        sender.send(list(report.rows))

    process = _FORKED.Process(target=run)
    process.start()
    sender.close()
    try:
        rows: list[Row] = receiver.recv()
    except EOFError:
        rows = []
    process.join()
    print(f"{case} in {dtype}: {', '.join(row.status for row in rows) or process.exitcode}", file=sys.stderr)
    if rows:
        return rows
    if process.exitcode is None or process.exitcode >= 0:
        raise RuntimeError(f"{case} in {dtype} ended with {process.exitcode}")
    reason = f"it ended the process by {signal.Signals(-process.exitcode).name}"
    return [Row(case, str(dtype).removeprefix("torch."), "output", "failed", None, tolerance(dtype), reason)]


def _command(name: str, given: Implementation) -> str:
    where = "--sources CLONES " if given.clone else ""
    return f"python -m tools.conformance {where}{json.dumps(name) if ' ' in name else name}"


def _versions(given: Implementation, sources: Path) -> dict[str, str]:
    versions = {"python": sys.version.partition(" ")[0], "torch": torch.__version__.partition("+")[0]}
    versions |= {package: importlib.metadata.version(package) for package in given.packages if package != "deformdetr"}
    if "deformdetr" in given.packages:
        versions["deformdetr"] = _commit(ROOT)
    if given.clone:
        versions["commit"] = _commit(sources / given.clone)
    return versions


def _commit(folder: Path) -> str:
    """Return the commit of a clone, or what a file of this name says in a copy without history."""
    if (folder / "COMMIT").exists():
        return (folder / "COMMIT").read_text(encoding="utf-8").strip()[:7]
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _results(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return the worst status of every case and dtype."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        statuses = found.setdefault(row.case, {})
        statuses[row.dtype] = max(statuses.get(row.dtype, row.status), row.status, key=list(_MARKS).index)
    return found


def _reasons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what was wrong or refused in every case, of the first dtype and direction in which it was."""
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.status not in ("failed", "refused"):
            continue
        entry = reasons.setdefault(
            (row.case, row.status), {"case": row.case, "status": row.status, "reason": row.reason, "where": []}
        )
        entry["where"].append(f"{row.dtype} {row.direction}")
    return list(reasons.values())


def parts() -> Parts:
    """Return the generated part of the page."""
    stored = pages.read(STORED)
    return {(PAGE, ""): "\n\n".join([_table(stored), *(_section(name, stored[name]) for name in stored)])}


def _table(stored: dict[str, Any]) -> str:
    def cell(entry: dict[str, Any], case: str) -> str:
        if "results" not in entry or case not in entry["results"]:
            return ""
        statuses = entry["results"][case]
        marks = "".join(_MARKS[statuses[name]] if name in statuses else _NOT_RUN for name in names)
        return marks if marks.strip(_NOT_RUN) else ""

    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    rows = [[f"`{case}`", *(cell(entry, case) for entry in stored.values())] for case in CASES]
    return markdown(["case", *stored], rows)


def _section(name: str, entry: dict[str, Any]) -> str:
    """Return where results come from, and what was not as it should be."""
    versions = ", ".join(f"{package} {number}" for package, number in entry["versions"].items())
    how = IMPLEMENTATIONS[name].how
    lines = [
        f"### {name}",
        f"{how[:1].upper()}{how[1:]}. " * bool(how) + f"{versions}; {entry['date']}: `{entry['command']}`.",
    ]
    lines += ["\n".join(f"- `{each['case']}` {each['status']}: {_quote(each)}" for each in entry["reasons"])]
    return "\n\n".join(filter(None, lines))


def _quote(entry: dict[str, Any]) -> str:
    where = entry["where"]
    dtypes = list(dict.fromkeys(place.partition(" ")[0] for place in where))
    directions = list(dict.fromkeys(place.partition(" ")[2] for place in where))
    reason = entry["reason"].replace("|", "\\|").replace("<", "&lt;")
    return f"{reason}; {', '.join(directions)} in {', '.join(dtypes)}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Among: {', '.join(IMPLEMENTATIONS)}.")
    parser.add_argument("--sources", type=Path, default=Path(), help="Folder of the clones.")
    parser.add_argument("--write", action="store_true", help="Write the page from what is stored, and check nothing.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := sorted({*given.names} - {*IMPLEMENTATIONS}):
        parser.error(f"there is no implementation {', '.join(unknown)}")
    if given.here:
        print(json.dumps(check(given.names[0], given.sources)))
        return
    for name in [] if given.write else given.names or IMPLEMENTATIONS:
        _store(name, _check_elsewhere(name, given.sources))
    pages.write(parts())


def _check_elsewhere(name: str, sources: Path) -> dict[str, Any]:
    """Check an implementation in a new process, because modules of the same name exclude each other."""
    interpret = {"TRITON_INTERPRET": "1"} if IMPLEMENTATIONS[name].is_interpreted else {}
    command = [sys.executable, "-m", "tools.conformance", "--here", "--sources", str(sources), name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | interpret, cwd=ROOT)
    entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {len(entry['reasons'])} cases with wrong results or refusals")
    return entry


def _store(name: str, entry: dict[str, Any]) -> None:
    path = pages.RESULTS / STORED
    stored = pages.read(STORED) if path.exists() else {}
    stored[name] = entry
    pages.store(STORED, {known: stored[known] for known in IMPLEMENTATIONS if known in stored})


if __name__ == "__main__":
    main()
