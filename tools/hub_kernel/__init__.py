"""The operator as a folder that the package `kernels` of Hugging Face loads, where this library is not installed.

`build` writes one folder per backend. Each holds the modules of `deformdetr` that the operator needs, with relative
imports, and `metadata.json`. `entry.py` and `layers.py` become the folder's interface, and `annotations.py` takes the
place of jaxtyping.
"""

import ast
import base64
import hashlib
import json
import shutil
from pathlib import Path

from benchmarks.environment import ROOT

NAME = "ms-deform-attn"
BACKENDS = ("cpu", "cuda", "rocm")
# The first release that reads all of `metadata.json`.
OLDEST_KERNELS = "0.17.0"

_OWN = {"__init__.py": "entry.py", "layers.py": "layers.py", "_annotations.py": "annotations.py"}
# Packages whose modules lie at the top of the folder.
_FLATTENED = ("deformdetr.kernels", "deformdetr", "tools.hub_kernel")


def build(out: Path, *, version: int = 0) -> list[Path]:
    """Write `out/build/torch-BACKEND` for every backend, in place of older ones, and return these folders."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "LICENSE", out)
    sources = collect_sources()
    # Operators of several versions must not meet under one name.
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:8]
    return [_write(out / "build" / f"torch-{backend}", sources, backend, digest, version) for backend in BACKENDS]


def _write(folder: Path, sources: dict[str, str], backend: str, digest: str, version: int) -> Path:
    identifier = f"_{NAME.replace('-', '_')}_{backend}_{digest}"
    files = {place: text.replace('"deformdetr::', f'"{identifier}::') for place, text in sources.items()}
    metadata = {
        "name": NAME,
        "id": identifier,
        "version": version,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "kernels-minver": OLDEST_KERNELS,
        "digest": {"algorithm": "sha256", "files": {place: _digest(text) for place, text in sorted(files.items())}},
    }
    files["metadata.json"] = json.dumps(metadata, indent=2) + "\n"
    shutil.rmtree(folder, ignore_errors=True)
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def collect_sources() -> dict[str, str]:
    """Return the texts of a folder by their places in it: its interface, and all that this imports.

    Raises:
        ValueError: If two modules would have the same place.
    """
    texts: dict[str, str] = {}
    origins: dict[str, Path] = {}
    left = [(place, Path(__file__).parent / name) for place, name in _OWN.items()]
    while left:
        place, path = left.pop()
        if origins.setdefault(place, path) != path:
            raise ValueError(f"{path} and {origins[place]} would both be {place}")
        if place in texts:
            continue
        text = path.read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        texts[place] = _rewrite(text, imports, depth=place.count("/"))
        left += [(_place(module), _file(module)) for node in imports for module in _needed(node)]
        if path.name == "__init__.py":
            folder = place.rpartition("/")[0]
            texts |= {f"{folder}/{data.name}": data.read_text(encoding="utf-8") for data in path.parent.glob("*.json")}
    return texts


def _needed(node: ast.ImportFrom) -> list[str]:
    """Return the modules of `deformdetr` that an import loads."""
    if node.module is None or node.module.split(".")[0] != "deformdetr":
        return []
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if _file(name).exists() else node.module for name in names]


def _file(module: str) -> Path:
    path = ROOT / "src" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _place(module: str) -> str:
    """Return the path of a module's text in the folder."""
    suffix = "/__init__.py" if _file(module).name == "__init__.py" else ".py"
    return _relative(module).replace(".", "/") + suffix


def _relative(module: str) -> str:
    """Return the name of a module below the top of the folder, or nothing for the top itself."""
    for package in _FLATTENED:
        if module == package or module.startswith(f"{package}."):
            return module[len(package) + 1 :]
    return "_annotations" if module == "jaxtyping" else module


def _rewrite(text: str, imports: list[ast.ImportFrom], *, depth: int) -> str:
    lines = text.splitlines(keepends=True)
    for node in imports:
        name = node.module or ""
        if _relative(name) != name:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {name} ", f"from {'.' * (depth + 1)}{_relative(name)} ", 1)
    return "".join(lines)
