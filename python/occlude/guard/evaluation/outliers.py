"""What is no digit: letters, photographs, strokes and noise, seen as digits are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import font_amatic_sc  # type: ignore[import-untyped]
import font_caladea  # type: ignore[import-untyped]
import font_fredoka_one  # type: ignore[import-untyped]
import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Pixels of a side while drawing, and of an image.
DRAWN, SIDE = 32, 8

#: Letters that do not look like digits.
LETTERS = "ACEFHJKLMNPRTUVWXYadefhkmnprtuwx"

#: How large letters are drawn before they are fitted, and how much thicker: a pen's stroke is.
POINTS, THICKER = 64, 3

#: Fonts that owners have: one that Pillow comes with, and one with serifs.
OWNED = (None, font_caladea)

#: Others, for what is asked: one as if written by hand, and one with round ends.
STRANGE = (font_amatic_sc, font_fredoka_one)


def letters(
    count: int,
    random: np.random.Generator,
    fonts: tuple[ModuleType | None, ...] = OWNED,
) -> np.ndarray:
    """Letters of fonts, fitted into the square as digits are, and moved a little."""
    glyphs = [glyph for font in fonts for glyph in _glyphs(font)]
    images = np.zeros((count, DRAWN, DRAWN))
    for image in images:
        glyph = glyphs[random.integers(len(glyphs))]
        height = int(random.integers(24, DRAWN + 1))
        width = int(random.integers(height * 5 // 8, height + 1))
        drawn = np.asarray(glyph.resize((width, height)), np.float64) / 255
        top, left = random.integers(DRAWN - height + 1), random.integers(DRAWN - width + 1)
        image[top : top + height, left : left + width] = drawn
    return _scaled(images) * random.uniform(0.6, 1, (count, 1)).astype(np.float32)


def photographs(count: int, random: np.random.Generator) -> np.ndarray:
    """Pieces of two photographs, a temple and a flower, which scikit-learn comes with."""
    pictures = _photographs()
    images = np.zeros((count, DRAWN, DRAWN))
    for image in images:
        picture = pictures[random.integers(len(pictures))]
        side = int(random.integers(DRAWN, min(picture.size) + 1))
        left, top = (int(random.integers(length - side + 1)) for length in picture.size)
        piece = picture.resize((DRAWN, DRAWN), box=(left, top, left + side, top + side))
        image[:] = np.asarray(piece, np.float64) / 255
    return _scaled(images)


def strokes(count: int, random: np.random.Generator) -> np.ndarray:
    """One to three curves of a pen: what a stranger draws who has no digits."""
    images = np.zeros((count, DRAWN, DRAWN))
    steps = np.linspace(0, 1, 60)[:, None]
    for image in images:
        for _ in range(random.integers(1, 4)):
            start, bend, end = random.uniform(4, 28, (3, 2))
            line = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
            rows, columns = np.clip(line.round().astype(int), 1, DRAWN - 2).T
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    image[rows + down, columns + right] = 1
    return _scaled(images)


def noise(count: int, random: np.random.Generator) -> np.ndarray:
    """Pixels that have nothing to do with each other."""
    return (random.random((count, SIDE * SIDE)) * random.random((count, 1))).astype(np.float32)


def strangers(count: int, random: np.random.Generator) -> np.ndarray:
    """What somebody asks about who has no digits: as many of each, and of no font that an owner
    has."""
    return np.concatenate(
        [letters(count, random, STRANGE), strokes(count, random), photographs(count, random)]
    )


@cache
def _glyphs(font: ModuleType | None) -> list[Image.Image]:
    """Each letter of each style of a font, white on black and without a margin."""
    files = [] if font is None else sorted(Path(font.font_directory).glob("*.ttf"))
    faces = [ImageFont.truetype(file, POINTS) for file in files]
    return [_drawn(letter, face) for face in faces or [_of_pillow()] for letter in LETTERS]


def _of_pillow() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(POINTS)
    assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow draws no TrueType fonts"
    return font


def _drawn(letter: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("L", (3 * POINTS, 3 * POINTS))
    ImageDraw.Draw(image).text(
        (POINTS, POINTS), letter, font=face, fill=255, stroke_width=THICKER
    )
    return image.crop(image.getbbox())


@cache
def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    return [Image.fromarray(pixels).convert("L") for pixels in load_sample_images().images]


def _scaled(images: np.ndarray) -> np.ndarray:
    step = DRAWN // SIDE
    means: np.ndarray = images.reshape(len(images), SIDE, step, SIDE, step).mean(axis=(2, 4))
    return means.reshape(len(images), SIDE * SIDE).astype(np.float32)
