"""Bars of the peers from a report, as a picture: `python -m bench.chart build/bench.json docs/peers.svg`."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import orjson

LABELS_PX, BARS_PX, ROW_PX = 270, 420, 30
OURS, THEIRS = "#2563eb", "#94a3b8"


def svg(rows: list[tuple[str, float]], title: str) -> str:
    """A horizontal bar for each (name, how many times as much as Segue), on a light ground."""
    most = max(value for _, value in rows)
    height = ROW_PX * (len(rows) + 1) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABELS_PX + BARS_PX + 90}" height="{height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    for n, (name, value) in enumerate(rows):
        y, width = ROW_PX * (n + 1) + 10, max(2, BARS_PX * value / most)
        fill = OURS if name.startswith("Segue") else THEIRS
        out.append(f'<text x="{LABELS_PX - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{LABELS_PX}" y="{y}" width="{width:.0f}" height="20" fill="{fill}"/>')
        out.append(f'<text x="{LABELS_PX + width + 6:.0f}" y="{y + 15}">{value:.1f}</text>')
    return "\n".join([*out, "</svg>\n"])


def main() -> None:
    report, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = orjson.loads(report.read_bytes())["sections"].get("peers, throughput")
    if not rows:
        raise SystemExit(f"{report} has no figures of peers: run `python -m bench --only peers` first")
    bars = [(str(row["peer"]), float(row["by its CPU"])) for row in rows]
    target.write_text(svg(bars, "CPU per event, Segue's context processor = 1 (less is better)"))


if __name__ == "__main__":
    main()
