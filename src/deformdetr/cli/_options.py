"""Options that several commands have."""

from pydantic import AliasChoices

RUN = (
    "Run directory, one of its checkpoints, or a folder of save_pretrained: a path, a URL, or user/name on the Hugging "
    "Face Hub."
)
# Names of the option for the place to write to.
OUTPUT = AliasChoices("output", "out")
