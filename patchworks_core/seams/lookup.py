"""The global lookup table: the merged id of every staged label.

1. `offsets_of` numbers all staged labels: offset of the tile + local id (exclusive cumulative sum).
2. `build_lut` finds the connected components over the joined pairs only. The label that appears
   first stands for the whole component.
3. Merged ids are counted over what is left: the standing id less the labels before it that were
   joined into others or dropped. That needs only the sorted list of those labels, so the table
   grows with the seams and not with the number of objects.
4. `LookupTable.of_tile` spreads it out for one tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchworks_core.seams.edge_table import Edges, EdgeTable


@dataclass(frozen=True, slots=True)
class LookupTable:
    """Merged ids, stored only for the labels that are not simply counted."""

    offsets: np.ndarray[Any, Any]
    """Staged labels before each tile, int64, shape (n_tiles + 1,)."""

    joined: np.ndarray[Any, Any]
    """Staged ids that stand for nothing themselves (joined to an earlier one, or dropped),
    ascending int64."""

    merged: np.ndarray[Any, Any]
    """The merged id of each of `joined`, int64; 0 where it was dropped."""

    sequential: bool = True
    """True where merged ids are 1..n_objects."""

    @property
    def n_staged(self) -> int:
        """Staged labels in all."""
        return int(self.offsets[-1])

    @property
    def n_objects(self) -> int:
        """Objects in all."""
        return self.n_staged - len(self.joined)

    @property
    def n_joined(self) -> int:
        """Staged labels that became part of another's object."""
        return int(np.count_nonzero(self.merged))

    @property
    def max_id(self) -> int:
        """An id that no merged id exceeds."""
        return self.n_objects if self.sequential else self.n_staged

    @property
    def dtype(self) -> np.dtype[Any]:
        """Integer type of the merged labels: int32, or int64 where ids would overflow it."""
        return np.dtype(np.int32 if self.max_id <= np.iinfo(np.int32).max else np.int64)

    def of_tile(self, number: int) -> np.ndarray[Any, Any]:
        """Return the merged id of each local id of a tile.

        Parameters
        ----------
        number : int
            The tile, in row-major order.

        Returns
        -------
        ndarray of `dtype`, shape (count + 1,)
            Position 0 is background.
        """
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        first, last = np.searchsorted(self.joined, [start + 1, stop + 1])
        inside = self.joined[first:last] - start
        ids = np.arange(start, stop + 1, dtype=np.int64)
        if self.sequential:
            gone = np.zeros(len(ids), dtype=np.int64)
            gone[inside] = 1
            ids -= int(first) + np.cumsum(gone)
        ids[inside] = self.merged[first:last]
        ids[0] = 0
        return ids.astype(self.dtype)

    def of_tiles(self, numbers: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the merged id of each local id of several tiles.

        Parameters
        ----------
        numbers : ndarray of int
            The tiles, in row-major order.

        Returns
        -------
        values : ndarray of `dtype`
            What `of_tile` gives of each, one after the other.
        starts : ndarray of int64
            Where that of each tile begins: its background.
        """
        before = self.offsets[numbers]
        counts = self.offsets[numbers + 1] - before + 1
        starts = np.cumsum(counts) - counts
        values = self.of_staged(np.arange(counts.sum()) + np.repeat(before - starts, counts))
        values[starts] = 0
        return values.astype(self.dtype), starts

    def of_staged(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the merged ids of staged ids (offset of the tile + local id); 0 stays 0."""
        at = np.searchsorted(self.joined, ids)
        merged = ids - at if self.sequential else ids.copy()
        inside = at < len(self.joined)
        inside[inside] = self.joined[at[inside]] == ids[inside]
        merged[inside] = self.merged[at[inside]]
        return merged

    def of_first(self, n_tiles: int) -> LookupTable:
        """Return the table of the first tiles alone, of one whose ids are not sequential."""
        offsets = self.offsets[: n_tiles + 1]
        n = int(np.searchsorted(self.joined, int(offsets[-1]), side="right"))
        return LookupTable(offsets, self.joined[:n], self.merged[:n], self.sequential)


@dataclass(frozen=True, slots=True)
class HaloOwners:
    """Whose the labels are that a tile saw only in its halo; rows by tile and id, ascending."""

    tile: np.ndarray[Any, Any]
    """Number of the tile, int64."""

    id: np.ndarray[Any, Any]
    """Local id there, int64."""

    owner: np.ndarray[Any, Any]
    """Staged id of the neighbour's label that holds at least half of it, int64."""

    @classmethod
    def of(cls, edges: Edges, counts: np.ndarray[Any, Any]) -> HaloOwners:
        """Find them in the edge table; of two owners the one with more of it, then the first."""
        offsets = offsets_of(counts)
        columns = [np.zeros((4, 0), dtype=np.int64)]
        for part in edges.parts():
            columns += [_held(part, *sides, counts, offsets) for sides in (("a", "b"), ("b", "a"))]
        tile, id_, common, owner = np.concatenate(columns, axis=1)
        order = np.lexsort((owner, -common, id_, tile))
        tile, id_, owner = tile[order], id_[order], owner[order]
        first = (np.diff(tile, prepend=-1) != 0) | (np.diff(id_, prepend=-1) != 0)
        return cls(tile[first], id_[first], owner[first])

    def of_tile(self, number: int, n_core: int) -> np.ndarray[Any, Any]:
        """Return the staged ids of the owners of ids `n_core` + 1 and on; 0 has none."""
        first, last = np.searchsorted(self.tile, [number, number + 1])
        ids = self.id[first:last] - n_core - 1
        owners = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.int64)
        owners[ids] = self.owner[first:last]
        return owners


