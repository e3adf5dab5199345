#!/usr/bin/env python3
"""Measures Occlude against plain ONNX Runtime on well-known models: `make bench`.

    scripts/bench.py MODELS RESULTS [--runs N] [vgg16 resnet50 ...]

Runs `occlude bench --json` on each model in the folder MODELS, writes one line of
JSON for each to RESULTS/NAME.json, and prints one table of all.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_intermixed_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = [COLUMNS]
    for name in arguments.names or BENCHMARKED:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        report = measure(arguments.models / f"{name}.onnx", arguments.runs)
        (arguments.results / f"{name}.json").write_text(json.dumps(report) + "\n")
        lines += rows(report)
    print(f"\n{table(lines)}\n\n{NOTES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
