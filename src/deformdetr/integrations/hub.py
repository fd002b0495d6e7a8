"""Models in folders and on the Hugging Face Hub: a config, weights, settings of inference and a model card.

A folder holds `config.json`, which `deformdetr.config.load_config` reads too, `model.safetensors` in this library's
format, `inference.json` with the names of classes and the preparation of images, and `README.md`. Folders of
transformers' DETR and Deformable DETR are read too. Repositories on the Hub need the extra `hub`.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from deformdetr._files import (
    HubName,
    HubOptions,
    check_folder,
    fetch_file,
    is_url,
    parse_source,
    read_mapping,
    write_text,
)
from deformdetr.config import (
    DeformableDETRConfig,
    DETRConfig,
    ModelConfig,
    load_config,
    save_config,
    with_backbone_weights,
)
from deformdetr.integrations._checkpoints._convert import save_checkpoint
from deformdetr.integrations._checkpoints._load import load_checkpoint
from deformdetr.integrations._checkpoints._weights import find_weights
from deformdetr.integrations._pretrained._card import model_card
from deformdetr.integrations._pretrained._hugging_face import is_from_transformers, read_config, read_settings
from deformdetr.integrations._pretrained._settings import InferenceSettings
from deformdetr.models import DETR, DeformableDETR

__all__ = [
    "InferenceSettings",
    "from_pretrained",
    "is_pretrained",
    "is_repository_id",
    "pretrained_config",
    "pretrained_settings",
    "push_to_hub",
    "save_pretrained",
]

_CONFIG, _WEIGHTS, _SETTINGS, _CARD = "config.json", "model.safetensors", "inference.json", "README.md"
# Of transformers: the settings of its image processors, and the weights of older models.
_PREPROCESSOR, _OLD_WEIGHTS = "preprocessor_config.json", "pytorch_model.bin"


def save_pretrained(
    model: nn.Module,
    config: DeformableDETRConfig | DETRConfig,
    folder: str | Path,
    *,
    settings: InferenceSettings | None = None,
    metrics: Mapping[str, Any] | None = None,
    license_id: str | None = None,
) -> None:
    """Write a model, its config and its settings into a folder, which is created if needed.

    Existing files are replaced, except for the card, because it may have been written by hand.

    Args:
        model: The model that `config.build()` returned.
        config: Config of the model; the pretrained weights of its backbone are not written.
        folder: The folder.
        settings: Names of classes, and the preparation of images; None: the names are not known, and images are
            prepared as for the published models.
        metrics: Numbers by name for the card, such as the metrics of a checkpoint.
        license_id: Identifier of the license for the card, such as `apache-2.0`.

    Raises:
        ValueError: If the config does not describe this model, the settings have another number of classes, or the
            identifier is not one.
        OSError: If the folder is a file, or a file cannot be written.

    Examples:
        >>> from deformdetr.config import ConvBackboneConfig
        >>> config = DeformableDETRConfig(num_classes=3, d_model=32, d_ffn=64, backbone=ConvBackboneConfig())
        >>> with TemporaryDirectory() as folder:
        ...     save_pretrained(config.build(), config, folder)
        ...     model = from_pretrained(folder)
        >>> type(model).__name__
        'DeformableDETR'
    """
    folder = Path(folder)
    check_folder(folder)
    settings = settings or InferenceSettings()
    _check_described(model, config, settings)
    card = model_card(config, settings, metrics=metrics or {}, license_id=license_id)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights first: if writing them fails, for instance on a full disk, the folder is unchanged.
    save_checkpoint(model, folder / _WEIGHTS, overwrite=True)
    save_config(with_backbone_weights(config, None), folder / _CONFIG)
    save_config(settings, folder / _SETTINGS)
    if not (folder / _CARD).exists():
        write_text(folder / _CARD, card)


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> DeformableDETR | DETR:
    """Build a model from its config and load its weights, in evaluation mode.

    Args:
        source: A folder written by `save_pretrained`, or by `save_pretrained` of transformers' DETR or Deformable DETR
            with a ResNet, or a repository on the Hub with the same files, `user/name` or `user/name@revision`.
        revision: Branch, tag or commit of the repository, unless `source` has it.
        token: Token for the Hub; None uses that of the last login.
        cache_dir: Folder for downloads.
        local_files_only: Whether to use earlier downloads only, without a connection.

    Raises:
        FileNotFoundError: If the folder, the repository or its files do not exist.
        PermissionError: If the repository may not be read.
        ConnectionError: If a file cannot be downloaded.
        ValueError: If the config is not one of this library, or describes a model of transformers that it does not
            have.
        CheckpointError: If the weights do not fit the model that the config describes.

    Examples:
        >>> model = from_pretrained("user/name")  # doctest: +SKIP
    """
    files = _Files(source, revision, HubOptions(token, cache_dir, local_files_only))
    model = files.read_config().build()
    load_checkpoint(model, files.locate_weights())
    return model.eval()


def is_pretrained(source: str | Path) -> bool:
    """Return whether a source is a folder or a repository with the config of a model, which `from_pretrained` needs.

    A URL, a file and `user/name:file` are none.

    Raises:
        FileNotFoundError: If it is the name of a repository that does not exist.
        PermissionError: If the repository may not be read.
        ConnectionError: If the Hub cannot be reached.
        ModuleNotFoundError: If it is a name on the Hub and huggingface_hub is not installed.
        ValueError: If a variable in a path is not set.

    Examples:
        >>> with TemporaryDirectory() as folder:
        ...     is_pretrained(folder)
        False
    """
    if is_url(source):
        return False
    place = parse_source(source)
    is_file = place.file is not None if isinstance(place, HubName) else not place.is_dir()
    return not is_file and _Files(source, None, HubOptions()).has_config


def pretrained_config(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> DeformableDETRConfig | DETRConfig:
    """Read the config of a model, which also builds its criterion and post-processing.

    Arguments and errors are those of `from_pretrained`.

    Examples:
        >>> postprocess = pretrained_config("user/name").build_postprocess()  # doctest: +SKIP
    """
    return _Files(source, revision, HubOptions(token, cache_dir, local_files_only)).read_config()


def pretrained_settings(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> InferenceSettings:
    """Read the names of a model's classes, and how its images are prepared.

    For a model of transformers, labels are the category ids. Arguments and errors are those of `from_pretrained`.

    Examples:
        >>> settings = pretrained_settings("user/name")  # doctest: +SKIP
        >>> settings.label_map.names, settings.short_side  # doctest: +SKIP
    """
    return _Files(source, revision, HubOptions(token, cache_dir, local_files_only)).read_settings()


def push_to_hub(
    model: nn.Module,
    config: DeformableDETRConfig | DETRConfig,
    repo_id: str,
    *,
    settings: InferenceSettings | None = None,
    metrics: Mapping[str, Any] | None = None,
    license_id: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    create_pr: bool = False,
) -> str:
    """Upload a model with its config to a repository on the Hub, which is created if needed.

    An existing card in the repository is kept.

    Args:
        model: As in `save_pretrained`.
        config: As in `save_pretrained`.
        repo_id: `user/name`.
        settings: As in `save_pretrained`.
        metrics: As in `save_pretrained`.
        license_id: As in `save_pretrained`.
        private: Whether a new repository is private; None uses the account's default.
        token: Token for the Hub; None uses that of the last login.
        revision: Branch to upload to.
        commit_message: First line of the commit.
        create_pr: Whether to open a pull request instead.

    Returns:
        The URL of the commit or of the pull request.

    Raises:
        ModuleNotFoundError: If huggingface_hub is not installed.
        ValueError: As in `save_pretrained`.

    Examples:
        >>> push_to_hub(model, config, "user/name")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, config, folder, settings=settings, metrics=metrics, license_id=license_id)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        known = api.file_exists(repo_id, _CARD, revision=revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            ignore_patterns=[_CARD] if known else None,
        )
    return str(commit.pr_url or commit.commit_url)


