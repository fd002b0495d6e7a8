import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from deformdetr.visualize import (
    class_color,
    displayable,
    draw_boxes,
    draw_comparison,
    draw_panoptic,
    draw_proposals,
    draw_refinement,
    plot_confusion,
    plot_curves,
    plot_precision_recall,
    plot_sampling_layers,
    plot_sampling_points,
    save_image,
    tile_pictures,
)
from deformdetr.visualize._queries import layer_color

GRAY = torch.full((3, 600, 700), 128, dtype=torch.uint8)
NAMES = ["circle", "square"]


def has_color(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == color).all(axis=-1)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_normalized_images_return_to_their_colors(rng: torch.Generator) -> None:
    image = torch.randint(256, (3, 5, 6), generator=rng, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalized = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(displayable(normalized, mean=mean, std=std), image)
    assert torch.equal(displayable(image), image)
    assert displayable(torch.tensor([-1.0, 0.5, 3]).view(3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_classes_differ_in_color() -> None:
    colors = [class_color(label) for label in range(91)]
    assert len(set(colors)) == 91
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    for first, second in itertools.pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 60


def test_a_box_is_outlined() -> None:
    picture = draw_boxes(GRAY, torch.tensor([[100.0, 200, 400, 500]]), torch.tensor([1]), NAMES)
    assert picture.size == (700, 600)
    outlined = has_color(picture, class_color(1))
    assert outlined[300:400, 100].all()
    assert outlined[300:400, 400].all()
    assert outlined[500, 150:350].all()
    assert not outlined[250:450, 150:350].any()
    # The name is above the left corner.
    assert outlined[180:199, 100:150].any()


def test_small_images_are_enlarged_with_their_boxes() -> None:
    picture = draw_boxes(GRAY[:, :60, :100], torch.tensor([[10.0, 20, 90, 50]]), torch.tensor([0]), NAMES)
    assert picture.size == (600, 360)
    assert has_color(picture, class_color(0))[200:250, 60].all()


def test_images_without_boxes_are_only_converted() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    picture = draw_boxes(GRAY, *empty, NAMES, scores=torch.zeros(0))
    np.testing.assert_array_equal(np.asarray(picture), GRAY.permute(1, 2, 0))


def test_the_best_box_is_drawn_on_top() -> None:
    boxes = torch.tensor([[100.0, 200, 400, 500]] * 2)
    labels = torch.tensor([0, 1])
    for scores, on_top in (((0.9, 0.2), 0), ((0.2, 0.9), 1)):
        picture = draw_boxes(GRAY, boxes, labels, NAMES, scores=torch.tensor(scores))
        assert has_color(picture, class_color(on_top))[300:400, 100].all()


def test_boxes_beyond_the_image_are_drawn() -> None:
    boxes = torch.tensor([[-50.0, -50, 900, 900], [690, 590, 900, 900], [30, 30, 10, 10]])
    assert draw_boxes(GRAY, boxes, torch.tensor([0, 1, 0]), NAMES).size == (700, 600)


def test_labels_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="to 2 do not fit 2 names"):
        draw_boxes(GRAY, torch.zeros(1, 4), torch.tensor([2]), NAMES)


def test_a_comparison_shows_truth_left_and_confident_detections_right() -> None:
    picture = draw_comparison(
        GRAY,
        {
            "boxes": torch.tensor([[100.0, 200, 400, 500], [10, 10, 50, 50]]),
            "scores": torch.tensor([0.8, 0.2]),
            "labels": torch.tensor([1, 0]),
        },
        {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "labels": torch.tensor([0])},
        NAMES,
        score_threshold=0.5,
    )
    middle = picture.width // 2
    first, second = (has_color(picture, class_color(label)).any(axis=0) for label in (0, 1))
    assert first[:middle].any()
    assert not first[middle:].any()
    assert not second[:middle].any()
    assert second[middle:].any()


@pytest.mark.parametrize("reference", [[0.4, 0.6], [0.4, 0.6, 0.2, 0.3]])
@pytest.mark.parametrize("levels", [1, 4, 7])
def test_sampling_points_are_shown_around_their_reference(
    rng: torch.Generator, reference: list[float], levels: int
) -> None:
    locations = torch.rand(8, levels, 4, 2, generator=rng) * 1.4 - 0.2
    weights = torch.rand(8, levels * 4, generator=rng).softmax(-1).view(8, levels, 4)
    image = torch.rand(3, 64, 96, generator=rng)
    picture = plot_sampling_points(image, locations, weights, reference=torch.tensor(reference), title="query 3")
    assert picture.mode == "RGB"
    assert picture.width > 800
    pixels = np.asarray(picture)
    # Nothing else has the color of the first level.
    assert (np.abs(pixels.astype(int) - (0, 229, 255)).sum(axis=-1) < 60).any()


def test_drawing_does_not_change_the_state_of_matplotlib() -> None:
    settings, pyplot_is_loaded = dict.copy(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    plot_sampling_points(GRAY, torch.rand(1, 1, 1, 2), torch.ones(1, 1, 1), reference=torch.tensor([0.5, 0.5]))
    assert dict.copy(mpl.rcParams) == settings
    # Importing pyplot would choose a backend for the whole process.
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_is_loaded


def test_curves_are_written_from_nested_and_incomplete_records(tmp_path: Path) -> None:
    records = [
        {"epoch": 0, "train": {"loss": 9.0, "loss_ce": 2.0, "loss_ce_0": 2.0}, "val": {"AP": None}},
        {"epoch": 1, "train": {"loss": 5.0, "loss_ce": 1.0, "lr": 1e-4}, "val": {"AP": 0.1, "AP50": 0.3}},
        {"epoch": 2, "train": {"loss": 4.0}},
    ]
    plot_curves(records, tmp_path / "curves.png")
    both = size_of(tmp_path / "curves.png")
    plot_curves([{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}], tmp_path / "curves.png")
    one = size_of(tmp_path / "curves.png")
    assert both[0] == 2 * one[0]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_curves_without_anything_to_draw_are_refused(tmp_path: Path) -> None:
    for records in ([], [{"epoch": 1, "lr": 0.1}], [{"epoch": 1, "val": {"AP": None}}]):
        with pytest.raises(ValueError, match=f"{len(records)} records"):
            plot_curves(records, tmp_path / "curves.png")


def test_a_picture_replaces_an_old_one_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    save_image(Image.new("RGB", (4, 5)), path)

    def fail(self: Image.Image, target: Path, **options: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_image(Image.new("RGB", (9, 9)), path)
    monkeypatch.undo()
    assert size_of(path) == (4, 5)
    assert [found.name for found in tmp_path.iterdir()] == ["x.png"]


def test_an_unknown_suffix_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.pngg'"):
        save_image(Image.new("RGB", (4, 5)), tmp_path / "x.pngg")


def test_masks_are_mixed_into_the_picture_in_the_colors_of_their_boxes() -> None:
    masks = torch.zeros(2, 600, 700, dtype=torch.bool)
    masks[0, 250:400, 150:300] = True
    masks[1, 100:120, 500:600] = True
    boxes, labels = torch.tensor([[100.0, 200, 400, 500], [450.0, 50, 650, 180]]), torch.tensor([0, 1])
    picture = np.asarray(draw_boxes(GRAY, boxes, labels, NAMES, masks=masks)).astype(int)
    plain = np.asarray(draw_boxes(GRAY, boxes, labels, NAMES)).astype(int)
    differs = (picture != plain).any(axis=-1)
    np.testing.assert_array_equal(differs, masks.any(0))
    for mask, label in zip(masks, labels.tolist(), strict=True):
        expected = 0.55 * 128 + 0.45 * np.array(class_color(label))
        assert np.abs(picture[mask.numpy()] - expected).max() <= 0.5


def test_the_best_mask_is_mixed_in_last() -> None:
    masks = torch.zeros(2, 600, 700, dtype=torch.bool)
    masks[:, 250:400, 150:300] = True
    boxes, labels = torch.tensor([[100.0, 200, 400, 500]] * 2), torch.tensor([0, 1])
    for scores, on_top in (((0.9, 0.2), 0), ((0.2, 0.9), 1)):
        picture = draw_boxes(GRAY, boxes, labels, NAMES, scores=torch.tensor(scores), masks=masks)
        below = 0.55 * 128 + 0.45 * np.array(class_color(1 - on_top))
        expected = 0.55 * below + 0.45 * np.array(class_color(on_top))
        assert np.abs(np.asarray(picture)[300, 200] - expected).max() <= 0.5


def test_small_images_are_enlarged_with_their_masks() -> None:
    masks = torch.zeros(1, 60, 100, dtype=torch.bool)
    masks[0, 25:45, 20:60] = True
    picture = draw_boxes(GRAY[:, :60, :100], torch.tensor([[10.0, 20, 90, 50]]), torch.tensor([0]), NAMES, masks=masks)
    assert picture.size == (600, 360)
    expected = 0.55 * 128 + 0.45 * np.array(class_color(0))
    assert np.abs(np.asarray(picture)[160:260, 130:350] - expected).max() <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_comparison_shows_masks_on_both_sides(dtype: torch.dtype) -> None:
    masks = torch.zeros(1, 600, 700, dtype=torch.bool)
    masks[0, 250:400, 150:300] = True
    target = {"boxes": torch.tensor([[0.4, 0.5, 0.4, 0.5]]), "labels": torch.tensor([1]), "masks": masks}
    found = {
        "boxes": torch.tensor([[140.0, 150, 420, 450]] * 2),
        "labels": torch.tensor([0, 0]),
        "scores": torch.tensor([0.9, 0.1]),
        "masks": masks.to(dtype).expand(2, -1, -1)[:, None],
    }
    picture = np.asarray(draw_comparison(GRAY, found, target, NAMES)).astype(int)
    half = picture.shape[1] // 2
    for side, label in ((picture[:, :half], 1), (picture[:, half:], 0)):
        expected = np.round(0.55 * 128 + 0.45 * np.array(class_color(label)))
        assert (np.abs(side - expected).max(axis=-1) <= 1).sum() >= 150 * 150


def test_segments_have_the_colors_of_their_classes_and_white_borders() -> None:
    segment_map = torch.zeros(600, 700, dtype=torch.int64)
    segment_map[:, 300:] = 1
    segment_map[300:, 300:] = 2
    found = {"segment_map": segment_map, "labels": torch.tensor([1, 0])}
    picture = np.asarray(draw_panoptic(GRAY, found, NAMES)).astype(int)
    for (y, x), label in (((20, 650), 1), ((550, 650), 0)):
        assert np.abs(picture[y, x] - (0.55 * 128 + 0.45 * np.array(class_color(label)))).max() <= 0.5
    assert (picture[20, 20] == 128).all()
    assert (picture[20, 299] == 255).all()
    assert (picture[299, 650] == 255).all()
    # Names are in the middle of the segments.
    assert has_color(Image.fromarray(picture.astype(np.uint8)), class_color(1))[130:170, 490:540].any()
    with pytest.raises(ValueError, match=r"map has \(600, 700\) pixels, but the image \(60, 100\)"):
        draw_panoptic(GRAY[:, :60, :100], found, NAMES)
    with pytest.raises(ValueError, match="do not fit 1 names"):
        draw_panoptic(GRAY, found, NAMES[:1])


def test_tiles_keep_their_order_and_shape():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sizes = [(40, 20), (300, 600), (100, 100)]
    pictures = [Image.new("RGB", size, color) for size, color in zip(sizes, colors, strict=True)]
    sheet = tile_pictures(pictures, columns=2, side=100)
    assert sheet.size == (212, 212)
    places = [np.argwhere(has_color(sheet, color)) for color in colors]
    assert [tuple(np.ptp(place, axis=0) + 1) for place in places] == [(50, 100), (100, 50), (100, 100)]
    centers = [place.mean(axis=0).round() for place in places]
    assert np.array_equal(centers, [(54, 54), (54, 158), (158, 54)])
    with pytest.raises(ValueError, match="at least one picture"):
        tile_pictures([])


def test_boxes_of_every_layer_are_drawn_in_its_color() -> None:
    layers = [
        torch.tensor([[0.3, 0.5, 0.1, 0.4]]),
        torch.tensor([[0.5, 0.5, 0.1, 0.4]]),
        torch.tensor([[0.7, 0.5, 0.1, 0.4]]),
    ]
    picture = draw_refinement(GRAY, layers, references=torch.tensor([[0.1, 0.5]]))
    for index, center in enumerate((0.3, 0.5, 0.7)):
        drawn = has_color(picture, layer_color(index, 3))
        # Both vertical sides, at half the height.
        for side in (700 * (center - 0.05), 700 * (center + 0.05)):
            assert drawn[300, round(side) - 2 : round(side) + 3].any()
    # A cross at the reference point, darkened image elsewhere.
    assert has_color(picture, (255, 255, 255))[300, 70]
    assert has_color(picture, (96, 96, 96)).mean() > 0.8
    boxes = draw_refinement(GRAY, layers, references=torch.tensor([[0.1, 0.5, 0.1, 0.2]]))
    assert has_color(boxes, (255, 255, 255))[300, 35]
    with pytest.raises(ValueError, match="no layers"):
        draw_refinement(GRAY, [])


def test_the_best_proposals_are_drawn_and_the_best_is_on_top() -> None:
    boxes = torch.tensor([[0.3, 0.5, 0.2, 0.4], [0.3, 0.5, 0.2, 0.4], [0.7, 0.5, 0.2, 0.4]])
    picture = draw_proposals(GRAY, boxes, torch.tensor([0.9, 0.5, 0.1]), count=2)
    assert has_color(picture, layer_color(1, 2))[300, 140]
    assert not has_color(picture, layer_color(0, 2)).any()
    # The third is left out.
    assert has_color(picture, (96, 96, 96))[:, 400:].all()
    assert draw_proposals(GRAY, boxes, torch.rand(3)).size == (700, 600)


def test_every_layer_has_its_own_plot_of_sampling_points(rng: torch.Generator) -> None:
    def sampled() -> tuple[torch.Tensor, ...]:
        weights = torch.full((2, 3, 4), 1 / 12)
        return torch.rand(2, 3, 4, 2, generator=rng), weights, torch.tensor([0.5, 0.5])

    one, four = (
        plot_sampling_layers(GRAY, [(f"layer {index}", sampled()) for index in range(count)]) for count in (1, 4)
    )
    # Three beside each other, and a second row.
    assert four.width == pytest.approx(3 * one.width, abs=5)
    assert four.height == pytest.approx(2 * one.height, abs=5)
    with pytest.raises(ValueError, match="no layers"):
        plot_sampling_layers(GRAY, [])


def test_precision_over_recall_is_plotted(tmp_path: Path) -> None:
    curves = [(f"class {index}", np.linspace(1, index / 50, 101)) for index in range(30)]
    plot_precision_recall(curves, tmp_path / "curve.png", title="Größe")
    assert size_of(tmp_path / "curve.png")[0] > 600
    with pytest.raises(ValueError, match="no curves"):
        plot_precision_recall([], tmp_path / "curve.png")


def test_confusions_are_plotted_in_shades_of_their_share(tmp_path: Path) -> None:
    plot_confusion(np.array([[9, 1, 0], [0, 0, 4], [5, 0, 0]]), ["cat", "dog"], tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as picture:
        blues = (np.asarray(picture).astype(int) @ (-1, 0, 1) > 60).mean()
    assert blues > 0.05
    many = np.eye(101, dtype=np.int64)
    many[3, 5] = 7
    plot_confusion(many, [f"class {index}" for index in range(100)], tmp_path / "large.png")
    assert size_of(tmp_path / "large.png")[0] < 3000
    with pytest.raises(ValueError, match=r"3 names need 4 rows and columns of counts, got \(3, 3\)"):
        plot_confusion(np.zeros((3, 3), dtype=np.int64), ["a", "b", "c"], tmp_path / "x.png")


def test_an_unknown_backend_in_the_environment_does_not_matter(tmp_path):
    code = (
        "import sys, os; from deformdetr.visualize import plot_curves; "
        "plot_curves([{'epoch': 1, 'loss': 2.0}], sys.argv[1]); "
        "import matplotlib; print(os.environ['MPLBACKEND'], matplotlib.rcParams._get('backend'))"
    )
    for backend, kept in (("nope", None), ("svg", "svg")):
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "curves.png")],
            env=os.environ | {"MPLBACKEND": backend},
            capture_output=True,
            text=True,
            check=True,
        )
        named, used = run.stdout.split(maxsplit=1)
        assert named == backend
        assert kept is None or used.strip() == kept
        assert (tmp_path / "curves.png").stat().st_size > 1000


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    pictures = []
    for name in ("$\\foo$", "\\foo"):
        plot_confusion(np.array([[5, 1], [2, 0]]), [name], tmp_path / "confusion.png")
        plot_precision_recall([(name, np.linspace(1, 0, 5))], tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            pictures.append(picture.convert("RGB").tobytes())
    assert pictures[0] != pictures[1]


def test_plots_name_characters_of_no_font_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="are drawn as empty boxes") as caught:
        plot_confusion(np.array([[5, 1], [2, 0]]), ["\U0002fa1d"], tmp_path / "confusion.png")
    assert len(caught) == 1
