#!/usr/bin/env python3
"""Measures Occlude against plain ONNX Runtime on well-known models: `make bench`.

    scripts/bench.py MODELS RESULTS [--runs N] [vgg16 resnet50 ...]

Runs `occlude bench --json` on each model in the folder MODELS, writes one line of
JSON for each to RESULTS/NAME.json, and prints one table of all, and which of the
project's goals hold. Exit code 1 if one does not; on a shared machine, measure again.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from models import BENCHMARKED

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("OCCLUDE_BINARY", ROOT / "target" / "release" / "occlude"))

COLUMNS = [
    "model", "budget", "p50 ms", "ratio", "min ms", "ratio", "load ms", "first ms", "peak MiB",
    "resident MiB", "opened MiB", "difference",
]
NOTES = """\
2 threads, batch 1; ratios to plain ONNX Runtime in turns with it.
first: from the start of loading to the first answer. opened: by one run.
peak: the highest anonymous memory of a process of its own, loading included, nothing
subtracted; sealed weights lie in a shared mapping, untrusted memory, and are not in it.
difference: the largest from plain ONNX Runtime's outputs, and the largest of those."""

# Ratios of the shortest times, at most, by model and budget.
LARGEST_RATIOS = {
    "vgg16": {"resident": 1.02, "50%": 1.08, "25%": 1.10, "0%": 1.12},
    "resnet50": {"resident": 1.02, "50%": 1.08, "25%": 1.12, "0%": 1.15},
    "bert": {"resident": 1.02, "50%": 1.03, "25%": 1.05, "0%": 1.06},
    "mobilenetv2": {"resident": 1.02, "50%": 1.10, "25%": 1.15, "0%": 1.20},
}
# Peak memory in MiB with everything streamed, besides tables that must stay resident.
LARGEST_PEAKS = {"vgg16": 80, "resnet50": 44, "bert": 40, "mobilenetv2": 24}
# Peak memory with everything resident, as a part of the weights alone: stricter than the
# goal, which counts activations too.
LARGEST_OF_WEIGHTS = {"vgg16": 1.15, "bert": 1.15}


def goals(name: str, report: dict) -> list[tuple[str, float, float]]:
    """What is to be at most how much, and how much it is."""
    entries = {entry["budget"]: entry for entry in report["budgets"] if "occlude" in entry}
    found = []
    for budget, largest in LARGEST_RATIOS.get(name, {}).items():
        ratio = entries[budget]["ratio_min"] if budget in entries else float("inf")
        found.append((f"{name}, {budget}: ratio of the shortest times", largest, ratio))
    if name in LARGEST_PEAKS and "0%" in entries:
        streamed = entries["0%"]["occlude"]
        peak = streamed["peak_protected_mib"] - streamed["resident_mib"]
        found.append((f"{name}, 0%: peak MiB besides tables", LARGEST_PEAKS[name], peak))
    if "resident" not in entries:
        return found
    resident = entries["resident"]["occlude"]
    if name in LARGEST_OF_WEIGHTS:
        part = resident["peak_protected_mib"] / resident["weights_mib"]
        what = f"{name}, resident: peak as a part of the weights"
        found.append((what, LARGEST_OF_WEIGHTS[name], part))
    if name == "vgg16":
        plain = report["plain"]["load_ms"] + report["plain"]["p50_ms"]
        first = resident["first_answer_ms"] / plain
        found.append(("vgg16, resident: first answer as a part of plain's", 0.5, first))
    return found


def measure(model: pathlib.Path, runs: int) -> dict:
    command = [BINARY, "bench", model, "--runs", str(runs), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def rows(report: dict) -> list[list[str]]:
    plain = report["plain"]
    found = [[
        report["model"].removesuffix(".onnx"), "plain", number(plain["p50_ms"]), "",
        number(plain["min_ms"]), "", number(plain["load_ms"]), "", number(plain["peak_mib"]),
    ]]
    for entry in report["budgets"]:
        if "refused" in entry:
            found.append(["", entry["budget"], f"refused: {entry['refused']}"])
            continue
        occlude = entry["occlude"]
        found.append([
            "", entry["budget"], number(occlude["p50_ms"]), f"{entry['ratio_p50']:.2f}",
            number(occlude["min_ms"]), f"{entry['ratio_min']:.2f}", number(occlude["load_ms"]),
            number(occlude["first_answer_ms"]), number(occlude["peak_protected_mib"]),
            number(occlude["resident_mib"]), number(occlude["opened_mib_per_run"]),
            f"{entry['max_abs_diff']:.0e} of {entry['max_abs_output']:.2g}",
        ])
    return found


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(lines: list[list[str]]) -> str:
    # What a refusal says is no figure, and makes no column wide.
    figures = [line for line in lines if len(line) != 3]
    widths = [max((len(line[at]) for line in figures if at < len(line)), default=0)
              for at in range(len(COLUMNS))]
    # Words to the left, numbers to the right.
    return "\n".join(
        "  ".join(cell.ljust(widths[at]) if at < 2 or len(line) == 3 else cell.rjust(widths[at])
                  for at, cell in enumerate(line)).rstrip()
        for line in lines
    )


def parse_arguments(description: str) -> argparse.Namespace:
    """Which models are measured, where to, and how often; the folder of results is there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="MODEL", default=BENCHMARKED)
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_intermixed_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> int:
    arguments = parse_arguments(__doc__.splitlines()[0])
    lines = [COLUMNS]
    judged = []
    for name in arguments.names:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        report = measure(arguments.models / f"{name}.onnx", arguments.runs)
        (arguments.results / f"{name}.json").write_text(json.dumps(report) + "\n")
        lines += rows(report)
        judged += goals(name, report)
    print(f"\n{table(lines)}\n\n{NOTES}")
    missed = [goal for goal in judged if goal[2] > goal[1]]
    print(f"\ngoals: {len(judged) - len(missed)} of {len(judged)} hold")
    for what, largest, found in missed:
        print(f"missed: {what} is {found:.3g}, the goal is at most {largest}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
