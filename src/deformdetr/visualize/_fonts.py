"""Fonts for names in any script."""

import functools
import warnings
from collections.abc import Set as AbstractSet
from pathlib import Path

from PIL import ImageFont

from deformdetr.visualize._matplotlib import matplotlib_module

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# This font has a box for every character, which names its script.
_PLACEHOLDERS = "Last Resort"


def load_font(text: str, size: int, font: str | Path | None = None) -> Font:
    """Return a font that has the characters of a text.

    Args:
        text: Text to draw.
        size: Size of the font in pixels.
        font: Font file. None takes Pillow's own font for ASCII, and for other characters the installed font that has
            most of them, with a warning if some are missing.

    Raises:
        OSError: If the file does not exist or is not a font.
    """
    found = find_font(text) if font is None else font
    return ImageFont.load_default(size=size) if found is None else _read(found, size)


def check_font(font: str | Path) -> None:
    """Check that a file is a font, before anything is computed that it will be needed for.

    Raises:
        OSError: If it does not exist or is not a font.

    Examples:
        >>> from deformdetr.visualize import check_font
        >>> check_font("missing.ttf")
        Traceback (most recent call last):
            ...
        OSError: missing.ttf cannot be read as a font: cannot open resource
    """
    _read(font, size=10)


def _read(font: str | Path, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(font), size)
    except OSError as error:
        raise OSError(f"{font} cannot be read as a font: {error}") from error


def find_font(text: str) -> str | None:
    """Return the file of the installed font that has most characters of a text, or None for ASCII.

    A character that no font has is drawn as an empty box, and a warning names it.
    """
    characters = frozenset(ord(each) for each in text if not each.isspace())
    return None if all(code < 128 for code in characters) else _best_font(characters)


@functools.lru_cache(maxsize=1024)
def _best_font(characters: frozenset[int]) -> str | None:
    try:
        installed = matplotlib_module("font_manager").fontManager.ttflist
    except ImportError:
        _warn(characters, "matplotlib, which finds installed fonts, is missing")
        return None
    best, missing = None, characters
    # The plainest font first: pictures should not change with what else is installed.
    fonts = [entry for entry in installed if not entry.name.startswith(_PLACEHOLDERS)]
    for entry in sorted(fonts, key=_order):
        left = characters - _characters(entry.fname)
        if len(left) < len(missing):
            best, missing = str(entry.fname), left
        if not missing:
            break
    if missing:
        _warn(missing, "no installed font has them")
    return best


def _order(entry: object) -> tuple[bool, bool, bool, str]:
    name, style, weight = (str(getattr(entry, each)) for each in ("name", "style", "weight"))
    is_plain = style == "normal" and weight in ("400", "normal", "regular", "book")
    return name != "DejaVu Sans", "sans" not in name.lower(), not is_plain, str(getattr(entry, "fname", ""))


@functools.lru_cache(maxsize=256)
def _characters(file: str) -> AbstractSet[int]:
    characters: AbstractSet[int] = matplotlib_module("ft2font").FT2Font(file).get_charmap().keys()
    return characters


def _warn(characters: AbstractSet[int], reason: str) -> None:
    listed = "".join(map(chr, sorted(characters)[:20]))
    warnings.warn(
        f"the characters {listed!r} are drawn as empty boxes: {reason}; install a font for them (fonts-noto-cjk has "
        "Chinese, Japanese and Korean), or name a font file with `font`",
        UserWarning,
        stacklevel=2,
    )
