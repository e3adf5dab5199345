"""``python -m occlude.guard.evaluation make|attack``: the two halves, for the ``occlude`` program."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from occlude.guard.evaluation.attackers import ATTACKERS, EQUATIONS, Ask, Attacker, knockoff
from occlude.guard.evaluation.data import Digits, digits, letters, strokes
from occlude.guard.evaluation.victims import INPUT, OUTPUT, to_onnx, victims

#: Rows that are asked at once.
BATCH = 100

#: One object of the report.
Entry = dict[str, Any]

#: How many times a latency is measured.
TIMES = 300

#: How many clients are honest.
HONEST = 40

#: How many clients somebody may be, and how many digits each query is hidden among.
IDENTITIES, HIDDEN_AMONG = 5, 9


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
    listed = []
    models, sweeps = victims(digits(random), random)
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


def attack(arguments: argparse.Namespace) -> None:
    """Attacks each, and writes what came of it."""
    listed = json.loads((arguments.folder / "victims.json").read_text())
    data = digits(np.random.default_rng(arguments.seed))
    client = Client(arguments.proxy)
    budgets = [n for n in (100, 300, 1000, 3000, 10000) if n <= arguments.queries]
    clones: list[Entry] = []
    claims: list[Entry] = []
    watched = _honest(arguments.folder, data, np.random.default_rng(arguments.seed))
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
                if victim["id"] == "digits-none" and budget == budgets[-1]:
                    rows = np.concatenate(asked)
                    watched += _watched(arguments.folder, attacker.name, rows, data, random)
    names = _names(arguments.folder, data, arguments.seed)
    say("timing answers")
    result = {
        "format": 1,
        "seed": arguments.seed,
        "attackers": {one.name: one.explained for one in [*ATTACKERS, EQUATIONS]},
        "victims": listed,
        "sweeps": json.loads((arguments.folder / "sweeps.json").read_text()),
        "clones": clones,
        "names": names,
        "latency": _latency(client, data.held_out[:1]),
    }
    result |= _summaries(result)
    (arguments.folder / "result.json").write_text(json.dumps(result))
    (arguments.folder / "claims.json").write_text(json.dumps(claims))
    (arguments.folder / "watched.json").write_text(json.dumps(watched))


class ExhaustedError(RuntimeError):
    """A client has no answers left."""


class Client:
    """Asks through a proxy, by the Open Inference Protocol."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def of(self, model: str) -> Ask:
        def ask(rows: np.ndarray) -> np.ndarray:
            parts = [self._ask(model, rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
            return np.concatenate(parts)

        return ask

    def _ask(self, model: str, rows: np.ndarray) -> np.ndarray:
        shape = list(rows.shape)
        tensor = {"name": INPUT, "datatype": "FP32", "shape": shape, "data": rows.ravel().tolist()}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": OUTPUT}]})
        self.connection.request("POST", f"/v2/models/{model}/infer", body)
        answer = self.connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 429:
            raise ExhaustedError(model)
        if answer.status != 200:
            raise RuntimeError(f"{model}: {answer.status}: {said.get('error')}")
        output = said["outputs"][0]
        return np.array(output["data"]).reshape(output["shape"])


def counted(ask: Ask, budget: int, asked: list[np.ndarray] | None = None) -> Ask:
    """Lets no attacker ask more than it says, and adds what it does to ``asked``."""
    left = budget

    def ask_counted(rows: np.ndarray) -> np.ndarray:
        nonlocal left
        left -= len(rows)
        if left < 0:
            raise RuntimeError(f"an attacker asked {-left} rows more than its {budget}")
        if asked is not None:
            asked.append(np.asarray(rows, np.float32))
        return ask(rows)

    return ask_counted


def under_names(asks: list[Ask], batch: int) -> Ask:
    """Asks as one client, and as the next where that one has no answers left."""
    left = list(asks)

    def ask_some(rows: np.ndarray) -> np.ndarray:
        while left:
            try:
                return left[0](rows)
            except ExhaustedError:
                left.pop(0)
        raise ExhaustedError("no name has answers left")

    def ask(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([ask_some(rows[at : at + batch]) for at in range(0, len(rows), batch)])

    return ask


def _names(folder: Path, data: Digits, seed: int) -> Entry:
    """Copies of a model with budgets by one who has several names, a proxy for each."""
    given = json.loads((folder / "names.json").read_text())
    clones = []
    for proxies in given["groups"]:
        say(f"knockoff on {given['model']}, {len(proxies)} names")
        asks = [Client(proxy).of(given["model"]) for proxy in proxies]
        budget = given["of_each"] * len(proxies)
        random = np.random.default_rng([seed, budget])
        asked: list[np.ndarray] = []
        limited = counted(under_names(asks, given["batch"]), budget, asked)
        clone = knockoff(limited, budget, data.seeds, random)
        labels = clone.probabilities(data.held_out.astype(np.float64)).argmax(axis=1)
        clones.append(
            {
                "names": len(proxies),
                "answers": sum(map(len, asked)),
                "beyond": sum(_answers(ask, data.held_out[:1]) for ask in asks),
                "accuracy": _share(labels == data.held_out_labels),
            }
        )
    return {"of_each": given["of_each"], "clones": clones}


def _answers(ask: Ask, rows: np.ndarray) -> bool:
    try:
        ask(rows)
    except ExhaustedError:
        return False
    return True


def _honest(folder: Path, data: Digits, random: np.random.Generator) -> list[Entry]:
    """Clients who ask about digits: some to choose thresholds with, and others."""

    return [
        _client(folder, name, [random.permutation(digits) for _ in range(HONEST)])
        for name, digits in (("chosen with", data.chosen_with), ("honest", data.held_out))
    ]


def _watched(
    folder: Path, name: str, rows: np.ndarray, data: Digits, random: np.random.Generator
) -> list[Entry]:
    """The same queries of one client, of several, and hidden among nine times as many digits."""
    several = [rows[one::IDENTITIES] for one in range(IDENTITIES)]
    digits = data.seeds[random.integers(len(data.seeds), size=HIDDEN_AMONG * len(rows))]
    moved = np.clip(digits + random.normal(0, 0.05, digits.shape), 0, 1).astype(np.float32)
    hidden = random.permutation(np.concatenate([rows, moved]))
    return [
        _client(folder, name, [rows]),
        _client(folder, name, several),
        _client(folder, f"{name}, hidden", [hidden]),
    ]


def _client(folder: Path, name: str, of_each: list[np.ndarray]) -> Entry:
    files = []
    for number, rows in enumerate(of_each):
        of_all = len(of_each)
        file = f"watched-{name.replace(', ', '-').replace(' ', '-')}-{number}-of-{of_all}.npz"
        arrays: dict[str, Any] = {INPUT: rows}
        np.savez(folder / file, **arrays)
        files.append(file)
    return {"who": name, "queries": sum(len(rows) for rows in of_each), "files": files}


def _attackers(victim: Entry) -> list[Attacker]:
    if victim["network"] == "logistic":
        return [EQUATIONS]
    # The larger network takes longer to ask, and shows whether anything depends on the size.
    return ATTACKERS if victim["network"] == "digits" else ATTACKERS[:2]


def _kept(client: Client, victim: Entry, listed: list[Entry]) -> float | None:
    """How many outliers keep the label that the same network gives unguarded."""
    if victim["defence"] not in ("misinformation", "together"):
        return None
    rows = np.concatenate(
        [make(300, np.random.default_rng(11)) for make in (strokes, letters)]
    )
    own = client.of(f"{victim['network']}-exposure")(rows)
    guarded = client.of(victim["id"])(rows)
    return _share(own.argmax(axis=1) == guarded.argmax(axis=1))


def _latency(client: Client, row: np.ndarray) -> dict[str, float]:
    """Medians in turns, the same network with and without misinformation."""
    times: dict[str, list[float]] = {"exposure": [], "misinformation": []}
    for run in range(TIMES + 20):
        for defence, measured in times.items():
            ask = client.of(f"large-{defence}")
            begun = time.perf_counter()
            ask(row)
            if run >= 20:
                measured.append(time.perf_counter() - begun)
    without, guarded = (float(np.median(one)) * 1e3 for one in times.values())
    return {"unguarded_ms": without, "guarded_ms": guarded, "ratio": guarded / without}


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