def is_repository_id(source: str) -> bool:
    """Return whether a text has the form of the name of a repository, `user/name` or `user/name@revision`.

    Examples:
        >>> is_repository_id("user/name"), is_repository_id("./name")
        (True, False)
    """
    name = HubName.parse(source)
    return name is not None and name.file is None


class _Files:
    """The files of a folder or of a repository."""

    def __init__(self, source: str | Path, revision: str | None, options: HubOptions) -> None:
        self._source = source
        self._options = options
        self._place = parse_source(source)
        if isinstance(self._place, Path):
            if not self._place.is_dir():
                raise FileNotFoundError(f"there is no folder {source}{_how_to_name(source)}")
            return
        if self._place.file is not None:
            raise FileNotFoundError(f"{source} names a file, and a folder or a repository is needed, user/name")
        if revision is not None and self._place.revision is not None:
            raise ValueError(f"{source} has a revision, but revision is {revision!r} too")
        self._place = self._place._replace(revision=self._place.revision or revision)

    @property
    def has_config(self) -> bool:
        """Whether there is the config of a model."""
        return self._find(_CONFIG) is not None

    def read_config(self) -> DeformableDETRConfig | DETRConfig:
        """Read the config."""
        path = self._require(_CONFIG)
        content = read_mapping(path)
        if is_from_transformers(content):
            try:
                return read_config(content)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        try:
            config: DeformableDETRConfig | DETRConfig = TypeAdapter(ModelConfig).validate_python(content)
        except ValidationError as error:
            raise ValueError(f"{path} is not a config of this library: {error}") from error
        # The config is not trusted: it must not name files to read or download.
        return with_backbone_weights(config, None)

    def read_settings(self) -> InferenceSettings:
        """Read the settings of inference; without a file of them, the defaults."""
        path = self._require(_CONFIG)
        content = read_mapping(path)
        if is_from_transformers(content):
            preprocessor = self._find(_PREPROCESSOR)
            try:
                return read_settings(content, {} if preprocessor is None else read_mapping(preprocessor))
            except ValueError as error:
                raise ValueError(f"{preprocessor or path}: {error}") from error
        settings = self._find(_SETTINGS)
        if settings is None:
            return InferenceSettings()
        return load_config(settings, InferenceSettings)

    def locate_weights(self) -> Path:
        """Return the path of the weights."""
        path = self._find(_WEIGHTS) or self._find(_OLD_WEIGHTS)
        return self._require(_WEIGHTS) if path is None else path

    def _require(self, file: str) -> Path:
        path = self._find(file)
        if path is None:
            raise FileNotFoundError(f"{self._source} has no file {file}")
        return path

    def _find(self, file: str) -> Path | None:
        if isinstance(self._place, HubName):
            return fetch_file(self._place._replace(file=file), self._options)
        path = self._place / file
        return path if path.exists() else None


def _how_to_name(source: str | Path) -> str:
    """Return the end of a message about a path that is no folder."""
    if isinstance(source, str) and is_repository_id(source):
        return f"; beside a folder {Path(source).parent} this is a path, and {source}@main a repository on the Hub"
    return ", and it is not the id of a repository, user/name"


def _check_described(model: nn.Module, config: DeformableDETRConfig | DETRConfig, settings: InferenceSettings) -> None:
    with torch.device("meta"):
        described = with_backbone_weights(config, None).build().state_dict()
    state = find_weights(model.state_dict()).tensors
    differing = sorted(
        name
        for name in state.keys() | described.keys()
        if name not in state or name not in described or state[name].shape != described[name].shape
    )
    if differing:
        raise ValueError(
            f"the config does not describe this model: {len(differing)} entries differ, the first is {differing[0]}"
        )
    if settings.label_map is not None and settings.label_map.num_classes > config.num_classes:
        raise ValueError(
            f"the label map has {settings.label_map.num_classes} labels, but the model has {config.num_classes} classes"
        )
