"""What each threshold does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What one threshold does to held-out data. Shares, from 0 to 1."""

    tau: float
    #: Of the owner's kind of inputs, how many get the right label.
    benign_accuracy: float
    #: Of them, how many keep the label that the model alone gives.
    benign_kept: float
    #: The same of outliers: what a copy learns right. 1 less it is defended.
    outliers_kept: float


def share(certainty: np.ndarray, tau: float, nu: float = 1000.0) -> np.ndarray:
    """How much of an answer is misinformation: ``1 / (1 + exp(nu (certainty - tau)))``."""
    # Of large numbers the exponential is infinite, and the share 0.
    steps = nu * (np.asarray(certainty, dtype=np.float64) - tau)
    shares: np.ndarray = 1 / (1 + np.exp(np.clip(steps, -700, 700)))
    return shares


def mix(right: np.ndarray, wrong: np.ndarray, tau: float, nu: float = 1000.0) -> np.ndarray:
    """What a guarded model answers, before shaping."""
    part = share(right.max(axis=1), tau, nu)[:, None]
    mixed: np.ndarray = (1 - part) * right + part * wrong
    return mixed


def sweep(
    benign: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    outliers: tuple[np.ndarray, np.ndarray],
    *,
    taus: Sequence[float] = tuple(np.round(np.arange(0, 1.0001, 0.05), 2)),
    nu: float = 1000.0,
) -> list[Outcome]:
    """What each of ``taus`` does. ``benign`` and ``outliers`` are the owner's answers and the
    misinformation model's (:meth:`Misinformation.answer`), ``labels`` the right classes."""
    outcomes = []
    for tau in taus:
        answered = mix(*benign, tau, nu).argmax(axis=1)
        of_outliers = mix(*outliers, tau, nu).argmax(axis=1)
        outcomes.append(
            Outcome(
                float(tau),
                float((answered == labels).mean()),
                float((answered == benign[0].argmax(axis=1)).mean()),
                float((of_outliers == outliers[0].argmax(axis=1)).mean()),
            )
        )
    return outcomes
