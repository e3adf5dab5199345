"""What the demonstration draws: headings, commands, digits, bars, hex dumps.

Escape sequences only when standard output is a terminal and NO_COLOR is unset;
block characters only when its encoding has them.
"""

import os
import re
import sys
import textwrap

WIDTH = 78
_TERMINAL = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
_UNICODE = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

SHADES = " ░▒▓█" if _UNICODE else " .:*#"
BAR = "█" if _UNICODE else "#"
RULE = "─" if _UNICODE else "-"
ELLIPSIS = "…" if _UNICODE else "..."
REFUSED = "✗" if _UNICODE else "x"
DONE = "✓" if _UNICODE else "+"


def _style(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _TERMINAL else text


def bold(text: str) -> str:
    return _style("1", text)


def dim(text: str) -> str:
    return _style("2", text)


def say(text: str = "") -> None:
    print(text, flush=True)


def heading(title: str) -> None:
    """One step of the story."""
    say()
    say(bold(f"{RULE * 2} {title} {RULE * (WIDTH - len(title) - 4)}"))


def loud(text: str) -> None:
    """The one line that nobody may overlook."""
    line = f" !!  {text}  !! "
    say(_style("1;7", line.center(WIDTH)) if _TERMINAL else line.center(WIDTH).rstrip())


def explain(text: str) -> None:
    """A paragraph, wrapped."""
    for line in textwrap.wrap(" ".join(text.split()), WIDTH):
        say(line)


def command(words: list[str]) -> None:
    """A command as a person would type it, wrapped with backslashes."""
    lines: list[str] = []
    for argument in _arguments(words):
        if lines and len(lines[-1]) + 1 + len(argument) <= WIDTH - 8:
            lines[-1] += f" {argument}"
        else:
            lines.append(argument)
    for index, line in enumerate(lines):
        prompt = "$ " if index == 0 else "      "
        say(bold(f"  {prompt}{line}" + (" \\" if index + 1 < len(lines) else "")))


def _arguments(words: list[str]) -> list[str]:
    """The words, with each option's value kept beside it."""
    arguments: list[str] = []
    for index, word in enumerate(words):
        value = index > 0 and words[index - 1].startswith("-") and not word.startswith("-")
        if value or word == "&":
            arguments[-1] += f" {word}"
        else:
            arguments.append(word)
    return arguments


def output(text: str) -> None:
    """What a command printed, indented and folded, with long digests shortened."""
    for line in text.rstrip().splitlines():
        indent = " " * (6 + len(line) - len(line.lstrip()))
        folded = textwrap.wrap(shorten(line), WIDTH - 4, initial_indent="    ", subsequent_indent=indent,
                               drop_whitespace=True, break_long_words=False, break_on_hyphens=False)
        for part in folded or [""]:
            say(part.rstrip())


def shorten(text: str) -> str:
    """Cuts the middle out of digests, keys and log lines' times, for reading."""
    text = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{52}([0-9a-f]{4})\b", rf"\1{ELLIPSIS}\2", text)
    text = re.sub(r"(occlude-owner1[0-9a-z]{6})[0-9a-z]{46,}([0-9a-z]{4})\b", rf"\1{ELLIPSIS}\2", text)
    return re.sub(r"^\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d+Z +", r"\1 ", text)


def done(text: str) -> None:
    _verdict(_style("32", DONE), text)


def refused(text: str) -> None:
    _verdict(_style("31", REFUSED), text)


def _verdict(mark: str, text: str) -> None:
    lines = textwrap.wrap(text, WIDTH - 4)
    say(f"  {mark} {lines[0]}")
    for line in lines[1:]:
        say(f"    {line}")


def image(pixels, rows: int, columns: int) -> list[str]:
    """A grey-scale image, values 0 to 1, two characters a pixel."""
    lines = []
    for row in range(rows):
        line = ""
        for column in range(columns):
            value = float(pixels[row * columns + column])
            line += SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)] * 2
        lines.append(line)
    return lines


def bars(values) -> list[str]:
    """One line for each value, 0 to 1."""
    return [f"{index}  {value:8.6f}  {BAR * round(float(value) * 28)}" for index, value in enumerate(values)]


def side_by_side(left: list[str], right: list[str], gap: int = 6) -> None:
    width = max(len(line) for line in left)
    height = max(len(left), len(right))
    left = left + [""] * (height - len(left))
    right = right + [""] * (height - len(right))
    for a, b in zip(left, right, strict=True):
        say(f"    {a:<{width}}{' ' * gap}{b}".rstrip())


def hex_dump(data: bytes, start: int = 0, lines: int = 4) -> None:
    """`lines` lines of sixteen bytes from `start`, as `hexdump -C` shows them."""
    for offset in range(start, min(start + 16 * lines, len(data)), 16):
        row = data[offset : offset + 16]
        numbers = " ".join(f"{byte:02x}" for byte in row[:8]) + "  " + " ".join(f"{byte:02x}" for byte in row[8:])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        say(f"    {offset:08x}  {numbers:<48}  |{text}|")
