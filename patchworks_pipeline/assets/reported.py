"""Which labels the table and the report of an image are of.

Labels are published before their table is made. Where a merge ends between the two, the files of
both are there, and of the table those of the labels before: they are no results of one merge.
"""

from collections.abc import Mapping
from typing import Any

from patchworks_core.errors import StageError
from patchworks_pipeline.records import OBJECTS_CSV, ImageFolder

SUMMARY = "report/summary.json"
"""What is written last of an image."""

OF_LABELS = "of_labels"
"""Field of the summary that says what the labels were made of."""


def what_labels_are(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells labels from those of another merge: the staged labels, and the rule."""
    return {name: provenance.get(name) for name in ("stage", "merge")}


def is_reported(folder: ImageFolder, provenance: Mapping[str, Any]) -> bool:
    """Tell whether table and report are there, and of the labels that have this provenance.

    Those written before the summary told are taken to be; one that is damaged is not.
    """
    labels = what_labels_are(provenance)
    try:
        is_there = all(map(folder.has, (OBJECTS_CSV, SUMMARY)))
        return is_there and bool(folder.summary().get(OF_LABELS, labels) == labels)
    except StageError:
        return False
