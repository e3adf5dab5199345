"""What comes of who asks where each client is counted: budgets, telemetry, and work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from occlude.guard.evaluation.attackers import ATTACKERS, Ask, Attacker
from occlude.guard.evaluation.clients import Client, Named, counted, under_names
from occlude.guard.evaluation.data import Digits
from occlude.guard.evaluation.victims import INPUT

#: One object of the report.
Entry = dict[str, Any]

#: Under how many names a model with budgets is copied.
NAMES = [1, 3, 10]

#: How many clients somebody may be, and how many digits each query is hidden among.
IDENTITIES, HIDDEN_AMONG = 5, 9

#: How many clients are honest where thresholds are chosen, and where false alarms are counted.
HONEST = 40

#: Of them, how many are asked through the interface.
HONEST_ASKED = 3

#: Who is answered differently in telemetry; others ask about the same inputs as one of them.
DIFFERENT = ("knockoff", "letters", "random", "jbda", "averaging", "dropping")

#: Who asks under several names, too: one without inputs of the model's kind, and one with some.
SEVERAL = ("knockoff", "jbda")
HIDDEN = "knockoff, hidden"


@dataclass(frozen=True)
class Asker:
    """Somebody, and all that it asks about."""

    who: str
    #: By each of its names.
    rows: list[np.ndarray]
    #: Whose copy it makes.
    attacker: Attacker | None = None
    #: Of so many answers it learns from one.
    one_in: int = 1

    def written(self, folder: Path) -> Entry:
        """Into a file for each name."""
        files = []
        for number, rows in enumerate(self.rows):
            who = self.who.replace(", ", "-").replace(" ", "-")
            file = f"watched-{who}-{number}-of-{len(self.rows)}.npz"
            arrays: dict[str, Any] = {INPUT: rows}
            np.savez(folder / file, **arrays)
            files.append(file)
        return {"who": self.who, "queries": self.queries, "files": files}

    @property
    def queries(self) -> int:
        return sum(map(len, self.rows))


def honest(data: Digits, random: np.random.Generator) -> list[Asker]:
    """Clients who ask about digits: some to choose thresholds with, and others."""
    return [
        Asker(who, [random.permutation(digits) for _ in range(HONEST)])
        for who, digits in (("chosen with", data.chosen_with), ("honest", data.held_out))
    ]


def disguised(
    attacker: Attacker, rows: np.ndarray, data: Digits, random: np.random.Generator
) -> list[Asker]:
    """The same queries of one client, of several, and hidden among nine times as many digits."""
    several = [rows[one::IDENTITIES] for one in range(IDENTITIES)]
    digits = data.seeds[random.integers(len(data.seeds), size=HIDDEN_AMONG * len(rows))]
    moved = np.clip(digits + random.normal(0, 0.05, digits.shape), 0, 1).astype(np.float32)
    hidden = random.permutation(np.concatenate([rows, moved]))
    return [
        Asker(attacker.name, [rows], attacker),
        Asker(attacker.name, several, attacker),
        Asker(f"{attacker.name}, hidden", [hidden], attacker, HIDDEN_AMONG + 1),
    ]


def budgeted(named: Named, data: Digits, seed: int) -> Entry:
    """Copies of the model with budgets by one who has several names."""
    model = named.models["budgets"]
    knockoff = next(one for one in ATTACKERS if one.name == "knockoff")
    clones = []
    for clients in named.dealt(NAMES):
        asks = [client.of(model, named.batch) for client in clients]
        budget = named.of_each * len(clients)
        asked: list[np.ndarray] = []
        limited = counted(under_names(asks, named.batch), budget, asked)
        accuracy = copied(knockoff, limited, budget, data, seed)
        one = data.held_out[:1]
        clones.append(
            {
                "names": len(clients),
                "answers": sum(map(len, asked)),
                "beyond": sum(client.answers(model, one, 1) for client in clients),
                "accuracy": accuracy,
            }
        )
    return {"of_each": named.of_each, "clones": clones}


def throttled(
    named: Named, askers: list[Asker], plain: Ask, data: Digits, seed: int
) -> list[Entry]:
    """How many answers each gets before telemetry stops it, and what a copy is worth that was
    made of so many."""
    model = named.models["telemetry"]
    chosen = [_first(askers, "honest", HONEST_ASKED)]
    chosen += [one for one in askers if one.who in DIFFERENT and len(one.rows) == 1]
    chosen += [one for one in askers if one.who in SEVERAL and len(one.rows) == IDENTITIES]
    chosen += [one for one in askers if one.who == HIDDEN]
    entries = []
    for asker, clients in _dealt(named, chosen):
        of_names = zip(clients, asker.rows, strict=True)
        answers = sum(client.answers(model, rows, named.batch) for client, rows in of_names)
        accuracy = None
        if asker.attacker is not None:
            learned = answers // asker.one_in
            accuracy = copied(asker.attacker, counted(plain, learned), learned, data, seed)
        entries.append(_entry(asker, answers=answers, accuracy=accuracy))
    return entries


def worked(named: Named, askers: list[Asker]) -> list[Entry]:
    """How long answers take that cost work, and the same ones where they do not."""
    chosen = [_first(askers, "honest", 1)]
    chosen += [one for one in askers if one.who in SEVERAL and len(one.rows) == 1]
    chosen += [one for one in askers if one.who == SEVERAL[0] and len(one.rows) == IDENTITIES]
    entries = []
    for asker, clients in _dealt(named, chosen):
        seconds = {}
        for model in ("work", "counted"):
            begun = time.perf_counter()
            for client, rows in zip(clients, asker.rows, strict=True):
                client.of(named.models[model], named.batch)(rows)
            seconds[model] = time.perf_counter() - begun
        entry = _entry(asker, seconds=seconds["work"], seconds_without=seconds["counted"])
        entries.append(entry)
    return entries


def copied(attacker: Attacker, ask: Ask, budget: int, data: Digits, seed: int) -> float:
    """The share of held-out digits that a copy has right."""
    clone = attacker.attack(ask, budget, data.seeds, np.random.default_rng([seed, budget]))
    labels = clone.probabilities(data.held_out.astype(np.float64)).argmax(axis=1)
    return float((labels == data.held_out_labels).mean())


def _first(askers: list[Asker], who: str, names: int) -> Asker:
    asker = next(one for one in askers if one.who == who)
    return replace(asker, rows=asker.rows[:names])


def _dealt(named: Named, askers: list[Asker]) -> Iterator[tuple[Asker, list[Client]]]:
    return zip(askers, named.dealt([len(one.rows) for one in askers]), strict=True)


def _entry(asker: Asker, **found: Any) -> Entry:
    entry = {"who": asker.who, "names": len(asker.rows), "queries": asker.queries}
    return {**entry, **found}
