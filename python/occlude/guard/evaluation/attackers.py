"""Who copies a model, each through the interface alone.

An attacker has ``ask``, which takes rows and gives rows of probabilities, and a number of rows
that it may ask. It gives a clone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from occlude.guard._network import BATCH, Network, cross_entropy, reverse_cross_entropy
from occlude.guard.evaluation.outliers import SIDE, STRANGE, letters, noise, photographs, strokes
from occlude.guard.evaluation.victims import CLASSES

Ask = Callable[[np.ndarray], np.ndarray]
Random = np.random.Generator

#: Steps of a clone's training, however many answers there are.
STEPS = 6000


@dataclass(frozen=True)
class Attacker:
    name: str
    #: What it does, for people.
    explained: str
    attack: Callable[[Ask, int, np.ndarray, np.random.Generator], Network]


def knockoff(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = _surrogate(budget, random)
    return _clone(rows, ask(rows), random)


def of_letters(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    half = budget // 2
    rows = np.concatenate([letters(half, random, STRANGE), photographs(budget - half, random)])
    rows = random.permutation(rows)
    return _clone(rows, ask(rows), random)


def copycat(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = _surrogate(budget, random)
    return _clone(rows, _labels(ask(rows)), random)


def at_random(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = noise(budget, random)
    return _clone(rows, ask(rows), random)


def jacobian(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = seeds[:budget]
    answers = ask(rows)
    while True:
        clone = _clone(rows, answers, random)
        room = budget - len(rows)
        if room <= 0:
            return clone
        # A step towards where the clone's answer changes the most.
        towards = np.eye(CLASSES)[answers.argmax(axis=1)]
        steps = np.sign(clone.slopes_of_input(rows.astype(np.float64), towards))
        more = np.clip(rows + 0.1 * steps, 0, 1).astype(np.float32)
        more = random.permutation(more)[:room]
        rows = np.concatenate([rows, more])
        answers = np.concatenate([answers, ask(more)])


def averaging(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = _surrogate(budget // 3, random)
    asked = [rows] + [_near(rows, random) for _ in range(2)]
    return _clone(rows, np.mean([ask(one) for one in asked], axis=0), random)


def dropping(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = _surrogate(budget // 2, random)
    answers, others = ask(rows), ask(_near(rows, random))
    near = np.abs(answers - others).sum(axis=1)
    # The steadier half: what is mixed in changes where the model itself does not.
    steady = near <= np.median(near)
    return _clone(rows[steady], answers[steady], random)


def complement(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    # Whoever knows that uncertain answers are wrong learns from them what an input is not.
    rows = _surrogate(budget, random)
    wrong = ask(rows).argmax(axis=1)
    clone = Network.drawn([SIDE * SIDE, 128, 64, CLASSES], random)
    loss = reverse_cross_entropy(wrong)
    clone.fit(rows.astype(np.float64), loss, epochs=_epochs(rows), rate=1e-3, random=random)
    return clone


def equations(ask: Ask, budget: int, seeds: np.ndarray, random: Random) -> Network:
    rows = random.uniform(0, 1, (budget, SIDE * SIDE)).astype(np.float32)
    answers = np.maximum(ask(rows), 1e-9)
    # Of a logistic regression: log p_i - log p_0 = (w_i - w_0) x + b_i - b_0.
    right = np.log(answers) - np.log(answers[:, :1])
    left = np.concatenate([rows, np.ones((budget, 1))], axis=1).astype(np.float64)
    solution = np.linalg.lstsq(left, right, rcond=None)[0]
    return Network([(solution[:-1], solution[-1])])


ATTACKERS = [
    Attacker("knockoff", "KnockoffNets: probabilities of drawn strokes and noise", knockoff),
    Attacker("copycat", "CopycatCNN: labels of drawn strokes and noise", copycat),
    Attacker("letters", "KnockoffNets: probabilities of letters and photographs", of_letters),
    Attacker("random", "probabilities of noise alone", at_random),
    Attacker("jbda", "Jacobian-based augmentation from 150 digits of its own", jacobian),
    Attacker("averaging", "adaptive: each input three times, moved a little, averaged", averaging),
    Attacker("dropping", "adaptive: answers that change with a little noise are dropped", dropping),
    Attacker("complement", "adaptive: takes every answer for what an input is not", complement),
]

EQUATIONS = Attacker("equations", "equation solving on a logistic regression", equations)


def _surrogate(count: int, random: Random) -> np.ndarray:
    drawn = count * 4 // 5
    rows = np.concatenate([strokes(drawn, random), noise(count - drawn, random)])
    return random.permutation(rows)


def _near(rows: np.ndarray, random: Random) -> np.ndarray:
    return np.clip(rows + random.normal(0, 0.02, rows.shape), 0, 1).astype(np.float32)


def _labels(answers: np.ndarray) -> np.ndarray:
    rows: np.ndarray = np.eye(CLASSES)[answers.argmax(axis=1)]
    return rows


def _clone(rows: np.ndarray, answers: np.ndarray, random: Random) -> Network:
    clone = Network.drawn([SIDE * SIDE, 128, 64, CLASSES], random)
    targets = answers / np.maximum(answers.sum(axis=1, keepdims=True), 1e-9)
    loss = cross_entropy(targets)
    clone.fit(rows.astype(np.float64), loss, epochs=_epochs(rows), rate=1e-3, random=random)
    return clone


def _epochs(rows: np.ndarray) -> int:
    return min(400, max(1, STEPS * BATCH // max(len(rows), BATCH)))
