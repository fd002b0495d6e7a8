import pytest

from pyramids import SHAPES, VALID, random_pyramid


@pytest.fixture
def pyramid(rng):
    """Return the levels of two images, one of them padded, with 16 channels."""
    return random_pyramid(rng, 16, VALID, SHAPES)
