"""Check public implementations of multi-scale deformable attention, and write what was found into the documentation.

`python -m tools.conformance NAME...` checks the named implementations, or all, each in a process of its own. It needs
the packages named below and, for those without one, clones of their repositories in the folder of `--sources`. Results
go into `benchmarks/results/conformance.json` and from there into `docs/conformance.md`; without any, `--write` renews
the page alone. Triton's kernels run in Triton's interpreter, which changes neither their masks nor their arithmetic.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
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

from deformdetr.testing import CASES, Report, check_ms_deform_attn

STORED = "conformance.json"
PAGE = DOCS / "conformance.md"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEED = 20261128
# From the best to the worst.
_MARKS = {"inapplicable": "", "passed": "✓", "refused": "–", "failed": "✗"}

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


def _load_rziga(sources: Path) -> Function:
    sys.path.insert(0, str(sources / "rziga-msda-triton" / "src"))
    mock.patch("importlib.metadata.version", return_value="0").start()
    frontend = importlib.import_module("msda_triton.frontend")
    apply = frontend._TritonMultiscaleDeformableAttentionFunction.apply

    def attend(value: Any, spatial_shapes: Any, sampling_locations: Any, attention_weights: Any) -> Any:
        return apply(value, spatial_shapes, sampling_locations, attention_weights, "zeros", False).flatten(2)

    return attend


def _load_roulbac(sources: Path) -> Function:
    sys.path.insert(0, str(sources / "roulbac-msda-triton" / "src"))
    ops, kernels = (importlib.import_module(f"msda_triton.{name}") for name in ("ops", "kernels"))
    # The interpreter cannot time the six launches, which differ in size alone.
    kernels._msda_forward_kernel.configs = kernels._msda_forward_kernel.configs[:1]

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
    left_out = {*given.left_out, *(["huge_batch"] if given.is_interpreted else [])}
    cases = [case for case in CASES if case not in left_out]
    reports = [
        check_ms_deform_attn(
            function,
            dtypes=[dtype],
            cases=cases,
            convention=given.convention,
            locations_dtype=dtype if given.takes_one_dtype else None,
            seed=SEED,
        )
        for dtype in DTYPES
    ]
    return {
        "versions": _versions(given, sources),
        "command": f"python -m tools.conformance {json.dumps(name) if ' ' in name else name}",
        "date": today(),
        "results": _results(reports),
        "reasons": _reasons(reports),
    }


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


def _results(reports: Sequence[Report]) -> dict[str, dict[str, str]]:
    """Return the worst status of every case and dtype."""
    found: dict[str, dict[str, str]] = {}
    for report in reports:
        for row in report.rows:
            statuses = found.setdefault(row.case, {})
            statuses[row.dtype] = max(statuses.get(row.dtype, row.status), row.status, key=list(_MARKS).index)
    return found


def _reasons(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return what was wrong or refused in every case, of the first dtype and direction in which it was."""
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        for row in report.failures:
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
        return "".join(_MARKS[status] for status in entry["results"][case].values())

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
