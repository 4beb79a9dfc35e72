"""Objects split and fused at seams, for every merge rule and for a peer, where the truth is known.

    python benchmarks/seams.py [--data FOLDER] [--peer-python PYTHON] [--cellpose-python PYTHON]
                               [--only TEXT] [--write]

Every case is one function on one kind of image, in tiles of one shape (`seam_cases`). Its labels
are made once per region that a tile reads; every rule, and the peer, merges those same labels
(`seam_merges`), and the result is held against the truth (`seam_scores`). ``--write`` puts the
tables between the markers of docs/seams.md, and draws its pictures.

The peer is `patchworks` 3.3.0 from the package index; it runs in the interpreter given (see
`peer_runner.py`), Cellpose in another (see `cellpose_runner.py`). What has no interpreter is left
out, and the tables say so.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
from seam_cases import Case, cases
from seam_merges import TOOLS, merge, merge_with_tool
from seam_pictures import draw_pictures
from seam_scores import Score, score

from patchworks_core import tile_process
from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.tiles.grid import plan_grid
from patchworks_core.tiles.regions import Region

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
PAGE = HERE.parent / "docs" / "seams.md"
SEEDS = range(3)
RULES = ("none", "touching", "overlap")

FIGURES = (("split", -1, ".1%"), ("fuse", -1, ".1%"), ("pq", 1, ".3f"), ("f1", 1, ".4f"))
"""What is compared with the peer, whether more is better (1) or worse (-1), and its format."""

Rows = dict[tuple[str, str], Score | str]
"""Score, or the error, by name of the halo and of the rule."""


def main() -> None:
    """Print every table, and write them into the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--cellpose-python", type=Path)
    parser.add_argument("--only", default="", help="run the cases with this in their title")
    parser.add_argument("--write", action="store_true", help="write docs/seams.md and its pictures")
    args = parser.parse_args()
    if args.only and args.write:
        parser.error("--write needs every case: the page is written whole")
    left_out = []
    if args.peer_python is None:
        left_out.append("The peer was not run: no `--peer-python` was given.")
    if args.cellpose_python is None:
        left_out.append("Cellpose was not run: no `--cellpose-python` was given.")
    results: dict[str, tuple[Case, Rows]] = {}
    for case in cases(args.data, args.cellpose_python, SEEDS):
        if args.only in case.title:
            start = time.perf_counter()
            results[case.title] = case, measure(case, args.peer_python)
            print(table(*results[case.title]), flush=True)
            print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)
    tables = "\n\n".join([*left_out, *(table(*result) for result in results.values())])
    against = summary({title: rows for title, (_, rows) in results.items()})
    print(against, flush=True)
    if args.only:
        return
    tilings = two_tilings(args.data)
    print(tilings, flush=True)
    if args.write:
        write_between(PAGE, "summary", against)
        write_between(PAGE, "tables", tables)
        write_between(PAGE, "tilings", tilings)
        draw_pictures(PAGE.parent / "images")


def measure(case: Case, peer_python: Path | None) -> Rows:
    """Return the scores of one case, over all its scenes."""
    total: Rows = {}

    def add(halo: str, rule: str, found: Score | str) -> None:
        before = total.get((halo, rule), Score())
        usable = isinstance(before, Score) and isinstance(found, Score)
        total[halo, rule] = before + found if usable else found

    for scene in case.scenes():
        shape = scene.truth.shape
        (untiled,) = scene.segment([Region((0,) * len(shape), shape)])
        for name, halo in case.halos.items():
            grid = plan_grid(case.axes, shape, tile_shape=case.tile_shape, overlap=halo)
            tiles = list(grid.tiles())
            labels = scene.segment([tile.read for tile in tiles])
            views = {tile.index: found for tile, found in zip(tiles, labels, strict=True)}
            merged = {"untiled": untiled, **merge(views, grid, RULES)}
            if peer_python is not None:
                merged |= merge_with_tool("patchworks", peer_python, [(views, grid)])[0]
            for rule, found in merged.items():
                if isinstance(found, np.ndarray):
                    found = score(scene.truth, found, untiled, grid, min_piece=scene.min_piece)
                add(name, rule, found)
    return total


