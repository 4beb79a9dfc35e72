"""``python -m tests.faults [points|damage|functions] [--n N] [--seed S]``: print the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults import damage, functions, points


def main() -> int:
    """Run what is asked for; the exit code says whether anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="*", default=["points", "damage", "functions"])
    parser.add_argument("--n", type=int, help="Steps in all; every one by default.")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    n_wrong = 0
    with tempfile.TemporaryDirectory(prefix="patchworks-faults-") as name:
        folder = Path(name)
        if "points" in asked.what:
            done = list(points.trials(folder / "points", seed=asked.seed, n=asked.n))
            print(points.table(done), flush=True)
            for trial in done:
                for fault in trial.faults:
                    n_wrong += 1
                    print(f"{trial.call} {trial.fault} at {trial.at}: {fault}", flush=True)
        if "damage" in asked.what:
            damaged = list(damage.trials(folder / "damage", seed=asked.seed))
            print(damage.table(damaged), flush=True)
            for each in damaged:
                if each.is_silent:
                    n_wrong += 1
                    print(f"silent: {each}", flush=True)
        if "functions" in asked.what:
            rows = functions.trials(folder / "functions")
            print(functions.table(list(rows)), flush=True)
    return min(n_wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
