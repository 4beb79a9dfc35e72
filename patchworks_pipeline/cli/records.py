"""What the command line says of an image, as values that a program reads."""

from typing import TYPE_CHECKING, Any

from patchworks_pipeline.cli.advice import command_on

if TYPE_CHECKING:
    from patchworks_core.tiles.grid import TileGrid


def rule_of(folder: Any) -> str:
    """Return the rule by which the labels of an image were merged."""
    return str((folder.provenance(folder.plan()) or {})["merge"]["rule"])


def words_of_holes(folder: Any, grid: "TileGrid", n_missing: int | None) -> str | None:
    """Return that labels lack tiles, and what to type; None where they lack none."""
    if not n_missing:
        return None
    which = f"{n_missing} of {grid.n_blocks} {grid.units}"
    healed = f"'{command_on(folder, 'retry')}' stages them and merges again"
    return f"{which} are left out, and are 0 in the labels; {healed}"


def words_of_blocks(grid: "TileGrid") -> str | None:
    """Return what is counted where tiles share blocks; None where each is one by itself."""
    if grid.n_blocks == grid.n_tiles:
        return None
    return (
        f"{grid.n_tiles} tiles in {grid.n_blocks} blocks, which are what is counted, staged and "
        "repaired"
    )


def record_of(result: Any) -> dict[str, Any]:
    """Return what came of an image that was run, JSON-ready; paths are text."""
    folder = result.folder
    record: dict[str, Any] = {
        "image": folder.key,
        **({"segmentation": folder.segmentation} if folder.segmentation else {}),
        "is_complete": result.is_complete,
        "error": result.error or None,
        "failed_tiles": [
            {"tile": f.block, "error": f"{f.error_type}: {f.message}", "kind": f.kind}
            for f in result.failures
        ],
    }
    if result.failures or result.error:
        return record
    summary = folder.summary()
    return record | {
        "objects": summary["n_objects"],
        "objects_across_seams": summary["n_objects_across_seams"],
        "merge": rule_of(folder),
        "tiles_left_out": summary.get("n_tiles_missing", 0),
        "seam_problems": summary.get("seam_problems", []),
        "steps": list(result.steps),
        "labels": str(folder.labels(folder.plan()).path),
        "overlay": str(folder.report / "overlay.png"),
        "table": str(folder.path / "objects.csv"),
        **({"relations": list(map(str, result.relations))} if result.relations else {}),
    }
