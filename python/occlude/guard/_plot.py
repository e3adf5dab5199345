"""A sweep, drawn: one SVG file, for any browser."""

from __future__ import annotations

from occlude.guard._sweep import Outcome

WIDTH, HEIGHT, MARGIN = 640, 420, 56

STYLE = """
  svg { font: 12px system-ui, sans-serif; fill: #1c1c1c; background: #fff }
  .grid { stroke: #ccc } .line { stroke: #1f6feb; fill: none; stroke-width: 2 } circle { fill: #1f6feb }
  @media (prefers-color-scheme: dark) {
    svg { fill: #eee; background: #16181c } .grid { stroke: #444 }
    .line { stroke: #6ea8fe } circle { fill: #6ea8fe }
  }
"""


def plot(outcomes: list[Outcome]) -> str:
    """Right answers to the owner's kind of inputs against the share of outliers that are
    defended: a point for each threshold, best in the upper right corner."""
    if not outcomes:
        raise ValueError("a plot needs one threshold or more")
    # From the next lower tenth, so that small losses can be seen.
    lowest = min(int(10 * one.benign_accuracy) / 10 for one in outcomes)
    lowest = min(lowest, 0.9)

    def across(share: float) -> float:
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def down(accuracy: float) -> float:
        return HEIGHT - MARGIN - (accuracy - lowest) / (1 - lowest) * (HEIGHT - 2 * MARGIN)

    parts = []
    for tenth in range(0, 11, 2):
        x = across(tenth / 10)
        parts += [_line(x, down(lowest), x, down(1)), _text(x, HEIGHT - 36, f"{10 * tenth}%", "middle")]
        accuracy = lowest + (1 - lowest) * tenth / 10
        y = down(accuracy)
        parts += [_line(across(0), y, across(1), y), _text(MARGIN - 8, y + 4, f"{accuracy:.0%}", "end")]
    points = [(across(1 - one.outliers_kept), down(one.benign_accuracy)) for one in outcomes]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    labelled: list[tuple[float, float]] = []
    for one, (x, y) in zip(outcomes, points, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>tau {one.tau:.2f}</title></circle>')
        # A label that would lie on another one is left out; the point's title has it.
        if all(abs(x - other_x) > 30 or abs(y - other_y) > 14 for other_x, other_y in labelled):
            labelled.append((x, y))
            parts.append(_text(x, y - 9, f"{one.tau:.2f}", "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT - 12, "outliers defended, by tau", "middle"))
    parts.append(_text(MARGIN, 24, "right answers to the owner's kind of inputs", "start"))
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return f"{head}\n<style>{STYLE}</style>\n{body}\n</svg>\n"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
