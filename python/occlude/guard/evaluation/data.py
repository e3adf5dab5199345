"""Handwritten digits: what a model's users ask about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
