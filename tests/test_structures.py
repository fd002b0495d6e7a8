import pytest
import torch

from deformdetr.structures import ImageBatch


def test_images_lie_at_the_top_left_of_a_zero_padded_batch(rng: torch.Generator) -> None:
    images = [torch.rand(3, 5, 4, generator=rng), torch.rand(3, 2, 7, generator=rng)]
    batch = ImageBatch.from_images(images)
    assert batch.images.shape == (2, 3, 5, 7)
    for padded, mask, image in zip(batch.images, batch.padding_mask, images, strict=True):
        _, height, width = image.shape
        assert padded[:, :height, :width].equal(image)
        assert not mask[:height, :width].any()
        assert mask.sum() == 5 * 7 - height * width
        assert padded[:, mask].eq(0).all()


def test_sizes_are_rounded_up_to_the_divisor() -> None:
    batch = ImageBatch.from_images([torch.ones(3, 33, 64)], size_divisor=32)
    assert batch.images.shape == (1, 3, 64, 64)
    assert batch.padding_mask.sum() == 31 * 64


def test_a_batch_moves_as_one_and_keeps_its_dtype() -> None:
    batch = ImageBatch.from_images([torch.ones(3, 2, 2, dtype=torch.float64)])
    moved = batch.to("meta", non_blocking=True)
    assert isinstance(moved, ImageBatch)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert batch.images.dtype == torch.float64


@pytest.mark.gpu
def test_a_batch_can_be_pinned() -> None:
    assert all(tensor.is_pinned() for tensor in ImageBatch.from_images([torch.ones(3, 2, 2)]).pin_memory())


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 0, 4), (4, 4, 3)])
def test_an_image_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image 1 .*" + str(shape).replace("(", r"\(").replace(")", r"\)")):
        ImageBatch.from_images([torch.ones(3, 4, 4), torch.ones(shape)])


def test_images_of_different_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image 1 is torch\.float64"):
        ImageBatch.from_images([torch.ones(3, 4, 4), torch.ones(3, 4, 4, dtype=torch.float64)])


def test_an_empty_batch_and_a_divisor_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        ImageBatch.from_images([])
    with pytest.raises(ValueError, match="got 0"):
        ImageBatch.from_images([torch.ones(3, 4, 4)], size_divisor=0)
