"""``python -m occlude.guard.evaluation make|attack``: the two halves, for the ``occlude`` program."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from occlude.guard.evaluation.attackers import ATTACKERS, EQUATIONS, Ask, Attacker
from occlude.guard.evaluation.clients import Client, Named, counted
from occlude.guard.evaluation.data import digits
from occlude.guard.evaluation.named import (
    Asker,
    Entry,
    budgeted,
    disguised,
    honest,
    throttled,
    worked,
)
from occlude.guard.evaluation.outliers import strangers
from occlude.guard.evaluation.victims import INPUT, to_onnx, victims

#: How many times a latency is measured, and how many times before that.
TIMES, BEFORE = 1000, 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m occlude.guard.evaluation")
    commands = parser.add_subparsers(required=True)
    for name, run in (("make", make), ("attack", attack)):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--seed", type=int, required=True)
        command.set_defaults(run=run)
        if name == "attack":
            command.add_argument("--proxy", required=True)
            command.add_argument("--queries", type=int, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)
    return 0


def make(arguments: argparse.Namespace) -> None:
    """Trains, and writes each model with its guard into the folder."""
    say("training models and guards")
    random = np.random.default_rng(arguments.seed)
    data = digits(random)
    listed = []
    models, sweeps = victims(data, random)
    for victim in models:
        model = victim.model
        entry: Entry = {"id": victim.id, "network": victim.network, "defence": victim.defence}
        entry["accuracy"] = victim.accuracy
        if victim.guard is not None:
            if victim.guard.misinformation is not None:
                model = victim.guard.misinformation.attach(model)
                entry["tau"] = victim.guard.tau
            (arguments.folder / f"{victim.id}.toml").write_text(victim.guard.to_toml())
        onnx.save(model, arguments.folder / f"{victim.id}.onnx")
        listed.append(entry)
    (arguments.folder / "victims.json").write_text(json.dumps(listed))
    of_networks = [
        {
            "network": one.network,
            "exposed": one.exposed,
            "outcomes": [vars(outcome) for outcome in one.outcomes],
        }
        for one in sweeps
    ]
    (arguments.folder / "sweeps.json").write_text(json.dumps(of_networks))
    _write_askers(arguments.folder, honest(data, np.random.default_rng(arguments.seed)))


def attack(arguments: argparse.Namespace) -> None:
    """Attacks each, and writes what came of it."""
    listed = json.loads((arguments.folder / "victims.json").read_text())
    data = digits(np.random.default_rng(arguments.seed))
    client = Client(arguments.proxy)
    budgets = [n for n in (100, 300, 1000, 3000, 10000) if n <= arguments.queries]
    clones: list[Entry] = []
    claims: list[Entry] = []
    askers = honest(data, np.random.default_rng(arguments.seed))
    named = Named(arguments.folder)
    looked_at = max(n for n in budgets if n <= named.looked_at)
    for victim in listed:
        ask = client.of(victim["id"])
        found = ask(data.held_out)
        victim["guarded_accuracy"] = _share(found.argmax(axis=1) == data.held_out_labels)
        # Of what a clone should say: the model's own answers, which only the owner knows.
        victim["outliers_kept"] = _kept(client, victim, listed)
        for attacker in _attackers(victim):
            for budget in budgets:
                say(f"{attacker.name} on {victim['id']}, {budget} queries")
                random = np.random.default_rng([arguments.seed, budget])
                asked: list[np.ndarray] = []
                limited = counted(ask, budget, asked)
                clone = attacker.attack(limited, budget, data.seeds, random)
                labels = clone.probabilities(data.held_out.astype(np.float64)).argmax(axis=1)
                clones.append(
                    {
                        "victim": victim["id"],
                        "network": victim["network"],
                        "defence": victim["defence"],
                        "attacker": attacker.name,
                        "queries": budget,
                        "accuracy": _share(labels == data.held_out_labels),
                        "fidelity": _share(labels == found.argmax(axis=1)),
                    }
                )
                # A copy with the watermark, and one of the same model without, which is innocent.
                if victim["id"] in ("digits-watermark", "digits-none"):
                    suspect, inputs = (f"claim-{len(claims)}.{end}" for end in ("onnx", "npz"))
                    onnx.save(to_onnx(clone), arguments.folder / suspect)
                    arrays: dict[str, Any] = {INPUT: np.concatenate(asked)}
                    np.savez(arguments.folder / inputs, **arrays)
                    claim = {"attacker": attacker.name, "queries": budget, "suspect": suspect}
                    claim |= {"learned_from": victim["defence"], "inputs": inputs}
                    claims.append(claim)
                if victim["id"] == "digits-none" and budget == looked_at:
                    askers += disguised(attacker, np.concatenate(asked), data, random)
    plain = client.of("digits-none")
    say("asking under several names")
    names = budgeted(named, data, arguments.seed)
    say("asking where somebody watches")
    stopped = throttled(named, askers, plain, data, arguments.seed)
    say("asking where answers cost work")
    paid = worked(named, askers)
    say("timing answers")
    result = {
        "format": 1,
        "seed": arguments.seed,
        "attackers": {one.name: one.explained for one in [*ATTACKERS, EQUATIONS]},
        "victims": listed,
        "sweeps": json.loads((arguments.folder / "sweeps.json").read_text()),
        "clones": clones,
        "names": names,
        "throttled": stopped,
        "worked": paid,
        "latency": _latency(client, named, data.held_out[:1]),
    }
    result |= _summaries(result)
    (arguments.folder / "result.json").write_text(json.dumps(result))
    (arguments.folder / "claims.json").write_text(json.dumps(claims))
    _write_askers(arguments.folder, askers)


def _write_askers(folder: Path, askers: list[Asker]) -> None:
    """What everybody asks, for thresholds to be chosen and to be looked at."""
    written = [asker.written(folder) for asker in askers]
    (folder / "watched.json").write_text(json.dumps(written))


def _attackers(victim: Entry) -> list[Attacker]:
    if victim["network"] == "logistic":
        return [EQUATIONS]
    # The larger network takes longer to ask, and shows whether anything depends on the size.
    return ATTACKERS if victim["network"] == "digits" else ATTACKERS[:2]


def _kept(client: Client, victim: Entry, listed: list[Entry]) -> float | None:
    """How many outliers keep the label that the same network gives unguarded."""
    if victim["defence"] not in ("misinformation", "together"):
        return None
    rows = strangers(300, np.random.default_rng(11))
    own = client.of(f"{victim['network']}-exposure")(rows)
    guarded = client.of(victim["id"])(rows)
    return _share(own.argmax(axis=1) == guarded.argmax(axis=1))


def _latency(client: Client, named: Named, row: np.ndarray) -> Entry:
    """Medians, of each defence beside the same network without."""
    counting = named.clients[0]
    pairs = [
        ("digits", "none", defence, client.of(f"digits-{defence}"))
        for defence in ("rounded", "labels", "watermark")
    ]
    pairs += [
        ("large", "exposure", defence, client.of(f"large-{defence}"))
        for defence in ("misinformation", "together")
    ]
    pairs += [
        ("digits", "none", defence, counting.of(named.models[model]))
        for model, defence in (
            ("counted", "budgets"),
            ("telemetry", "budgets and telemetry"),
            ("work", "budgets and work"),
        )
    ]
    each = []
    for network, without, defence, ask in pairs:
        unguarded, guarded = _medians(client.of(f"{network}-{without}"), ask, row)
        entry: Entry = {"network": network, "defence": defence, "unguarded_ms": unguarded}
        each.append(entry | {"guarded_ms": guarded, "ratio": guarded / unguarded})
    main = next(one for one in each if one["defence"] == "misinformation")
    return {**{name: main[name] for name in ("unguarded_ms", "guarded_ms", "ratio")}, "each": each}


def _medians(first: Ask, second: Ask, row: np.ndarray) -> tuple[float, float]:
    """Milliseconds of an answer of each, in turns; every other time the second goes first."""
    times: dict[Ask, list[float]] = {first: [], second: []}
    for run in range(BEFORE + TIMES):
        for ask in (first, second) if run % 2 else (second, first):
            begun = time.perf_counter()
            ask(row)
            times[ask].append(1e3 * (time.perf_counter() - begun))
    before, after = (float(np.median(all[BEFORE:])) for all in times.values())
    return before, after


def _summaries(result: Entry) -> dict[str, dict[str, float | int | None]]:
    """For each attacker, where the clone of the unguarded model is good enough first: 95% of
    the model itself; else at the largest number of queries."""
    summaries = {}
    by = {
        (one["network"], one["defence"]): one for one in result["victims"]
    }
    for name in result["attackers"]:
        network = "logistic" if name == "equations" else "digits"
        best = "labels" if name == "equations" else "misinformation"
        accuracy = {
            (one["defence"], one["queries"]): one["accuracy"]
            for one in result["clones"]
            if one["attacker"] == name and one["network"] == network
        }
        victim = by[network, "none"]["accuracy"]
        budgets = sorted({queries for _, queries in accuracy})
        good = [q for q in budgets if accuracy["none", q] >= 0.95 * victim]
        queries = good[0] if good else budgets[-1]
        lost = by[network, "none"]["accuracy"] - by[network, best]["guarded_accuracy"]
        summaries[name] = {
            "queries": queries,
            "reached_95_percent": bool(good),
            "undefended_clone_accuracy": accuracy["none", queries],
            "defended_clone_accuracy": accuracy[best, queries],
            "benign_loss_points": 100 * lost,
        }
    return summaries


def _share(of: np.ndarray) -> float:
    return float(of.mean())


def say(what: str) -> None:
    """Tells the program what is done."""
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
