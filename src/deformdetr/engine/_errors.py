"""What the engine refuses, with everything needed to put it right in the message."""


class ConfigError(ValueError):
    """A config cannot be read, does not validate or does not fit its dataset."""


class RunError(ValueError):
    """A run directory cannot be used: it holds another run, or not what is asked of it."""


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved before is intact."""


class PredictionError(ValueError):
    """Images to predict on are missing, or pictures would be written over them."""
