"""Handwritten digits, and what is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Pixels of a side while drawing, and of an image.
DRAWN, SIDE = 32, 8

#: Capital letters that do not look like digits, five columns of seven dots each.
LETTERS = [
    (0x7E, 0x11, 0x11, 0x11, 0x7E),  # A
    (0x3E, 0x41, 0x41, 0x41, 0x22),  # C
    (0x7F, 0x49, 0x49, 0x49, 0x41),  # E
    (0x7F, 0x09, 0x09, 0x09, 0x01),  # F
    (0x7F, 0x08, 0x08, 0x08, 0x7F),  # H
    (0x20, 0x40, 0x41, 0x3F, 0x01),  # J
    (0x7F, 0x08, 0x14, 0x22, 0x41),  # K
    (0x7F, 0x40, 0x40, 0x40, 0x40),  # L
    (0x7F, 0x02, 0x0C, 0x02, 0x7F),  # M
    (0x7F, 0x04, 0x08, 0x10, 0x7F),  # N
    (0x7F, 0x09, 0x09, 0x09, 0x06),  # P
    (0x7F, 0x09, 0x19, 0x29, 0x46),  # R
    (0x01, 0x01, 0x7F, 0x01, 0x01),  # T
    (0x3F, 0x40, 0x40, 0x40, 0x3F),  # U
    (0x1F, 0x20, 0x40, 0x20, 0x1F),  # V
    (0x3F, 0x40, 0x38, 0x40, 0x3F),  # W
    (0x63, 0x14, 0x08, 0x14, 0x63),  # X
    (0x07, 0x08, 0x70, 0x08, 0x07),  # Y
]


@dataclass(frozen=True)
class Digits:
    """Real digits (UCI, "Optical Recognition of Handwritten Digits"), pixels from 0 to 1."""

    known: np.ndarray
    known_labels: np.ndarray
    #: What the owner chooses a threshold with.
    chosen_with: np.ndarray
    chosen_with_labels: np.ndarray
    #: What clones are judged by: nobody learned it.
    held_out: np.ndarray
    held_out_labels: np.ndarray
    #: A few that an attacker has.
    seeds: np.ndarray


def digits(random: np.random.Generator) -> Digits:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    loaded = load_digits()
    order = random.permutation(len(loaded.data))
    rows = (loaded.data[order] / 16).astype(np.float32)
    labels = loaded.target[order]
    parts, of_labels = (np.split(array, [950, 1150, 1300]) for array in (rows, labels))
    return Digits(
        parts[0], of_labels[0], parts[1], of_labels[1], parts[3], of_labels[3], parts[2]
    )


def letters(count: int, random: np.random.Generator) -> np.ndarray:
    """Printed capital letters, moved and scaled a little."""
    images = np.zeros((count, DRAWN, DRAWN))
    for image in images:
        columns = LETTERS[random.integers(len(LETTERS))]
        dots = np.array([[column >> row & 1 for column in columns] for row in range(7)])
        height, width = random.integers(3, 5), random.integers(3, 6)
        drawn = np.kron(dots, np.ones((height, width)))[:DRAWN, :DRAWN]
        top = random.integers(DRAWN - drawn.shape[0] + 1)
        left = random.integers(DRAWN - drawn.shape[1] + 1)
        image[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return _scaled(images) * random.uniform(0.6, 1, (count, 1)).astype(np.float32)


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


def _scaled(images: np.ndarray) -> np.ndarray:
    step = DRAWN // SIDE
    means: np.ndarray = images.reshape(len(images), SIDE, step, SIDE, step).mean(axis=(2, 4))
    return means.reshape(len(images), SIDE * SIDE).astype(np.float32)
