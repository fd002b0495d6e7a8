"""The commands `coco`, `split` and `shards`."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg, CliToggleFlag

from deformdetr._files import check_folder, check_writable, write_text
from deformdetr.cli._options import OUTPUT, UserPath
from deformdetr.data import (
    DataConfig,
    DecodeConfig,
    check,
    check_file,
    find_images,
    index_shards,
    read_voc,
    read_yolo,
    split_coco,
    write_documents,
    write_shards,
)
from deformdetr.engine import ProgressDisplay

_NAMES = ("train", "val")


class Coco(BaseModel):
    """Turn a dataset of YOLO or Pascal VOC into COCO files, one per split, and check them.

    Exports of Roboflow, CVAT, Label Studio and LabelImg are read. Images stay where they are.
    """

    source: CliPositionalArg[UserPath] = Field(description="Folder of the dataset.")
    output: UserPath = Field(validation_alias=OUTPUT, description="Folder to write train.json, val.json and so on to.")
    format: Literal["yolo", "voc"] | None = Field(
        default=None, description="Format of the dataset; by default voc if there are XML files, and else yolo."
    )
    first_pixel: Annotated[int, Field(ge=0, le=1)] | None = Field(
        default=None, description="Coordinate of the first pixel in XML files; by default it follows from them."
    )
    allow_outside: CliToggleFlag[bool] = Field(
        default=False, description="Read images outside SOURCE too, to which links in it lead."
    )
    force: CliToggleFlag[bool] = Field(default=False, description="Replace files that exist.")

    def execute(self) -> int:
        """Convert the dataset."""
        decode = DecodeConfig(allow_outside=self.allow_outside)
        check_folder(self.output)
        has_xml = any(file.suffix.lower() == ".xml" for file in find_images([self.source]).others)
        kind = self.format or ("voc" if has_xml else "yolo")
        dataset = (
            read_voc(self.source, first_pixel=self.first_pixel, decode=decode)
            if kind == "voc"
            else read_yolo(self.source, decode=decode)
        )
        files = write_documents(dataset, self.output, overwrite=self.force)
        for note in dataset.notes:
            print(note)
        if set(_NAMES) <= files.keys():
            config = DataConfig(
                train_images=self.source,
                train_annotations=files["train"],
                val_images=self.source,
                val_annotations=files["val"],
                decode=decode,
            )
            print(check(config))
            paths = ("train_images", "train_annotations", "val_images", "val_annotations")
            lines = [f"  {name}: {getattr(config, name)}" for name in paths]
            lines += ["  decode: { allow_outside: true }"] * self.allow_outside
            print("in a config:", "data:", *lines, sep="\n")
            return 0
        for file in files.values():
            print(check_file(self.source, file, decode=decode))
        print(f"next: deformdetr split {next(iter(files.values()))}")
        return 0


class Split(BaseModel):
    """Split a COCO annotation file into train.json and val.json, with about equal shares of each category.

    Equal arguments give equal files. Images stay where they are.
    """

    annotations: CliPositionalArg[UserPath] = Field(description="COCO annotation file.")
    output: UserPath | None = Field(
        default=None, validation_alias=OUTPUT, description="Folder to write to; by default that of the file."
    )
    val_share: float = Field(default=0.2, gt=0, lt=1, description="Share of the images for evaluation.")
    seed: int = Field(default=0, ge=0, description="Number that the choice depends on.")
    force: CliToggleFlag[bool] = Field(default=False, description="Replace files that exist.")

    def execute(self) -> int:
        """Split the file."""
        folder = self.annotations.parent if self.output is None else self.output
        files = {name: folder / f"{name}.json" for name in _NAMES}
        check_folder(folder)
        for file in files.values() if folder.exists() else ():
            check_writable(file, suffixes=(".json",), overwrite=self.force)
        parts = split_coco(self.annotations, val_share=self.val_share, seed=self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files.values(), parts, strict=True):
            write_text(file, json.dumps(part, ensure_ascii=False))
            print(f"{file}: {len(part['images']):,} images, {len(part['annotations']):,} annotations")
        return 0


class Shards(BaseModel):
    """Write a COCO dataset as shards, for `data.kind: shards`: tar files in webdataset's layout, with an index.

    Without --images and --annotations, write the index of the shards that are in the folder already.
    """

    output: UserPath = Field(validation_alias=OUTPUT, description="Folder of the shards, a new one with --images.")
    images: UserPath | None = Field(
        default=None, description="Folder that the file names of the images are relative to."
    )
    annotations: UserPath | None = Field(default=None, description="COCO annotation file of the images.")
    shard_mb: float = Field(default=256, gt=0, description="Megabytes after which the next shard begins.")

    def execute(self) -> int:
        """Write shards or their index."""
        if (self.images is None) != (self.annotations is None):
            raise ValueError("--images and --annotations belong together")
        with ProgressDisplay("shards", 1) as display:

            def progress(done: int, total: int) -> None:
                display.update(done, total=total)

            if self.images is not None and self.annotations is not None:
                size = max(1, round(1e6 * self.shard_mb))
                write_shards(self.images, self.annotations, self.output, shard_bytes=size, progress=progress)
            else:
                index_shards(self.output, progress=progress)
        print(f"{self.output}: {len(list(self.output.glob('*.tar'))):,} shards and their index")
        print(f"in a config:\ndata:\n  kind: shards\n  train: {self.output}  # or its address; and val likewise")
        return 0
