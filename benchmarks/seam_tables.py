"""What `bench_seams.py` measured, as Markdown tables: every figure, and who is first by PQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

FIGURES = {
    "pq": "PQ",
    "f50": "F1 .5",
    "f75": "F1 .75",
    "split": "split",
    "fused": "fused",
    "vi_split": "VI split",
    "vi_merge": "VI merge",
    "are": "Rand error",
    "jump": "jump",
    "straight": "straight",
}

Row = dict[str, dict[str, float]]
"""The figures of one image, by what merged its labels."""

Case = tuple[str, str, str]
"""Set, disagreement, halo."""

Results = Mapping[Case, Sequence[Row]]
"""A row for every seed."""


VERDICTS = ("first", "level", "behind")


def every_figure(results: Results, ours: Sequence[str]) -> str:
    """Return the table of all figures: mean over seeds, and the range of PQ; ours first."""
    lines = [
        "| set | tiles differ | halo | merged by | seeds | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---|---|---|" + "---|" * len(FIGURES),
    ]
    for case, rows in results.items():
        for what in sorted(_merged_by(rows), key=lambda what: _place(what, ours)):
            figures = [row[what] for row in rows if what in row]
            cells = [*case, what, str(len(figures)), *_cells(figures)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(figures: Sequence[Mapping[str, float]]) -> Iterator[str]:
    for name in FIGURES:
        numbers = [row[name] for row in figures]
        mean = float(np.mean(numbers))
        if name == "pq":
            yield _mean_and_range(numbers)
        elif name in ("split", "fused", "straight"):
            yield f"{mean:.1%}"
        else:
            yield f"{mean:.2f}" if name == "jump" else f"{mean:.3f}"


def against_others(results: Results, ours: str, all_ours: Collection[str]) -> str:
    """Return the table of our PQ against that of the best other tool, and how often ours is first.

    The best is the one furthest ahead of ours, or least behind, in the mean. Differences are taken
    image by image, so their range is that of the seeds: ours is *first* where it is ahead of every
    other tool in every image, *behind* where the best one is ahead in every image, else *level*.
    """
    lines = [
        f"| set | tiles differ | halo | `{ours}` | best other tool | its PQ | difference "
        f"| `{ours}` is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    verdicts: Counter[tuple[str, str]] = Counter()
    for (name, how, halo), rows in results.items():
        others = [what for what in _merged_by(rows) if what not in all_ours]
        if not others:
            continue
        leads = {
            what: [row[ours]["pq"] - row[what]["pq"] for row in rows if what in row]
            for what in others
        }
        best = min(others, key=lambda what, leads=leads: np.mean(leads[what]))
        differences = leads[best]
        verdict = "first" if min(map(min, leads.values())) > 0 else "level"
        if max(differences) < 0:
            verdict = "behind"
        verdicts[how, verdict] += 1
        pqs = [
            _mean_and_range([row[what]["pq"] for row in rows if what in row])
            for what in (ours, best)
        ]
        cells = [name, how, halo, pqs[0], best, pqs[1]]
        lines.append(f"| {' | '.join(cells)} | {_mean_and_range(differences, '+')} | {verdict} |")
    if not verdicts:
        return "No other tool was run."
    counts = [
        f"where tiles differ {how}: " + ", ".join(f"{v} in {verdicts[how, v]}" for v in VERDICTS)
        for how in dict.fromkeys(how for how, _ in verdicts)
    ]
    seeds = max(len(rows) for rows in results.values())
    return f"Seeds a row: {seeds}. `{ours}` is, {'; '.join(counts)}.\n\n" + "\n".join(lines)


def outlines_at_faces(results: Results, truth: str, halo: str = "½") -> str:
    """Return the table of how far outlines jump at faces, at one halo, beside those of the truth.

    An outline that crosses a face aslant moves there by itself; what is more than that is a step.
    """
    lines = [
        "| set | tiles differ | jump of the truth, px | of `overlap-pairs` | of `overlap`, `core` "
        "| of `overlap` | what is left of the step | straight edges: `overlap-pairs` | `overlap` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, how, width), rows in results.items():
        if width == halo and all(truth in row for row in rows):
            own, pairs, core, drawn = (
                float(np.mean([row[what]["jump"] for row in rows]))
                for what in (truth, "overlap-pairs", "overlap, core", "overlap")
            )
            straight = (
                f"{np.mean([row[what]['straight'] for row in rows]):.1%}"
                for what in ("overlap-pairs", "overlap")
            )
            left = f"{max(0.0, drawn - own) / (pairs - own):.0%}" if pairs > own else ""
            jumps = (f"{jump:.2f}" for jump in (own, pairs, core, drawn))
            lines.append(f"| {' | '.join([name, how, *jumps, left, *straight])} |")
    return "\n".join(lines)


def _merged_by(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(what for row in rows for what in row))


def _place(what: str, ours: Sequence[str]) -> tuple[int, str]:
    """Return what sorts ours in their own order before other tools by their names."""
    return (ours.index(what), "") if what in ours else (len(ours), what)


def _mean_and_range(numbers: Sequence[float], sign: str = "") -> str:
    low, high = (format(number, f"{sign}.3f") for number in (min(numbers), max(numbers)))
    return f"{np.mean(numbers):{sign}.3f} ({low} to {high})"
