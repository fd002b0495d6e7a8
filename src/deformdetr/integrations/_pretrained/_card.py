"""Model cards: the page of a model on the Hugging Face Hub."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.integrations._pretrained._settings import InferenceSettings

_USE = """\
## Use

```python
import deformdetr

detector = deformdetr.load("user/name")  # this repository, or its folder
result = detector("photo.jpg", threshold=0.5)
```

Or the parts, to train or to change them:

```python
from deformdetr.integrations.hub import from_pretrained, pretrained_config, pretrained_settings

source = "user/name"  # this repository, or its folder
model = from_pretrained(source)
postprocess = pretrained_config(source).build_postprocess()
settings = pretrained_settings(source)  # names of classes, and the preparation of images
```
"""


# A setting of the evaluation that its metrics come with.
_LIMIT = "max_detections"


def model_card(
    config: DeformableDETRConfig | DETRConfig,
    settings: InferenceSettings,
    *,
    metrics: Mapping[str, Any],
    license_id: str | None,
) -> str:
    """Return a card with labels, preparation of images, metrics and license, as far as they are known.

    Args:
        config: Config of the model.
        settings: Names of classes, and the preparation of images.
        metrics: Numbers by name, which may be nested. Other values are left out.
        license_id: Identifier of the license for the Hub, such as `apache-2.0`.

    Raises:
        ValueError: If the identifier is not one.
    """
    name = "Deformable DETR" if isinstance(config, DeformableDETRConfig) else "DETR"
    title = f"# {name} of {config.num_classes} classes\n"
    parts = [title, _USE, _preparation(settings), *_metrics(metrics), *_labels(settings)]
    return _metadata(config, license_id) + "\n" + "\n".join(parts)


def _metadata(config: DeformableDETRConfig | DETRConfig, license_id: str | None) -> str:
    if license_id is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", license_id):
        raise ValueError(f"license_id must be an identifier such as apache-2.0, got {license_id!r}")
    task = "image-segmentation" if config.masks else "object-detection"
    licenses = [f"license: {license_id}"] * (license_id is not None)
    lines = ["library_name: deformdetr", f"pipeline_tag: {task}", *licenses, "tags:", f"- {config.kind}"]
    return "\n".join(["---", *lines, "---", ""])


def _preparation(settings: InferenceSettings) -> str:
    size = "are not resized"
    if settings.short_side is not None:
        limit = "" if settings.max_size is None else f", or less to keep the longer side within {settings.max_size}"
        size = f"are resized to a shorter side of {settings.short_side} pixels{limit}"
    turned = "are turned upright by their EXIF orientation"
    if settings.orientation == "stored":
        turned = "are used as stored, whatever their EXIF orientation"
    bits = "" if settings.gray_bits is None else f" Of 16-bit grayscale, {settings.gray_bits} bits are used."
    return (
        "## Images\n\n"
        f"Images {size}, and normalized by the mean {_numbers(settings.image_mean)} and the standard deviation "
        f"{_numbers(settings.image_std)} of red, green and blue on a scale of 0 to 1. "
        f"Photographs {turned}.{bits}\n"
    )


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    found = dict(_leaves(metrics))
    limit = found.pop(_LIMIT, None)
    rows = [f"| {_plain(name)} | {value:.4g} |\n" for name, value in found.items()]
    if rows:
        counted = "" if limit is None else f"AP counts at most {limit:g} detections per image and class.\n\n"
        yield f"## Metrics\n\n{counted}| metric | value |\n| --- | ---: |\n" + "".join(rows)


def _leaves(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", value


def _labels(settings: InferenceSettings) -> Iterator[str]:
    if settings.label_map is not None:
        pairs = zip(settings.label_map.category_ids, settings.label_map.names, strict=True)
        rows = [f"| {label} | {number} | {_plain(name)} |\n" for label, (number, name) in enumerate(pairs)]
        yield "## Labels\n\n| label | category id | name |\n| ---: | ---: | --- |\n" + "".join(rows)


def _plain(text: str) -> str:
    """Return text as a cell of a table in Markdown, where none of its characters has a meaning."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
