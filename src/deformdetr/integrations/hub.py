"""Models in folders and on the Hugging Face Hub, as a config, weights and a model card.

A folder holds `config.json`, which `deformdetr.config.load_config` reads too, `model.safetensors` in this library's
format, and `README.md`. Repositories on the Hub need the extra `hub`.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from deformdetr._files import read_mapping, write_text
from deformdetr.config import DeformableDETRConfig, DETRConfig, ModelConfig, ResNetConfig, TimmConfig, save_config
from deformdetr.integrations._checkpoints._convert import save_checkpoint
from deformdetr.integrations._checkpoints._load import load_checkpoint
from deformdetr.models import DETR, DeformableDETR

__all__ = ["from_pretrained", "pretrained_config", "push_to_hub", "save_pretrained"]

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"


def save_pretrained(model: nn.Module, config: DeformableDETRConfig | DETRConfig, folder: str | Path) -> None:
    """Write a model and its config into a folder, which is created if needed.

    Existing weights and config are replaced. An existing card is kept, because it may have been written by hand.

    Args:
        model: The model that `config.build()` returned.
        config: Config of the model; the pretrained weights of its backbone are not written.
        folder: The folder.

    Raises:
        ValueError: If the config does not describe this model.

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
    _check_described(model, config)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights first: if writing them fails, for instance on a full disk, the folder is unchanged.
    save_checkpoint(model, folder / _WEIGHTS, overwrite=True)
    save_config(_without_backbone_weights(config), folder / _CONFIG)
    if not (folder / _CARD).exists():
        write_text(folder / _CARD, _card(config))


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
        source: A folder written by `save_pretrained`, or the id of a repository on the Hub, `user/name`.
        revision: Branch, tag or commit of the repository.
        token: Token for the Hub; None uses that of the last login.
        cache_dir: Folder for downloads.
        local_files_only: Whether to use earlier downloads only, without a connection.

    Raises:
        FileNotFoundError: If the folder or its files do not exist.
        ValueError: If the config is not one of this library.
        CheckpointError: If the weights do not fit the model that the config describes.

    Examples:
        >>> model = from_pretrained("user/name")  # doctest: +SKIP
    """
    folder = _locate(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    model = _read_config(folder / _CONFIG).build()
    load_checkpoint(model, folder / _WEIGHTS)
    return model.eval()


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
    folder = _locate(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    return _read_config(folder / _CONFIG)


def push_to_hub(
    model: nn.Module,
    config: DeformableDETRConfig | DETRConfig,
    repo_id: str,
    *,
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
        private: Whether a new repository is private; None uses the account's default.
        token: Token for the Hub; None uses that of the last login.
        revision: Branch to upload to.
        commit_message: First line of the commit.
        create_pr: Whether to open a pull request instead.

    Returns:
        The URL of the commit or of the pull request.

    Raises:
        ModuleNotFoundError: If huggingface_hub is not installed.
        ValueError: If the config does not describe this model.

    Examples:
        >>> push_to_hub(model, config, "user/name")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, config, folder)
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


def _locate(
    source: str | Path,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Return the folder of a model, downloaded if needed."""
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise FileNotFoundError(f"there is no folder {source}, and it is not the id of a repository, user/name")
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        allow_patterns=[_CONFIG, _WEIGHTS],
    )
    return Path(str(folder))


def _read_config(path: Path) -> DeformableDETRConfig | DETRConfig:
    try:
        config: DeformableDETRConfig | DETRConfig = TypeAdapter(ModelConfig).validate_python(read_mapping(path))
    except ValidationError as error:
        raise ValueError(f"{path} is not a config of this library: {error}") from error
    # The config is not trusted: it must not name files to read or download.
    return _without_backbone_weights(config)


def _without_backbone_weights(config: DeformableDETRConfig | DETRConfig) -> DeformableDETRConfig | DETRConfig:
    backbone = config.backbone
    if isinstance(backbone, ResNetConfig | TimmConfig):
        return config.replace(backbone=backbone.replace(weights=None))
    return config


def _check_described(model: nn.Module, config: DeformableDETRConfig | DETRConfig) -> None:
    with torch.device("meta"):
        described = _without_backbone_weights(config).build().state_dict()
    state = model.state_dict()
    differing = sorted(
        name
        for name in state.keys() | described.keys()
        if name not in state or name not in described or state[name].shape != described[name].shape
    )
    if differing:
        raise ValueError(
            f"the config does not describe this model: {len(differing)} entries differ, the first is {differing[0]}"
        )


def _card(config: DeformableDETRConfig | DETRConfig) -> str:
    name = "Deformable DETR" if isinstance(config, DeformableDETRConfig) else "DETR"
    return dedent(
        f"""\
        ---
        library_name: deformdetr
        pipeline_tag: {"image-segmentation" if config.masks else "object-detection"}
        tags:
        - {config.kind}
        ---

        # {name} of {config.num_classes} classes

        ```python
        from deformdetr.integrations.hub import from_pretrained

        model = from_pretrained("user/name")  # this repository, or its folder
        ```
        """
    )
