"""How well two label images agree, object by object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Objects of one label image found again in another."""

    n_truth: int
    """Objects in the first."""

    n_found: int
    """Objects in the second."""

    n_matched: int
    """Pairs whose IoU is above the limit."""

    @property
    def f1(self) -> float:
        """Twice the matched objects over all objects of both; 1 where there are none."""
        n = self.n_truth + self.n_found
        return 2 * self.n_matched / n if n else 1.0


def compare_objects(
    truth: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], *, min_iou: float = 0.5
) -> Agreement:
    """Match the objects of two label images by intersection over union.

    Parameters
    ----------
    truth, found : ndarray of int
        Label images of one shape; 0 is background.
    min_iou : float
        Two objects match where their IoU is above this; at 0.5 and more a match is one to one.

    Returns
    -------
    Agreement

    Examples
    --------
    >>> compare_objects(np.array([1, 1, 0, 2]), np.array([7, 7, 0, 0])).f1
    0.6666666666666666

    References
    ----------
    Caicedo et al., Nature Methods 16, 1247 (2019): F1 at an IoU threshold.
    """
    from skimage.metrics import contingency_table

    common = contingency_table(truth, labels).tocoo()
    inside = (common.row > 0) & (common.col > 0)
    rows, columns, intersection = common.row[inside], common.col[inside], common.data[inside]
    area_truth = np.bincount(np.asarray(truth).ravel())
    area_found = np.bincount(np.asarray(labels).ravel())
    iou = intersection / (area_truth[rows] + area_found[columns] - intersection)
    return Agreement(
        n_truth=int(np.count_nonzero(area_truth[1:])),
        n_found=int(np.count_nonzero(area_found[1:])),
        n_matched=int((iou > min_iou).sum()),
    )
