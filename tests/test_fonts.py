"""Fonts that have the characters of names."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageFont

from deformdetr.visualize import _fonts, draw_boxes

CAT = "猫"
IMAGE, BOX, LABEL = (
    torch.full((3, 300, 300), 90, dtype=torch.uint8),
    torch.tensor([[50.0, 90, 200, 200]]),
    torch.tensor([0]),
)


def write_font(path: Path, characters: str, name: str = "Test Sans") -> Path:
    """Write a font in which every character is a full block."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    block, empty = pen.glyph(), TTGlyphPen(None).glyph()
    names = [f"g{ord(each):x}" for each in characters]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", *names])
    font.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    font.setupGlyf({".notdef": empty, **dict.fromkeys(names, block)})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (900, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> font_manager.FontManager:
    """Return a font manager that knows matplotlib's own fonts alone."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    _fonts._best_font.cache_clear()
    yield manager
    _fonts._best_font.cache_clear()


def ink(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_ascii_keeps_the_font_of_pillow() -> None:
    assert _fonts.find_font("cat 0.93") is None
    assert isinstance(_fonts.load_font("cat", 20), ImageFont.FreeTypeFont)


@pytest.mark.parametrize("name", ["Größe", "кошка", "γάτα", "Łódź"])
def test_letters_beyond_ascii_have_glyphs(installed: font_manager.FontManager, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font = _fonts.load_font(name, 24)
    boxes = {font.getmask(each).getbbox() and bytes(font.getmask(each)) for each in dict.fromkeys(name)}
    # Missing glyphs would all look the same.
    assert len(boxes) == len(dict.fromkeys(name))


def test_the_installed_font_that_has_the_characters_is_drawn(
    installed: font_manager.FontManager, tmp_path: Path
) -> None:
    font = write_font(tmp_path / "cjk.ttf", CAT + "0.:123456789 ")
    installed.addfont(str(font))
    assert _fonts.find_font(CAT) == str(font)
    drawn = ink(draw_boxes(IMAGE, BOX, LABEL, [CAT]))
    assert (drawn == ink(draw_boxes(IMAGE, BOX, LABEL, [CAT], font=font))).all()
    # Bright text on the dark color of the tag.
    assert (drawn == 255).all(axis=-1).sum() > 100


def test_characters_of_no_font_are_named(installed: font_manager.FontManager) -> None:
    with pytest.warns(UserWarning, match=f"'{CAT}' are drawn as empty boxes: no installed font has them"):
        draw_boxes(IMAGE, BOX, LABEL, [CAT])


def test_what_is_no_font_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.ttf", Path(__file__)):
        with pytest.raises(OSError, match=f"{path.name} cannot be read as a font"):
            draw_boxes(IMAGE, BOX, LABEL, ["cat"], font=path)
