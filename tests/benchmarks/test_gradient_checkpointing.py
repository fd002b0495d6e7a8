"""The memory that gradient checkpointing saves."""

from benchmarks.gradient_checkpointing import measure

from checkpoints import tiny_config


def test_running_again_takes_less_memory():
    config = tiny_config(num_encoder_layers=6)
    without, with_it = (measure(config, 2, 128, 160, is_on=is_on) for is_on in (False, True))
    assert 0 < with_it < 0.7 * without
