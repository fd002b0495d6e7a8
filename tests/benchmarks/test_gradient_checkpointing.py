"""Memory that gradient checkpointing saves."""

from benchmarks.gradient_checkpointing import measure

from checkpoints import tiny_config


def test_checkpointing_takes_less_memory():
    config = tiny_config(num_encoder_layers=6)
    without, with_it = (measure(config, 2, 128, 160, checkpointing=each) for each in (False, True))
    assert 0 < with_it < 0.7 * without
