"""Learning rates over the steps of a run."""

import pytest

from deformdetr.engine import CosineSchedule, RunError, StepSchedule, TrainConfig, learning_rate_factor
from deformdetr.engine._schedule import check_past, describe_schedule, total_steps


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


def test_cosine_of_given_epochs_stays_at_its_last_factor():
    config = TrainConfig(epochs=30, schedule=CosineSchedule(final_factor=0.2, epochs=20))
    shorter = TrainConfig(epochs=20, schedule=CosineSchedule(final_factor=0.2))
    assert factors(config, range(200), total_steps=300) == factors(shorter, range(200), total_steps=200)
    assert factors(config, [200, 299], total_steps=300) == pytest.approx([0.2, 0.2])


def test_steps_of_a_run_are_limited_by_epochs_and_steps():
    assert total_steps(TrainConfig(epochs=3), steps_per_epoch=10) == 30
    assert total_steps(TrainConfig(epochs=3, max_steps=12), steps_per_epoch=10) == 12
    assert total_steps(TrainConfig(epochs=3, max_steps=50), steps_per_epoch=10) == 30


def drops(*epochs, **settings):
    return TrainConfig(schedule=StepSchedule(drop_epochs=epochs), **settings)


COSINE = TrainConfig(epochs=4, schedule=CosineSchedule())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (drops(40), drops(40, epochs=70)),
        (drops(40), drops(4)),
        (drops(40), drops(4, 6, epochs=8)),
        (drops(2, 40), drops(2, 4)),
        (drops(40), drops()),
        (COSINE, COSINE.replace(epochs=9, schedule=CosineSchedule(epochs=4))),
    ],
)
def test_the_future_of_a_run_may_change(old, new):
    check_past(old, new, epochs=4, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (drops(40), drops(3), r"in epoch 4 it was 0\.0002, and would be 2e-05; .* others from 4 on, .* exactly \[\]"),
        (drops(2, 40), drops(40), r"in epoch 3 it was 2e-05, and would be 0\.0002; .* before that exactly \[2\]"),
        (COSINE, COSINE.replace(epochs=9), r"with train\.schedule\.epochs=4 the run goes on"),
        (drops(40), COSINE, r"in epoch 1 it was 0\.0002, and would be"),
    ],
)
def test_the_past_of_a_run_cannot_change(old, new, message):
    with pytest.raises(RunError, match=message):
        check_past(old, new, epochs=4, steps_per_epoch=5)
    check_past(old, new, epochs=0, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("config", "end"),
    [
        (drops(2, 6, epochs=5), ", times 0.1 after epoch 2"),
        (drops(), ", constant"),
        (
            drops(40, epochs=12, warmup_steps=9),
            " after 9 steps of warm-up, without a drop: schedule.drop_epochs is 40, epochs is 12",
        ),
        (COSINE, ", falling along a cosine to 0.01 times as much over 4 epochs"),
    ],
)
def test_description_says_what_the_rates_do(config, end):
    assert describe_schedule(config) == f"learning rate 0.0002 (backbone 2e-05, sampling 2e-05){end}"
