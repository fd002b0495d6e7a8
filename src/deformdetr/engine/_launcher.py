"""What the configuration of `accelerate launch` requests beside processes, and the settings of the same meaning."""

import os

from deformdetr.engine._errors import ConfigError
from deformdetr.engine._train_config import TrainConfig

_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def refuse_sharding() -> None:
    """Check that the launcher does not request to divide the model between processes.

    Without GPUs, accelerate would ignore such a request, and keep the whole model in every process.

    Raises:
        ConfigError: If it does.
    """
    for variable, name in _SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise ConfigError(
                f"the launcher requests {name}, but only data parallelism is supported, with the whole model in every "
                "process: set distributed_type: MULTI_GPU in the config of accelerate"
            )


def check_launcher(config: TrainConfig) -> None:
    """Check that the launcher requests nothing that contradicts the settings of training, which alone decide.

    Raises:
        ConfigError: If it does.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    requests = (
        ("mixed_precision", precision, "no", "precision", _PRECISIONS.get(precision, precision)),
        ("dynamo_backend", backend, "no", "compile", True),
        ("gradient_accumulation_steps", steps, "1", "accumulate_steps", int(steps) if steps.isdecimal() else steps),
    )
    for name, requested, nothing, setting, wanted in requests:
        if requested != nothing and getattr(config, setting) != wanted:
            raise ConfigError(
                f"the launcher requests {name}: {requested}, but train.{setting} is {getattr(config, setting)}; set "
                f"train.{setting}, and leave {name} at {nothing} in the config of accelerate"
            )