def table(case: Case, rows: Rows) -> str:
    """Return the Markdown table of one case."""
    tile = " x ".join(map(str, case.tile_shape))
    lines = [
        f"### {case.title[0].upper()}{case.title[1:]}",
        "",
        f"Tiles of {tile}; halo in object diameters of {case.diameter:g} pixels.",
        "",
        "| halo | rule | split | fused | PQ at seams | F1 : untiled |",
        "|---|---|---|---|---|---|",
    ]
    for (halo, rule), found in rows.items():
        if isinstance(found, str):
            lines.append(f"| {halo} | {rule} | {found} | | | |")
            continue
        bold = "**" if rule == "overlap" else ""
        lines.append(
            f"| {halo} | {bold}{rule}{bold} "
            f"| {found.split:.1%} of {found.n_crossing} | {found.fuse:.1%} of {found.n_touching} "
            f"| {found.pq:.3f} | {found.f1:.4f} of {found.n_both} |"
        )
    return "\n".join(lines)


def summary(results: dict[str, Rows]) -> str:
    """Return the table of `overlap` against the peer's mode with the better PQ in that row."""
    lines = [
        "| case | halo | split: ours / peer | fused: ours / peer | PQ: ours / peer "
        "| F1: ours / peer | peer's mode | worse in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, rows in results.items():
        for halo in dict.fromkeys(halo for halo, _ in rows):
            ours = rows[halo, "overlap"]
            peers = {mode: rows.get((halo, mode)) for mode in TOOLS["patchworks"].modes}
            usable = {mode: peer for mode, peer in peers.items() if isinstance(peer, Score)}
            if not isinstance(ours, Score) or not usable:
                continue
            mode = max(usable, key=lambda m, found=usable: (found[m].pq, m == "patchworks, iou"))
            cells, worse = [], []
            for name, sign, form in FIGURES:
                mine, theirs = getattr(ours, name), getattr(usable[mode], name)
                cells.append(f"{mine:{form}} / {theirs:{form}}")
                if sign * mine < sign * theirs:
                    worse.append(name)
            told = [*cells, TOOLS["patchworks"].modes[mode]["stitch"], ", ".join(worse) or "-"]
            lines.append(f"| {title} | {halo} | {' | '.join(told)} |")
    return "\n".join(lines)


def two_tilings(data: Path) -> str:
    """Return the table of one image in two different tilings, against each other and untiled."""
    lines = [
        "| image | function | tilings | halo | F1 of one tiling against the other | objects |",
        "|---|---|---|---|---|---|",
    ]
    nuclei = {"sigma": 2, "min_distance": 8, "spacing": [0.284, 0.127, 0.127]}
    for image, function, parameters, tilings, halo in (
        ("dsb2018_mosaic_4096.png", "threshold", {}, (512, 384), 48),
        ("dsb2018_mosaic_4096.png", "watershed", {}, (512, 384), 48),
        ("dsb2018_mosaic_4096.png", "watershed", {}, (512, 384), 96),
        ("plantseg_ovule_nuclei_1135.tif", "watershed", nuclei, (50, 37), 30),
    ):
        one, other = (
            tile_process(
                data / image, function, parameters=parameters, tile_shape=tile, overlap=halo
            )
            for tile in tilings
        )
        same = compare_objects(one, other)
        lines.append(
            f"| {image} | {function} | {' and '.join(map(str, tilings))} | {halo} "
            f"| {same.f1:.4f} | {same.n_truth} : {same.n_found} |"
        )
    return "\n".join(lines)


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between two markers of a page."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    before = page.read_text()
    if not pattern.search(before):
        raise ValueError(f"{page} has no markers {begin!r} and {end!r}")
    page.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", before))


if __name__ == "__main__":
    main()
