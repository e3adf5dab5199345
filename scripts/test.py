"""Runs every test and says at the end how many passed, failed and were skipped.

A test that cannot run here (no PostgreSQL, no permission) prints a line that
starts with `skipped:` and passes; that line is found in the output of passing
tests, which the terminal is spared, and the test is counted as skipped. The
whole output is kept in `target/test.log`.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

SIMULATED = ",".join(
    f"occlude-{crate}/simulated" for crate in ("attest", "broker", "cli", "client", "server")
)
# Each with what it is for. The second is the default build of the crate that
# judges evidence: simulated evidence must be refused there.
CARGO_RUNS = {
    "all crates, with the simulated TEE": ["--workspace", "--features", SIMULATED],
    "attest without the simulated TEE": ["--package", "occlude-attest"],
}

STARTED = re.compile(r"^\s+(?:Running (?:unittests )?(\S+) \(.*?([^/]+?)-[0-9a-f]{16}\)|Doc-tests (\S+))")
RESULT = re.compile(r"^test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored;")
SECTION = re.compile(r"^---- (.+) stdout ----$")
OUTCOME = re.compile(r"^(fuzz|sanitize) (\S+): (passed|failed|skipped), (.*)$")


@dataclass
class Count:
    """What the tests came to."""

    passed: int = 0
    failed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class CargoOutput:
    """Reads the output of `cargo test -- --show-output` line by line."""

    def __init__(self, count: Count):
        self.count = count
        self.binary = None
        self.finished = True
        self.section = None
        self.successes = False

    def line(self, line: str) -> bool:
        """Takes one line; says whether a person wants to see it."""
        if started := STARTED.match(line):
            self.close()
            file, binary, documentation = started.groups()
            self.binary = f"{binary} {file}" if binary else f"{documentation} (documentation)"
            self.finished = False
            self.successes = False
            return True
        if result := RESULT.match(line):
            passed, failed, _ = (int(number) for number in result.groups())
            self.count.passed += passed
            self.count.failed += failed
            self.finished = True
            self.successes = False
            self.section = None
            return True
        if section := SECTION.match(line):
            self.section = section.group(1)
        elif line.startswith("successes:"):
            self.successes = True
            self.section = None
        elif line.startswith("failures:"):
            self.successes = False
            self.section = None
        elif self.section is not None and line.startswith("skipped:"):
            self.skip(self.section, line.removeprefix("skipped:").strip())
            return True
        elif line.startswith("test ") and line.endswith(" ... FAILED"):
            self.count.failures.append(f"{self.binary}: {line[5:-11]}")
            return True
        elif ignored := re.match(r"^test (.+) \.\.\. ignored(?:, (.*))?$", line):
            # Not among the passed, so nothing is taken away from them.
            self.count.skipped[f"{self.binary}: {ignored.group(1)}"] = ignored.group(2) or "ignored"
            return True
        elif re.match(r"^(test .+ \.\.\. ok|running \d+ tests?|)$", line):
            return False
        return not self.successes

    def skip(self, test: str, reason: str) -> None:
        name = f"{self.binary}: {test}"
        if name not in self.count.skipped:
            self.count.skipped[name] = reason
            self.count.passed -= 1

    def close(self) -> None:
        """A binary that started and gave no result died."""
        if not self.finished:
            self.count.failed += 1
            self.count.failures.append(f"{self.binary}: ended without a result")
            self.finished = True


def stream(command: list[str], log, take) -> int:
    """Runs `command`, hands each line to `take`, and shows those that it wants."""
    environment = os.environ | {"CARGO_TERM_COLOR": "never"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for raw in process.stdout:
            log.write(raw)
            line = raw.rstrip("\n")
            if take(line):
                print(line, flush=True)
        return process.wait()


def cargo_tests(name: str, selection: list[str], log, count: Count) -> None:
    print(f"\n== {name}", flush=True)
    output = CargoOutput(count)
    command = ["cargo", "test", "--release", "--locked", "--no-fail-fast", *selection, "--", "--show-output"]
    failed_before = count.failed
    status = stream(command, log, output.line)
    output.close()
    if status != 0 and count.failed == failed_before:
        count.failed += 1
        count.failures.append(f"{name}: cargo ended with {status}")


def script(title: str, command: list[str], log, count: Count) -> None:
    """Runs a script that says of each thing it tries what came of it."""
    print(f"\n== {title}", flush=True)

    def take(line: str) -> bool:
        if outcome := OUTCOME.match(line):
            kind, target, verdict, why = outcome.groups()
            if verdict == "passed":
                count.passed += 1
            elif verdict == "failed":
                count.failed += 1
                count.failures.append(f"{kind} {target}: {why}")
            else:
                count.skipped[f"{kind} {target}"] = why
        return True

    failed_before = count.failed
    status = stream(command, log, take)
    if status != 0 and count.failed == failed_before:
        count.failed += 1
        count.failures.append(f"{title}: ended with {status}")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fuzz-seconds", type=int, default=5)
    options = arguments.parse_args()

    count = Count()
    began = time.monotonic()
    TARGET.mkdir(parents=True, exist_ok=True)
    with open(TARGET / "test.log", "w", encoding="utf-8") as log:
        for name, selection in CARGO_RUNS.items():
            cargo_tests(name, selection, log, count)
        script("fuzz targets", ["scripts/fuzz", str(options.fuzz_seconds)], log, count)
        script("sanitizers", ["scripts/sanitize"], log, count)

    if count.skipped:
        print("\nskipped:")
        for name, reason in count.skipped.items():
            print(f"  {name}: {reason}")
    if count.failures:
        print("\nfailed:")
        for name in count.failures:
            print(f"  {name}")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"\nin {minutes} min {seconds:02} s; the whole output is in {log.name}")
    print(f"{count.passed} passed, {count.failed} failed, {len(count.skipped)} skipped")
    return 1 if count.failed else 0


if __name__ == "__main__":
    sys.exit(main())
