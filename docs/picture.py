"""Draws the README's picture, a front as SVG, from a finished study: `make picture STUDY=... WORKSPACE=...`.

It reads what `autocompress front STUDY --json` prints and writes plain SVG, so neither a browser nor a plotting
library is needed; the interactive figures are those of `autocompress report`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLUE, ORANGE, RED, INK, MUTED, GRID = "#0072B2", "#E69F00", "#D55E00", "#1b1f24", "#59636e", "#e3e5e1"
WIDTH, HEIGHT, LEFT, TOP, PANEL, PLOT = 960, 430, 66, 84, 410, 272
VISIBLE_DROP = 0.05  # losses beyond it would flatten the rest; they are counted in the caption


def draw(document: dict[str, Any]) -> str:
    """The picture of a front document: loss against size on the left, against latency on the right."""
    base = document["baseline"]
    split = "test" if base["test"] is not None else "val"
    sign = -1 if document.get("direction") == "minimize" else 1
    points = [{**p, "drop": sign * (base[split] - p[split])} for p in document["front"] if p[split] is not None]
    points = [p for p in points if p["origin"] != "baseline"]
    shown = [p for p in points if p["drop"] <= VISIBLE_DROP]
    high = max([p["drop"] for p in shown], default=0.0) * 1.1 + 0.002
    low = min([p["drop"] for p in shown] + [0.0]) - 0.1 * high
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>{escape(_title(document, split))}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        f'<text x="20" y="32" font-size="17" font-weight="600" fill="{INK}">{escape(_title(document, split))}</text>',
        f'<text x="20" y="54" fill="{MUTED}">{escape(_caption(document, len(points) - len(shown)))}</text>',
    ]
    sizes = [p["size_bytes"] for p in shown] + [base["size_bytes"]]
    times = [p["latency_ms"] for p in shown] + [base["latency_ms"]]
    metric = str(base["metric"]).rpartition(":")[2].replace("_", " ")
    for left, title, key, to_x, ticks in (
        (LEFT, "file size (log scale)", "size_bytes", _log_axis(sizes), _size_ticks(sizes)),
        (LEFT + PANEL + 62, "latency of one run", "latency_ms", _linear_axis(times), _time_ticks(times)),
    ):
        panel = _Panel(left=left, to_x=to_x, low=low, high=high)
        parts += panel.axes(
            title, f"{metric} lost on {'test' if split == 'test' else 'validation'} data, points", ticks
        )
        parts += panel.points(shown, base, key)
    return "\n".join([*parts, *_legend(shown), "</svg>", ""])


class _Panel:
    def __init__(self, *, left: float, to_x: Callable[[float], float], low: float, high: float) -> None:
        self.left, self.to_x, self.low, self.high = left, to_x, low, high

    def x(self, value: float) -> float:
        return self.left + self.to_x(value) * PANEL

    def y(self, drop: float) -> float:
        return TOP + PLOT * (self.high - drop) / (self.high - self.low)

    def axes(self, title: str, y_title: str, ticks: Sequence[tuple[float, str]]) -> list[str]:
        parts = []
        for drop in _steps(self.low, self.high):
            y, weight = self.y(drop), 1.6 if drop == 0 else 1
            parts.append(_line(self.left, y, self.left + PANEL, y, GRID if drop else MUTED, weight))
            parts.append(_text(self.left - 8, y + 4, f"{drop * 100:g}", anchor="end"))
        for value, label in ticks:
            x = self.x(value)
            parts.append(_line(x, TOP, x, TOP + PLOT, GRID, 1))
            parts.append(_text(x, TOP + PLOT + 18, label, anchor="middle"))
        parts.append(_text(self.left + PANEL / 2, TOP + PLOT + 38, title, anchor="middle", color=INK))
        middle = TOP + PLOT / 2
        turned = f' transform="rotate(-90 {self.left - 44:.0f} {middle:.0f})"'
        parts.append(_text(self.left - 44, middle, y_title, anchor="middle", color=INK, extra=turned))
        return parts

    def points(self, shown: Sequence[dict[str, Any]], base: dict[str, Any], key: str) -> list[str]:
        parts = [self._staircase([(p[key], p["drop"]) for p in shown])]
        for p in shown:
            x, y = self.x(p[key]), self.y(p["drop"])
            hint = f"<title>trial {p['trial']}: {escape(p.get('words', ''))}</title>"
            if p["origin"] == "anchor":
                parts.append(
                    f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{ORANGE}">{hint}</rect>'
                )
            else:
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{BLUE}">{hint}</circle>')
        parts.append(_star(self.x(base[key]), self.y(0.0)))
        return parts

    def _staircase(self, corners: Sequence[tuple[float, float]]) -> str:
        """The best of these two objectives alone; a point off the line is on the front for the third."""
        best: list[tuple[float, float]] = []
        for value, drop in sorted(corners):
            if not best or drop < best[-1][1]:
                best.append((value, drop))
        path = ""
        for value, drop in best:
            x, y = self.x(value), self.y(drop)
            path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
        return f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="1.8" opacity="0.55"/>' if path else ""


def _title(document: dict[str, Any], split: str) -> str:
    base, front = document["baseline"], document["front"]
    small = min((p for p in front if _drop(p, base, split) <= 0.01), key=lambda p: p["size_bytes"], default=None)
    fast = min((p for p in front if _drop(p, base, split) <= 0.01), key=lambda p: p["latency_ratio"], default=None)
    if small is None or fast is None:
        return f"{document['study']}: {len(front)} points"
    size, speed = base["size_bytes"] / small["size_bytes"], 1 / fast["latency_ratio"]
    won = f"up to {size:.0f}x smaller and up to {speed:.1f}x faster"
    return f"{document['study']}: within 1 point of the dense model, {won}"


def _drop(point: dict[str, Any], base: dict[str, Any], split: str) -> float:
    return math.inf if point[split] is None else float(base[split] - point[split])


def _caption(document: dict[str, Any], hidden: int) -> str:
    device = document["device"]
    threads = f"{device['threads']} thread{'' if device['threads'] == 1 else 's'}"
    text = (
        f"{len(document['front'])} files on the front after {document['spent_s'] / 60:.0f} min; "
        f"measured with {device['runtime']}, {threads}, batch {device['batch']}"
    )
    if not hidden:
        return text
    return f"{text}; {hidden} that lose{'s' if hidden == 1 else ''} more than {VISIBLE_DROP * 100:g} points not drawn"


def _legend(shown: Sequence[dict[str, Any]]) -> list[str]:
    y, parts, x = HEIGHT - 16, [], LEFT
    for label, color, present in (
        ("found by the search", BLUE, any(p["origin"] != "anchor" for p in shown)),
        ("what everybody would try (int8, uniform sweep)", ORANGE, any(p["origin"] == "anchor" for p in shown)),
        ("dense model", RED, True),
    ):
        if present:
            square = f'<rect x="{x - 5}" y="{y - 9}" width="10" height="10" rx="{5 * (color == BLUE)}" fill="{color}"/>'
            parts.append(_star(x, y - 4) if color == RED else square)
            parts.append(_text(x + 11, y, label))
            x += 40 + 7 * len(label)
    parts.append(_text(WIDTH - 20, y, "lower left is better", anchor="end"))
    return parts


def _log_axis(values: Sequence[float]) -> Callable[[float], float]:
    low, high = math.log(min(values) * 0.8), math.log(max(values) * 1.25)
    return lambda value: (math.log(value) - low) / (high - low)


def _linear_axis(values: Sequence[float]) -> Callable[[float], float]:
    high = max(values) * 1.06
    return lambda value: value / high


def _size_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    steps = [m * 10.0**e for e in range(2, 12) for m in (1, 2, 5)]
    inside = [s for s in steps if min(values) * 0.8 <= s <= max(values) * 1.25]
    return [(s, f"{s / 1e6:g} MB" if s >= 1e6 else f"{s / 1e3:g} kB") for s in inside]


def _time_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    return [(t, f"{t:g} ms") for t in _steps(0.0, max(values) * 1.06)]


def _steps(low: float, high: float) -> list[float]:
    """Round numbers from low to high, four to nine of them."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * m for m in (1, 2, 5, 10) if (high - low) / (size * m) <= 8)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", color: str = MUTED, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _star(x: float, y: float) -> str:
    tips = [(9 if i % 2 == 0 else 3.8, math.pi * (i / 5 - 0.5)) for i in range(10)]
    corners = " ".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for r, a in tips)
    return f'<polygon points="{corners}" fill="{RED}"><title>the dense model</title></polygon>'


def main() -> int:
    """Read a study of a workspace and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("study")
    parser.add_argument("--workspace", default="autocompress-runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "front.svg")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from autocompress.api import open_study

    document = open_study(arguments.study, arguments.workspace).document()
    if document["baseline"] is None or not document["front"]:
        print(f"study {arguments.study!r} has no front to draw yet", file=sys.stderr)
        return 2
    arguments.out.write_text(draw(document), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
