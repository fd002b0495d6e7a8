"""Description of what a run is trained with."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import torch

from deformdetr.engine._processes import Processes


def describe_environment(processes: Processes) -> dict[str, Any]:
    """Return the command, versions, device, and the numbers of threads and processes."""
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else platform.processor()
    return {
        "command": sys.argv,
        "deformdetr": version("deformdetr"),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{processes.device.type}: {device or platform.machine()}",
        "threads": torch.get_num_threads(),
        "processes": processes.world_size,
    }
