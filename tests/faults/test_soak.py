"""What runs for hours holds no more memory and files at its end than at its beginning, and is no slower.

`pytest -m slow tests/faults/test_soak.py --examples 50000` makes 50,000 calls of the operator, 14,286 training steps
(two hours of steps of half a second) and 10,000 calls of a predictor; without the option, few. Figures come at the end.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from PIL import Image

import deformdetr
from deformdetr.data import DatasetError
from deformdetr.engine import Experiment, train
from deformdetr.engine import _train as engine_train
from deformdetr.kernels import ms_deform_attn
from experiments import SETTINGS, tiny_run
from footprint import cpu_seconds, open_files, quarters, resident_bytes

pytestmark = pytest.mark.slow

_EPOCHS = 24
_MEGABYTE = 1 << 20


@pytest.fixture
def calls(pytestconfig) -> int:
    return pytestconfig.getoption("--examples") or 800


def test_training_holds_no_more_and_is_no_slower_after_many_steps(tmp_path, calls, monkeypatch, figures):
    steps = int(calls / 3.5)
    samples = []

    def sample(rows, path):
        # In place of the curves: matplotlib's memory levels off only after some thirty pictures.
        samples.append((resident_bytes(), open_files(), cpu_seconds()))

    monkeypatch.setattr(engine_train, "plot_curves", sample)
    data = SETTINGS["data"] | {"num_train": max(2, steps // _EPOCHS) * 2}
    settings = SETTINGS["train"] | {"epochs": _EPOCHS, "batch_size": 2, "ema": {}, "save_every_steps": 100}
    result = train(Experiment.model_validate(SETTINGS | {"data": data, "train": settings}), tmp_path / "run")
    memory, files, times = (list(each) for each in zip(*samples, strict=True))
    early, late = quarters(memory)
    fast, slow = quarters([after - before for before, after in pairwise(times)])
    figures.append(
        f"training, {result.step:,} steps in {result.epoch:,} epochs: {early / _MEGABYTE:.1f} MB resident in the "
        f"second quarter, {late / _MEGABYTE:.1f} MB in the last; {files[1]} open files, then {files[-1]}; {fast:.3f} s "
        f"of CPU per epoch, then {slow:.3f} s"
    )
    assert late - early < 8 * _MEGABYTE + 0.02 * early
    assert files[-1] <= files[1]
    assert slow < 1.5 * fast + 0.05


def test_the_operator_holds_no_more_after_many_shapes_on_eight_threads(calls, seed, figures):
    def differs(number: int) -> bool:
        """Make a call, and return whether the result is wrong, for one in a hundred."""
        draw = random.Random(seed + number)
        shapes = [(draw.randint(1, 12), draw.randint(1, 12)) for _ in range(draw.randint(1, 4))]
        batch, heads, width = draw.randint(1, 3), draw.choice([1, 2, 4, 8]), draw.choice([4, 8, 16, 32])
        queries, points = draw.randint(1, 40), draw.randint(1, 5)
        rng = torch.Generator().manual_seed(seed + number)
        value = torch.rand(batch, sum(h * w for h, w in shapes), heads, width, generator=rng, requires_grad=True)
        size = (batch, queries, heads, len(shapes), points)
        locations = torch.rand(*size, 2, generator=rng, requires_grad=True)
        weights = torch.rand(size, generator=rng)
        out = ms_deform_attn(value, shapes, locations, weights)
        out.sum().backward()
        if number % 100:
            return False
        return not torch.allclose(
            out, ms_deform_attn(value, shapes, locations, weights, backend="reference"), atol=1e-4
        )

    memory, wrong = [], 0
    with ThreadPoolExecutor(8) as threads:
        for first in range(0, calls, calls // 16):
            wrong += sum(threads.map(differs, range(first, min(calls, first + calls // 16))))
            memory.append(resident_bytes())
    early, late = quarters(memory)
    figures.append(
        f"operator, {calls:,} forward and backward calls of changing shapes on 8 threads: {early / _MEGABYTE:.1f} MB "
        f"resident in the second quarter, {late / _MEGABYTE:.1f} MB in the last"
    )
    assert wrong == 0
    assert late - early < 16 * _MEGABYTE


def test_a_predictor_names_each_broken_image_and_holds_no_more_after_many(tmp_path, calls, seed, figures):
    predictor = deformdetr.load(tiny_run(tmp_path / "run", epochs=1))
    draw = random.Random(seed)
    images = max(64, calls // 5)
    broken, named, memory = set(), {}, []
    files_before = open_files()
    for number in range(images):
        path = tmp_path / f"{number % 50}.jpg"
        Image.effect_noise((draw.randint(20, 90), draw.randint(20, 90)), 90).save(path)
        if draw.random() < 0.05:
            path.write_bytes(path.read_bytes()[: draw.randint(0, 400)])
            broken.add(number)
        try:
            predictor(path)
        except DatasetError as error:
            named[number] = str(path) in str(error)
        if number % (images // 16) == 0:
            memory.append(resident_bytes())
    early, late = quarters(memory)
    figures.append(
        f"predictor, {images:,} images, {len(broken):,} of them broken: all of these named; {early / _MEGABYTE:.1f} MB "
        f"resident in the second quarter, {late / _MEGABYTE:.1f} MB in the last; {files_before} open files, then "
        f"{open_files()}"
    )
    assert named == dict.fromkeys(broken, True)
    assert late - early < 8 * _MEGABYTE
    assert open_files() <= files_before
