"""Joins by all the evidence: which labels at seams are one object, decided together.

1. `evidence` scores every row: above 0 it speaks for one object, below 0 against.
2. Labels that rows above 0 connect are a *candidate*; nothing is ever joined across candidates, so
   each is decided apart. Two labels of one tile in one candidate that share a partner repel each
   other (`_repulsions`): the tile saw two objects.
3. In a candidate where nothing speaks against, all is one object: most are such.
4. In the others the two components with the largest sum of scores between them are contracted, and
   again, until no sum is above 0: all small candidates at once, one step of each at a time
   (`_contract_small`), and large ones one after the other (`_contract_large`).

Scores are whole numbers, so sums do not depend on the order of rows, and ties go to smaller ids.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import Edges, EdgeTable
from patchworks_core.seams.lookup import LookupTable, distinct, offsets_of, standing_of

Ints = npt.NDArray[np.int64]

TRUST = 0.24
"""By how much the IoU that speaks for one object may lie below `min_iou`: a pair does not decide
alone. This and the three below are the best of trials on images that are in no table of `docs`."""

APART = 0.15
"""Taken off where the two cores are not in contact: an object that crosses a seam is in both."""

CORNER = 0.3
"""Taken off at edges and corners of tiles, where few pixels are seen by both."""

REPULSION = 0.4
"""Against two labels of one tile that share a partner."""

_UNIT = 1 << 20
"""Scores are whole numbers of this part."""

_SMALL = 12
"""Labels of a candidate up to which it is decided together with others."""


def evidence(edges: EdgeTable, counts: Ints, *, min_iou: float) -> npt.NDArray[np.float64]:
    """Return how much each row speaks for one object (above 0) or against (below 0).

    Parameters
    ----------
    edges : EdgeTable
    counts : ndarray of int64, shape (n_tiles,)
        Labels of each tile; ids beyond it were seen only in a halo.
    min_iou : float
        As in `MergeOptions`.

    Returns
    -------
    ndarray of float64
        IoU less what is asked for: `min_iou` less `TRUST`, and more where labels are apart or meet
        at an edge or corner. NaN where a row says nothing: no pixel in common, or a label in no
        core.

    Notes
    -----
    Where a halo is 0, the planes that abut stand in for pixels that both saw. An object may end in
    one of them and another begin in the other, so all of `min_iou` is asked for there.
    """
    in_planes_only = (edges.area_a == edges.plane_a) & (edges.area_b == edges.plane_b)
    least = min_iou - np.where(in_planes_only & (edges.order == 1), 0, TRUST)
    least += np.where(edges.contact > 0, 0, APART) + np.where(edges.order > 1, CORNER, 0)
    return np.where(_says(edges, counts), edges.iou - least, np.nan)


def _says(edges: EdgeTable, counts: Ints) -> npt.NDArray[np.bool_]:
    """Return the rows that say something: of two labels of cores with pixels in common."""
    in_core = (edges.id_a <= counts[edges.tile_a]) & (edges.id_b <= counts[edges.tile_b])
    return np.asarray(edges.is_pair & in_core & (edges.intersection > 0))


@dataclass(frozen=True, slots=True, eq=False)
class WeighedLabels:
    """The labels that some row says anything of, and the object of each."""

    offsets: Ints
    """Staged labels before each tile."""

    ids: Ints
    """Staged ids, ascending."""

    roots: Ints
    """Position in `ids` of the first label of the object of each."""

    @classmethod
    def of(cls, edges: Edges, counts: Ints, *, min_iou: float) -> WeighedLabels:
        """Weigh what all rows say. Of a row that says something 20 bytes are kept meanwhile.

        Parameters
        ----------
        edges, counts, min_iou
            As in `evidence`.
        """
        offsets = offsets_of(counts)
        columns: tuple[list[Ints], ...] = ([], [], [])
        for part in edges.parts():
            scores = evidence(part, counts, min_iou=min_iou)
            rows = np.flatnonzero(~np.isnan(scores))
            columns[0].append(offsets[part.tile_a[rows]] + part.id_a[rows])
            columns[1].append(offsets[part.tile_b[rows]] + part.id_b[rows])
            columns[2].append(np.rint(scores[rows] * _UNIT).astype(np.int32))
        a, b, score = (np.concatenate([np.zeros(0, np.int64), *column]) for column in columns)
        del columns
        ids = distinct(a, b)
        a, b = np.searchsorted(ids, a), np.searchsorted(ids, b)
        links = _Links(np.minimum(a, b), np.maximum(a, b), score)
        del a, b, score
        tiles = np.searchsorted(offsets, ids, side="left") - 1
        return cls(offsets, ids, _roots(links, tiles))

    def rows(self, part: EdgeTable, counts: Ints) -> npt.NDArray[np.bool_]:
        """Return which rows hold two labels of one object, those that spoke against included."""
        rows = np.flatnonzero(_says(part, counts))
        a, b = (
            self.roots[np.searchsorted(self.ids, self.offsets[tile[rows]] + id_[rows])]
            for tile, id_ in ((part.tile_a, part.id_a), (part.tile_b, part.id_b))
        )
        within = np.zeros(len(part), dtype=bool)
        within[rows] = a == b
        return within

    def standing(self) -> LookupTable:
        """Return every object by the staged id of its first label.

        No graph is searched for it: rows above 0 connect the labels of an object, or it would not
        be one.
        """
        return standing_of(self.offsets, self.ids, self.ids[self.roots])


def rows_within_objects(edges: EdgeTable, counts: Ints, *, min_iou: float) -> npt.NDArray[np.bool_]:
    """Return which rows hold two labels of one object, those that spoke against included."""
    return WeighedLabels.of(edges, counts, min_iou=min_iou).rows(edges, counts)


@dataclass(frozen=True, slots=True)
class _Links:
    """Scores between labels or components, each pair at most once where `summed`."""

    low: Ints
    high: Ints
    score: Ints

    def __len__(self) -> int:
        return len(self.low)

    def select(self, which: npt.NDArray[np.bool_]) -> _Links:
        return _Links(self.low[which], self.high[which], self.score[which])

    def summed(self, n: int) -> _Links:
        """Add up the scores of each pair of numbers below `n`; in ascending order of pairs."""
        key = self.low * n + self.high
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        if not len(first):
            return self
        return _Links(key[first] // n, key[first] % n, np.add.reduceat(self.score[order], first))


def _roots(links: _Links, tiles: Ints) -> Ints:
    """Return the smallest label of the object of each label; `tiles` has the tile of each."""
    n = len(tiles)
    candidate = _candidates(links.select(links.score > 0), n)
    size = np.bincount(candidate, minlength=n)[candidate]
    repulsions = _repulsions(links, tiles, np.where(size > 2, candidate, -1))
    inside = links.select((candidate[links.low] == candidate[links.high]) & (size[links.low] > 2))
    every = _Links(
        np.concatenate([inside.low, repulsions.low]),
        np.concatenate([inside.high, repulsions.high]),
        np.concatenate([inside.score, repulsions.score]),
    )
    is_contested = np.zeros(n, dtype=bool)
    is_contested[candidate[every.low[every.score < 0]]] = True
    roots = candidate.copy()
    open_labels = is_contested[candidate]
    roots[open_labels] = np.flatnonzero(open_labels)
    contested = every.select(is_contested[candidate[every.low]]).summed(n)
    is_small = size[contested.low] <= _SMALL
    _contract_small(contested.select(is_small), candidate, roots)
    _contract_large(contested.select(~is_small), candidate, roots)
    return roots


def _candidates(links: _Links, n: int) -> Ints:
    """Return the smallest label of the connected component of each of `n` labels."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), dtype=np.int8), (links.low, links.high)), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    first: Ints = smallest[component].astype(np.int64)
    return first


