"""The command `summary`."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from deformdetr.config import PRESETS, preset
from deformdetr.engine import read_experiment, summarize


def _read_size(text: object) -> object:
    found = re.fullmatch(r"(\d+)\s*[x×,]\s*(\d+)", str(text))
    if found is None:
        raise ValueError("must be height x width in pixels, such as 800x1200")
    return f"{found[1]}x{found[2]}"


class Summary(BaseModel):
    """Print output shapes, parameters, multiply-adds and memory of the model that CONFIG describes.

    Nothing is computed and no weights are loaded.
    """

    config: CliPositionalArg[str] = Field(description="YAML or JSON file, or the name of a preset.")
    size: Annotated[str, BeforeValidator(_read_size)] = Field(
        default="800x1200", description="Height x width of the image, in pixels."
    )

    def execute(self) -> int:
        """Run the command."""
        model = preset(self.config) if self.config in PRESETS else read_experiment(Path(self.config)).model
        height, width = map(int, self.size.split("x"))
        if "num_classes" not in model.model_fields_set and self.config not in PRESETS:
            print(f"The dataset determines the number of classes; this summary is for {model.num_classes}.")
        print(summarize(model, (height, width)).table())
        return 0
