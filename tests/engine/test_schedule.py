"""Learning rates over the steps of a run."""

import pytest

from deformdetr.engine import CosineSchedule, StepSchedule, TrainConfig, learning_rate_factor


def factors(config, steps, *, steps_per_epoch=10, total_steps=500):
    return [
        learning_rate_factor(config, step, steps_per_epoch=steps_per_epoch, total_steps=total_steps) for step in steps
    ]


def test_default_drops_to_a_tenth_after_forty_epochs():
    assert factors(TrainConfig(), [0, 399, 400, 499]) == pytest.approx([1, 1, 0.1, 0.1])


def test_several_drops_multiply():
    config = TrainConfig(schedule=StepSchedule(drop_epochs=(2, 3), drop_factor=0.5))
    assert factors(config, [19, 20, 29, 30]) == pytest.approx([1, 0.5, 0.5, 0.25])


def test_cosine_falls_from_one_to_its_final_factor():
    config = TrainConfig(schedule=CosineSchedule(final_factor=0.2))
    values = factors(config, range(501), total_steps=501)
    assert values[0] == 1
    assert values[250] == pytest.approx(0.6)
    assert values[500] == pytest.approx(0.2)
    assert values == sorted(values, reverse=True)


def test_warmup_rises_in_equal_steps_and_never_starts_at_zero():
    assert factors(TrainConfig(warmup_steps=4), range(6)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
