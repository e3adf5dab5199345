"""What an owner wants, as the ``occlude`` program reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from occlude.guard._misinformation import Misinformation


@dataclass(frozen=True)
class Shaping:
    """How much of an answer is told: the ``top`` largest probabilities, rounded to
    ``decimals``; or the label alone."""

    top: int | None = None
    decimals: int | None = None
    label_only: bool = False


@dataclass(frozen=True)
class Budget:
    """How many queries there may be: in one window, ever, or both."""

    window: int | None = None
    total: int | None = None

    def to_toml(self) -> str:
        limits = {"window": self.window, "total": self.total}
        given = [f"{name} = {int(limit)}" for name, limit in limits.items() if limit is not None]
        return "{ " + ", ".join(given) + " }"


@dataclass(frozen=True)
class Budgets:
    """How many queries a model answers: to each client, and to all together.

    A query is one row of an answer. Windows are ``window_seconds`` long.
    """

    window_seconds: int
    client: Budget | None = None
    model: Budget | None = None


@dataclass(frozen=True)
class Telemetry:
    """What the owner hears of a client's queries, ``queries`` at a time: more than ``share`` of
    answers with a certainty below ``below``, or distances between inputs whose Shapiro-Wilk
    statistic is below ``normality``. With ``throttle_seconds`` the client waits then.

    ``occlude guard watch`` shows what thresholds do.
    """

    queries: int
    below: float | None = None
    share: float | None = None
    normality: float | None = None
    throttle_seconds: int | None = None

    def __post_init__(self) -> None:
        if (self.below is None) != (self.share is None):
            raise ValueError("below and share go together: give both or neither")
        if self.below is None and self.normality is None:
            raise ValueError("telemetry needs below and share, normality, or all of them")

    def to_toml(self) -> list[str]:
        lines = [f"queries = {int(self.queries)}"]
        if self.below is not None and self.share is not None:
            below, share = float(self.below), float(self.share)
            lines.append(f"uncertain = {{ below = {below!r}, share = {share!r} }}")
        if self.normality is not None:
            lines.append(f"distances = {{ normality = {float(self.normality)!r} }}")
        if self.throttle_seconds is not None:
            lines.append(f"throttle-seconds = {int(self.throttle_seconds)}")
        return lines


@dataclass(frozen=True)
class Work:
    """What an answer costs a client in work: ``2**bits`` hashes at first, twice as many with each
    ``gain`` that its answers told in a window, and never more than ``2**most_bits``. An answer
    tells 1 less its largest probability.

    ``occlude guard watch`` shows what that comes to.
    """

    bits: int
    gain: float
    most_bits: int

    def to_toml(self) -> list[str]:
        gain = f"gain = {float(self.gain)!r}"
        return [f"bits = {int(self.bits)}", gain, f"most-bits = {int(self.most_bits)}"]


@dataclass(frozen=True)
class Issuer:
    """Who says who a client is: the name that its tokens have as ``iss``, and its public key
    (Ed25519, PEM)."""

    name: str
    key: str


@dataclass(frozen=True)
class Guard:
    """The defences of one model.

    ``tau`` is the certainty from 0 to 1 at which an answer is half misinformation, ``nu`` how
    sharply that changes with the certainty. ``output`` is the model's output with the
    answers; it may be left out where ``misinformation`` knows it. ``budgets`` for each client
    need ``issuers``; ``telemetry`` and ``work`` need such budgets.
    """

    misinformation: Misinformation | None = None
    tau: float | None = None
    nu: float = 1000.0
    shaping: Shaping | None = None
    output: str | None = None
    budgets: Budgets | None = None
    issuers: tuple[Issuer, ...] = ()
    #: Change the answer to one input in so many, which :program:`occlude guard claim` finds in
    #: a copy.
    watermark: int | None = None
    telemetry: Telemetry | None = None
    work: Work | None = None

    def __post_init__(self) -> None:
        if (self.misinformation is None) != (self.tau is None):
            raise ValueError("misinformation and tau go together: give both or neither")
        if self.misinformation is None and self.output is None:
            raise ValueError("output: name the model's output that has the answers")
        defences = (self.misinformation, self.shaping, self.budgets, self.watermark)
        if all(defence is None for defence in defences):
            raise ValueError("a guard needs misinformation, shaping, a watermark or budgets")

    def to_toml(self) -> str:
        """The file that ``occlude seal --guard`` takes."""
        output = self.output
        if output is None and self.misinformation is not None:
            output = self.misinformation.answers
        # A string of JSON is one of TOML.
        lines = ["format = 1", f"output = {json.dumps(output)}"]
        if self.misinformation is not None and self.tau is not None:
            lines += ["", "[misinformation]", f"output = {json.dumps(self.misinformation.output)}"]
            lines += [f"tau = {float(self.tau)!r}", f"nu = {float(self.nu)!r}"]
        if self.shaping is not None:
            lines += ["", "[shaping]"]
            if self.shaping.top is not None:
                lines.append(f"top = {int(self.shaping.top)}")
            if self.shaping.decimals is not None:
                lines.append(f"decimals = {int(self.shaping.decimals)}")
            if self.shaping.label_only:
                lines.append("label-only = true")
        if self.watermark is not None:
            lines += ["", "[watermark]", f"one-in = {int(self.watermark)}"]
        if self.budgets is not None:
            lines += ["", "[budgets]", f"window-seconds = {int(self.budgets.window_seconds)}"]
            whose = {"client": self.budgets.client, "model": self.budgets.model}
            lines += [f"{name} = {one.to_toml()}" for name, one in whose.items() if one is not None]
        if self.telemetry is not None:
            lines += ["", "[telemetry]", *self.telemetry.to_toml()]
        if self.work is not None:
            lines += ["", "[work]", *self.work.to_toml()]
        for issuer in self.issuers:
            lines += ["", "[[issuers]]", f"name = {json.dumps(issuer.name)}"]
            lines.append(f"key = {json.dumps(issuer.key)}")
        return "\n".join(lines) + "\n"
