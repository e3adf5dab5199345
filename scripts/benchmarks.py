#!/usr/bin/env python3
"""Measures what protection costs on well-known models and writes docs/benchmarks.md's table.

    scripts/benchmarks.py MODELS RESULTS [--runs N] [vgg16 resnet50 ...]

Runs `occlude evaluate cost` on each model in the folder MODELS, keeps its reports as
RESULTS/NAME.html and RESULTS/NAME.json, and, where no model was left out, replaces the
table between the marks in docs/benchmarks.md with what was measured. Only Python's standard library is needed.
"""

import json
import pathlib
import subprocess
import sys

from bench import BINARY, ROOT, parse_arguments
from models import BENCHMARKED

DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

COLUMNS = (
    "", "p50 ms", "ratio", "p99 ms", "answers/s", "CPU ms", "first answer ms", "peak MiB",
    "opened MiB/s", "difference",
)


def main() -> int:
    arguments = parse_arguments(__doc__.splitlines()[0])
    reports = []
    for name in arguments.names:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        json_file = arguments.results / f"{name}.json"
        measure(arguments.models / f"{name}.onnx", json_file, arguments.runs)
        reports.append(json.loads(json_file.read_text()))
    if arguments.names != BENCHMARKED:
        print(f"reports in {arguments.results}; only a run of every model refreshes {DOCUMENT}")
        return 0
    written = document(reports)
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(before + BEGIN + written + END + after)
    print(f"{DOCUMENT}: refreshed; reports in {arguments.results}")
    return 0


def measure(model: pathlib.Path, json_file: pathlib.Path, runs: int) -> None:
    subprocess.run(
        [
            BINARY, "evaluate", "cost", model, "--runs", str(runs),
            "--json", json_file, "--report", json_file.with_suffix(".html"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def document(reports: list[dict]) -> str:
    machine = reports[0]["machine"]
    lines = [
        f"Measured on {machine['processors']} processors of an {machine['processor']}, "
        f"{reports[0]['threads']} threads, batch {reports[0]['batch']}. "
        f"{reports[0]['tee']['meaning']}\n",
    ]
    for report in reports:
        name = report["model"].removesuffix(".onnx")
        weights = report["weights_mib"]
        lines.append(f"\n### {name}, {number(weights)} MiB of weights\n\n")
        lines.append(f"| {' | '.join(COLUMNS)} |\n|{'---|' + '---:|' * (len(COLUMNS) - 1)}\n")
        lines += [f"| {row['name']} | {cells(row)} |\n" for row in report["rows"]]
        lines.append(f"\n{costs(report['costs'])} Outputs are up to "
                     f"{number(report['max_abs_output'])}.\n")
    return "".join(lines)


def cells(row: dict) -> str:
    if "does_not_fit" in row:
        words = f"does not fit, smallest {row['smallest_mib']:.0f} MiB"
        return " | ".join([words, *[""] * (len(COLUMNS) - 2)])
    if "not_measured" in row:
        return " | ".join([f"not measured: {row['not_measured']}", *[""] * (len(COLUMNS) - 2)])
    return " | ".join([
        number(row["p50_ms"]), f"{row['ratio_p50']:.2f}", number(row["p99_ms"]),
        number(row["per_second"]), number(row["cpu_ms"]), number(row["first_answer_ms"]),
        number(row["peak_protected_mib"]), number(row["opened_mib_per_second"]),
        f"{row['max_abs_diff']:.0e}",
    ])


def costs(parts: dict) -> str:
    named = [
        ("the engine", parts["engine_ms"]),
        (f"opening weights with {parts['crypto_budget']} resident", parts["crypto_ms"]),
        ("the channel", parts["channel_ms"]),
    ]
    known = [
        f"{name} {value:+.2f} ms ({100 * value / parts['plain_ms']:+.0f} %)"
        for name, value in named
        if value is not None
    ]
    return f"Of an answer's {number(parts['plain_ms'])} ms: {', '.join(known)}."


def number(value: float | None) -> str:
    """Three digits that count, or all before the point."""
    if value is None:
        return ""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
