"""The record of an edge table, written and read part by part."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from upath import UPath

from patchworks_core.files.parted_tables import PartedTable, write_parts
from patchworks_core.seams.edge_table import Edges, EdgeTable

PAIRS = "boundary_pairs.parquet"

MADE_BY = "boundary_pairs"
"""Asset that writes it."""


def write_edges(path: UPath, edges: Edges, stage_content: str, *, allow_missing: bool) -> None:
    """Write the edge table of a stage with that content, and whether it may have holes."""
    record = {"stage": stage_content, "allow_missing": json.dumps(allow_missing)}
    write_parts(path, EdgeTable.schema(), (part.to_arrow() for part in edges.parts()), record)


@dataclass(frozen=True, slots=True, eq=False)
class EdgesOfRecord:
    """The rows of an edge table that is a record of an image."""

    table: PartedTable

    reading: Callable[[], AbstractContextManager[None]]
    """Says of whatever is wrong which record it is in, and what makes it."""

    @classmethod
    def open(
        cls, path: UPath, reading: Callable[[], AbstractContextManager[None]]
    ) -> "EdgesOfRecord":
        """Read what is said of a table, also of one that an earlier version wrote as one part."""
        with reading():
            return cls(PartedTable.open(path), reading)

    @property
    def allows_missing(self) -> bool:
        """True where tiles may have been left out that were not staged."""
        with self.reading():
            return bool(json.loads(self.table.record.get("allow_missing", "false")))

    def __len__(self) -> int:
        return self.table.n_rows

    def parts(self) -> Iterator[EdgeTable]:
        """Yield the rows in parts, each checked.

        Raises
        ------
        StageError
            If one is not what was written.
        """
        tables = self.table.parts()
        while True:
            with self.reading():
                table = next(tables, None)
                part = None if table is None else EdgeTable.from_arrow(table)
            if part is None:
                return
            yield part

    def check(self) -> None:
        """Raise StageError where a part is not what was written."""
        for _ in self.parts():
            pass
