"""``python -m occlude.guard``: train a misinformation model, and choose its threshold."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx

from occlude.guard import Guard, Misinformation, Outcome, sweep, train
from occlude.guard._plot import plot
from occlude.guard._run import run
from occlude.guard._train import BACKENDS, answers_of

DATA = """The data is a NumPy archive (.npz): `inputs`, rows of the model's input; `labels`, their
classes from 0 on; `outliers`, rows that are not of the model's kind, such as what somebody without
your data would ask with."""


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (OSError, ValueError, KeyError) as error:
        print(f"occlude.guard: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m occlude.guard",
        description="Make copying a model by asking it dearer. It does not prevent it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    wide = argparse.RawDescriptionHelpFormatter
    one = commands.add_parser(
        "train",
        help="fit a misinformation model, and write the model with it",
        epilog=DATA + "\n\nThen: python -m occlude.guard tune, and occlude seal --guard",
        formatter_class=wide,
    )
    one.add_argument("model", type=Path, metavar="MODEL.onnx")
    one.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="GUARDED.onnx")
    one.add_argument("--answers", help="the output with the probabilities (default: the last)")
    one.add_argument("--trunk", help="a tensor with features, computed once for both models "
                                     "(default: the input)")
    one.add_argument("--hidden", type=int, default=64, help="units of its layer (default: 64)")
    one.add_argument("--epochs", type=int, default=40, help="(default: 40)")
    one.add_argument("--seed", type=int, default=0, help="(default: 0)")
    one.add_argument("--backend", choices=BACKENDS, default="auto",
                     help="what trains (default: PyTorch where it is installed, else NumPy)")
    one.set_defaults(run=run_train)
    two = commands.add_parser(
        "tune",
        help="show what each threshold does to held-out data",
        epilog=DATA,
        formatter_class=wide,
    )
    two.add_argument("model", type=Path, metavar="GUARDED.onnx", help="what train wrote")
    two.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
    two.add_argument("--answers", help="the output with the probabilities (default: the last but "
                                       "the misinformation)")
    two.add_argument("--nu", type=float, default=1000.0, help="(default: 1000)")
    two.add_argument("--json", action="store_true", help="print JSON")
    two.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it into this file")
    two.add_argument("--tau", type=float, help="choose this threshold, and write --guard")
    two.add_argument("--guard", type=Path, metavar="GUARD.toml",
                     help="the file for occlude seal --guard")
    two.set_defaults(run=run_tune)
    return parser


def run_train(arguments: argparse.Namespace) -> None:
    model, data = onnx.load(arguments.model), np.load(arguments.data)

    def progress(epoch: int, epochs: int, loss: float) -> None:
        if sys.stderr.isatty():
            end = "\n" if epoch == epochs else ""
            print(f"\repoch {epoch} of {epochs}, loss {loss:.4f}", end=end, file=sys.stderr)

    wrong = train(
        model,
        data["inputs"],
        data["labels"],
        data["outliers"],
        output=arguments.answers,
        trunk=arguments.trunk,
        hidden=arguments.hidden,
        epochs=arguments.epochs,
        seed=arguments.seed,
        backend=arguments.backend,
        progress=progress,
    )
    onnx.save(wrong.attach(model), arguments.output)
    print(f"{arguments.output}: {wrong.answers} with {wrong.output}")


def run_tune(arguments: argparse.Namespace) -> None:
    if (arguments.tau is None) != (arguments.guard is None):
        raise ValueError("--tau and --guard go together")
    model, data = onnx.load(arguments.model), np.load(arguments.data)
    wrong = Misinformation.output
    outputs = [output.name for output in model.graph.output]
    if wrong not in outputs:
        raise ValueError(f"{arguments.model} has no output {wrong}: it is not what train wrote")
    answers = arguments.answers or answers_of(model)
    both = [run(model, data[name], [answers, wrong]) for name in ("inputs", "outliers")]
    benign, outliers = ((right, wrongly) for right, wrongly in both)
    outcomes = sweep(benign, data["labels"], outliers, nu=arguments.nu)
    if arguments.json:
        print(json.dumps([vars(outcome) for outcome in outcomes], indent=2))
    else:
        print(table(outcomes))
    if arguments.plot is not None:
        arguments.plot.write_text(plot(outcomes), encoding="utf-8")
    if arguments.guard is not None:
        guard = Guard(Misinformation("", answers, ()), arguments.tau, arguments.nu)
        arguments.guard.write_text(guard.to_toml(), encoding="utf-8")
        print(f"{arguments.guard}: seal with occlude seal {arguments.model} --guard {arguments.guard}",
              file=sys.stderr)


def table(outcomes: list[Outcome]) -> str:
    """The sweep, with a bar of what is defended."""
    lines = [" tau   right, benign   label kept, benign   label kept, outliers   outliers defended"]
    for one in outcomes:
        bar = "#" * round(20 * (1 - one.outliers_kept))
        lines.append(
            f"{one.tau:4.2f} {one.benign_accuracy:14.1%} {one.benign_kept:20.1%} "
            f"{one.outliers_kept:22.1%}   {bar}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