def _repulsions(links: _Links, tiles: Ints, candidate: Ints) -> _Links:
    """Return the pairs of labels of one tile and candidate that share a partner, each once.

    A candidate of -1 is left out.
    """
    n = len(tiles)
    partner = np.concatenate([links.low, links.high])
    label = np.concatenate([links.high, links.low])
    large = candidate[label] >= 0
    group, label = partner[large] * n + candidate[label[large]], label[large]
    order = np.lexsort((label, group))  # and so by tile within a group
    group, label = group[order], label[order]
    low, high = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for distance in range(1, len(label)):
        a, b = label[:-distance], label[distance:]
        shared = (group[distance:] == group[:-distance]) & (tiles[a] == tiles[b])
        if not shared.any():
            break
        low.append(a[shared])
        high.append(b[shared])
    pairs = np.unique(np.concatenate(low) * n + np.concatenate(high))
    score = np.full(len(pairs), -round(REPULSION * _UNIT), dtype=np.int64)
    return _Links(pairs // n, pairs % n, score)


def _contract_small(links: _Links, candidate: Ints, roots: Ints) -> None:
    """Contract small candidates, the best pair of each in every round, into `roots`."""
    n = len(roots)
    while len(links):
        owner = candidate[links.low]
        order = np.lexsort((links.high, links.low, -links.score, owner))
        best = order[np.diff(owner[order], prepend=-1) != 0]
        best = best[links.score[best] > 0]
        is_open = np.zeros(n, dtype=bool)
        is_open[owner[best]] = True
        into = np.arange(n)
        into[links.high[best]] = links.low[best]
        roots[:] = into[roots]
        links = links.select(is_open[owner])
        low, high = into[links.low], into[links.high]
        links = _Links(np.minimum(low, high), np.maximum(low, high), links.score)
        links = links.select(links.low != links.high).summed(n)


def _contract_large(links: _Links, candidate: Ints, roots: Ints) -> None:
    """Contract large candidates one after the other, into `roots`."""
    owner = candidate[links.low]
    order = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else ():
        into = _contract(
            links.low[rows].tolist(), links.high[rows].tolist(), links.score[rows].tolist()
        )
        for label in sorted(into):  # ascending: what a label goes into is smaller, and settled
            roots[label] = roots[into[label]]


def _contract(low: list[int], high: list[int], scores: list[int]) -> dict[int, int]:
    """Contract one candidate; return what each label that was contracted went into."""
    near: dict[int, dict[int, int]] = {}
    heap = []
    for x, y, score in zip(low, high, scores, strict=True):
        near.setdefault(x, {})[y] = near.setdefault(y, {})[x] = score
        if score > 0:
            heap.append((-score, x, y))
    heapq.heapify(heap)
    into: dict[int, int] = {}
    while heap:
        negative, x, y = heapq.heappop(heap)
        if x in into or y in into or near[x].get(y) != -negative:
            continue  # an earlier state of this pair
        into[y] = x
        for other, score in near.pop(y).items():
            del near[other][y]
            if other == x:
                continue
            total = near[x].get(other, 0) + score
            near[x][other] = near[other][x] = total
            if total > 0:
                heapq.heappush(heap, (-total, min(x, other), max(x, other)))
    return into
