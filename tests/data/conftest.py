import os
from pathlib import Path

import pytest

from deformdetr.data import DataConfig


@pytest.fixture
def bccd() -> DataConfig:
    """Return the config of the BCCD photographs of blood cells in the folder that the variable names."""
    if not (folder := os.environ.get("DEFORMDETR_BCCD")):
        pytest.skip("DEFORMDETR_BCCD does not name the folder of the BCCD dataset")
    return DataConfig(
        train_images=Path(folder, "images"),
        train_annotations=Path(folder, "train.json"),
        val_images=Path(folder, "images"),
        val_annotations=Path(folder, "val.json"),
    )
