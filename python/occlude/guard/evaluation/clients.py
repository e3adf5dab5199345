"""Who asks, through proxies and by the Open Inference Protocol."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import numpy as np

from occlude.guard.evaluation.attackers import Ask
from occlude.guard.evaluation.victims import INPUT, OUTPUT

#: Rows that are asked at once, of models that do not count them.
BATCH = 100


class ExhaustedError(RuntimeError):
    """A client has no answers left."""


class Client:
    """Asks through a proxy."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def of(self, model: str, batch: int = BATCH) -> Ask:
        def ask(rows: np.ndarray) -> np.ndarray:
            parts = [self._ask(model, rows[at : at + batch]) for at in range(0, len(rows), batch)]
            return np.concatenate(parts)

        return ask

    def answers(self, model: str, rows: np.ndarray, batch: int) -> int:
        """How many rows are answered before the first that are not."""
        ask = self.of(model, batch)
        for at in range(0, len(rows), batch):
            try:
                ask(rows[at : at + batch])
            except ExhaustedError:
                return at
        return len(rows)

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


class Named:
    """Models that want to know who asks, and clients with a name each. Each of these models
    counts for itself: to each of them everybody is new."""

    def __init__(self, folder: Path) -> None:
        given = json.loads((folder / "named.json").read_text())
        self.models: dict[str, str] = given["models"]
        #: So many queries of an attacker are asked of these, at most.
        self.looked_at: int = given["looked_at"]
        #: Answers that each name has of the model with budgets.
        self.of_each: int = given["of_each"]
        #: Rows that are asked at once.
        self.batch: int = given["batch"]
        self.clients = [Client(proxy) for proxy in given["proxies"]]

    def dealt(self, groups: list[int]) -> list[list[Client]]:
        """So many clients for each group, and none in two."""
        ends = np.cumsum(groups)
        if ends[-1] > len(self.clients):
            raise RuntimeError(f"{ends[-1]} names are wanted, there are {len(self.clients)}")
        return [self.clients[end - of : end] for end, of in zip(ends, groups, strict=True)]


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
        parts = [ask_some(rows[at : at + batch]) for at in range(0, len(rows), batch)]
        return np.concatenate(parts)

    return ask
