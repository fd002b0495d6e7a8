"""Seeding of random numbers by seed, process and step, so that resumed runs equal uninterrupted ones."""

import random

import numpy as np
import torch


def seed_everything(seed: int, *, rank: int, step: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, including those of GPUs.

    Args:
        seed: Seed of the run; not negative.
        rank: Index of this process. Processes draw different numbers.
        step: Optimizer step, from 1, or 0 for the initial weights. Steps draw different numbers.
    """
    first, second = np.random.SeedSequence([seed, rank, step]).generate_state(2, np.uint32).tolist()
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002 - transforms of other libraries use the global generator.
    torch.manual_seed((first << 31) ^ second)
