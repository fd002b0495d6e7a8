"""Annotations with shapes, which are not checked here: `Float[Tensor, "batch 2"]` is `Tensor`."""

from typing import Any


class _Annotation:
    def __getitem__(self, item: tuple[Any, str]) -> Any:
        return item[0]


Bool = Float = Float32 = Int = Int32 = _Annotation()
