"""What of an image was mended: the third views that its stage has, and those its labels heard."""

from collections.abc import Mapping
from typing import Any

from patchworks_core.errors import StageError
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.third_views import RULE, staged_views
from patchworks_core.stage.view_files import keys_of_views
from patchworks_pipeline.assets.merging import N_THIRD_VIEWS
from patchworks_pipeline.cli.advice import command_on
from patchworks_pipeline.records import ImageFolder

NONE = {"third_views": 0, "third_views_stale": 0, "third_views_merged": None}
"""Of an image that has no stage, or no labels."""


def views_of(
    folder: ImageFolder, plan: Plan, provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return how many third views are staged, how many are stale, and how many labels heard.

    Stale are those of tiles that were staged again since: no merge hears them.
    """
    merged = None if provenance is None else provenance.get(N_THIRD_VIEWS, 0)
    none = {**NONE, "third_views_merged": merged}
    try:
        stage = folder.stage(plan)
    except StageError:  # none, or that of another plan
        return none
    if not (keys := keys_of_views(stage.blocks_folder)):
        return none
    n_current = len(staged_views(stage))
    return none | {"third_views": n_current, "third_views_stale": len(keys) - n_current}


def words_of_views(folder: ImageFolder, row: Mapping[str, Any]) -> str | None:
    """Return what a person is told of third views, and what to type; None where there are none.

    Parameters
    ----------
    folder : ImageFolder
    row : mapping
        Of `views_of`.
    """
    n, n_stale, merged = (row[name] for name in NONE)
    if not (n or n_stale or merged):
        return None
    words = [f"mended: {_count(n)} staged", f"{merged or 0} in the labels"]
    if n_stale:
        again = command_on(folder, "mend")
        words.append(f"{n_stale} of tiles that were staged again, which '{again}' stages anew")
    if merged is not None and n > merged:
        again = command_on(folder, "merge", "--merge", RULE)
        words.append(f"'{again}' takes in the others")
    return f"{folder.title}: {', '.join(words)}"


def _count(n: int) -> str:
    return f"{n} third view{'' if n == 1 else 's'}"