def _held(
    part: EdgeTable,
    label: str,
    other: str,
    counts: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return tile, id, pixels in common and owner of labels of a halo, shape (4, n)."""
    tile, id_, area = (getattr(part, f"{name}_{label}") for name in ("tile", "id", "area"))
    its_tile, its_id = getattr(part, f"tile_{other}"), getattr(part, f"id_{other}")
    is_core = (its_id > 0) & (its_id <= counts[its_tile])
    holds = (part.intersection > 0) & (2 * part.intersection >= area)
    rows = np.flatnonzero((id_ > counts[tile]) & is_core & holds)
    staged = offsets[its_tile[rows]] + its_id[rows]
    return np.stack([tile[rows], id_[rows], part.intersection[rows], staged]).astype(np.int64)


def offsets_of(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the staged labels before each tile, and their total last.

    Examples
    --------
    >>> offsets_of(np.array([2, 0, 3]))
    array([0, 2, 2, 5])
    """
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def build_lut(
    pairs: EdgeTable,
    counts: np.ndarray[Any, Any],
    *,
    areas: np.ndarray[Any, Any] | None = None,
    min_size: int = 0,
    max_size: int | None = None,
    sequential: bool = True,
) -> LookupTable:
    """Join staged labels and number the objects.

    Parameters
    ----------
    pairs : EdgeTable
        Only the rows that join two labels.
    counts : ndarray of int64, shape (n_tiles,)
        Labels of each tile, in row-major order.
    areas : ndarray of int64, shape (sum of counts,), optional
        Pixels of every staged label in order; needed for `min_size` and `max_size`.
    min_size, max_size : int
        Objects of fewer, or of more, pixels become background.
    sequential : bool
        Number the objects 1..N in order of first appearance; otherwise an object keeps the staged
        id of its first label, which leaves gaps.

    Returns
    -------
    LookupTable
    """
    offsets = offsets_of(counts)
    ids_a = offsets[pairs.tile_a] + pairs.id_a
    ids_b = offsets[pairs.tile_b] + pairs.id_b
    return _numbered(
        offsets,
        *components([(ids_a, ids_b)]),
        areas=areas,
        min_size=min_size,
        max_size=max_size,
        sequential=sequential,
    )


def renumbered(
    standing: LookupTable,
    *,
    areas: np.ndarray[Any, Any] | None,
    min_size: int,
    max_size: int | None,
    sequential: bool,
) -> LookupTable:
    """Return the table of the same objects as one made without limits and not `sequential`.

    Parameters
    ----------
    standing : LookupTable
    areas, min_size, max_size, sequential
        As in `build_lut`; all of an object's pixels may be counted for its first label.
    """
    nodes = np.union1d(standing.joined, standing.merged)
    return _numbered(
        standing.offsets,
        nodes,
        standing.of_staged(nodes),
        areas=areas,
        min_size=min_size,
        max_size=max_size,
        sequential=sequential,
    )


def _numbered(
    offsets: np.ndarray[Any, Any],
    nodes: np.ndarray[Any, Any],
    first: np.ndarray[Any, Any],
    *,
    areas: np.ndarray[Any, Any] | None,
    min_size: int,
    max_size: int | None,
    sequential: bool,
) -> LookupTable:
    """Return the table, given the labels that have a partner and the first label of each."""
    follows = nodes != first
    joined, stands = nodes[follows], first[follows]
    dropped = _of_wrong_size(areas, nodes, first, min_size, max_size)
    if len(dropped):
        gone = np.isin(stands, dropped)
        leaving = np.setdiff1d(dropped, joined)
        joined = np.concatenate([joined, leaving])
        stands = np.concatenate([np.where(gone, 0, stands), np.zeros(len(leaving), np.int64)])
        order = np.argsort(joined)
        joined, stands = joined[order], stands[order]
    merged = stands - np.searchsorted(joined, stands) if sequential else stands
    return LookupTable(offsets, joined, merged.astype(np.int64), sequential)


def standing_of(
    offsets: np.ndarray[Any, Any], nodes: np.ndarray[Any, Any], first: np.ndarray[Any, Any]
) -> LookupTable:
    """Return every object by the staged id of its first label.

    Parameters
    ----------
    offsets : ndarray of int64
        Of `offsets_of`.
    nodes, first : ndarray of int64
        Staged ids, ascending, with those of all labels that are joined to another; and the first
        label of the object of each.
    """
    follows = nodes != first
    return LookupTable(offsets, nodes[follows], first[follows], sequential=False)


def components(
    pairs: Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return every id that has a partner, ascending, and the smallest id of its component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    columns = list(zip(*pairs, strict=True)) or [(), ()]
    a, b = (np.concatenate([np.zeros(0, np.int64), *column]) for column in columns)
    del columns  # their length once more
    nodes = distinct(a, b)
    if not len(nodes):
        return nodes, nodes
    at = [np.searchsorted(nodes, ids).astype(np.int32) for ids in (a, b)]
    del a, b
    graph = coo_array((np.ones(len(at[0]), dtype=np.int8), tuple(at)), shape=(len(nodes),) * 2)
    del at
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    return nodes, nodes[smallest[component]]


def distinct(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the ids that occur in either of two arrays, ascending int64."""
    both = np.concatenate([a, b])
    both.sort()  # in place: `np.unique` takes several times their length
    is_first = np.ones(len(both), dtype=bool)
    np.not_equal(both[1:], both[:-1], out=is_first[1:])
    return both[is_first]


def _of_wrong_size(
    areas: np.ndarray[Any, Any] | None,
    nodes: np.ndarray[Any, Any],
    first: np.ndarray[Any, Any],
    min_size: int,
    max_size: int | None,
) -> np.ndarray[Any, Any]:
    """Return the standing ids of objects to drop, and of every label joined to them."""
    if min_size <= 1 and max_size is None:
        return np.zeros(0, dtype=np.int64)
    if areas is None:
        raise ValueError("a size filter needs the area of every staged label, got none")
    total = np.array(areas, dtype=np.int64, copy=True)
    follows = nodes != first
    np.add.at(total, first[follows] - 1, total[nodes[follows] - 1])
    wrong = total < min_size
    if max_size is not None:
        wrong |= total > max_size
    wrong[nodes[follows] - 1] = wrong[first[follows] - 1]
    return np.flatnonzero(wrong) + 1
