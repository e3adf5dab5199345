"""Writes queries of a model, what telemetry has to say of each window of a hundred, and what
work all of them cost: the model run by ONNX Runtime, PRADA's algorithm from its paper,
Shapiro-Wilk by SciPy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.stats import shapiro

BELOW, WINDOW = 0.35, 100

folder = Path(sys.argv[1])
random = np.random.default_rng(0)
session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
name = session.get_inputs()[0].name
found = random.random((300, 64), dtype=np.float32)
# Half of these were made from those by a step of one length.
made = np.concatenate([found[:50] + np.float32(0.02), random.random((50, 64), dtype=np.float32)])
rows = np.concatenate([found, random.permutation(made)])
np.savez(folder / "queries.npz", **{name: rows})
(answers,) = session.run(None, {name: rows})

kept, steps, thresholds, windows = {}, {}, {}, []
for start in range(0, len(rows), WINDOW):
    distances = []
    for row, answer in zip(rows[start : start + WINDOW], answers[start : start + WINDOW]):
        label = int(answer.argmax())
        if label not in kept:
            kept[label], steps[label], thresholds[label] = [row], [0.0], 0.0
            continue
        others = np.array(kept[label], np.float64)
        nearest = np.sqrt(((others - row) ** 2).sum(axis=1)).min()
        distances.append(nearest)
        if nearest > thresholds[label] and sum(map(len, kept.values())) < 256:
            kept[label].append(row)
            steps[label].append(nearest)
            spread = np.mean(steps[label]) - np.std(steps[label])
            thresholds[label] = max(thresholds[label], spread)
    distances = np.array(distances)
    usual = np.abs(distances - distances.mean()) <= 3 * distances.std()
    uncertain = answers[start : start + WINDOW].max(axis=1) < BELOW
    normality = float(shapiro(distances[usual]).statistic)
    windows.append({"uncertain": float(uncertain.mean()), "normality": normality})
gained, hashes = 0, 0
for certainty in answers.max(axis=1).astype(np.float64):
    hashes += 2 ** min(10 + gained // 20_000, 22)
    gained += int(np.floor(1000 * (1 - certainty) + 0.5))
work = {"answers": len(rows), "gained": gained / 1000, "hashes": hashes}
work["bits"] = min(10 + gained // 20_000, 22)
(folder / "expected.json").write_text(json.dumps({"windows": windows, "work": work}))
