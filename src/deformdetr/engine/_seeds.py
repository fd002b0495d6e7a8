"""Random numbers that follow from seed, process and epoch alone.

A resumed run therefore draws what an uninterrupted one does.
"""

import random

import numpy as np
import torch


def seed_everything(seed: int, *, rank: int, epoch: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, the GPUs' included.

    Args:
        seed: Of the run; not negative.
        rank: Processes draw different numbers.
        epoch: So do epochs.
    """
    first, second = np.random.SeedSequence([seed, rank, epoch]).generate_state(2, np.uint32).tolist()
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002 - transforms of other libraries draw from the global generator.
    torch.manual_seed((first << 31) ^ second)
