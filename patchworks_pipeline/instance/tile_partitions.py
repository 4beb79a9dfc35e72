"""Keys of tiles on the instance, and what is logged of them: many in one call.

Dagster adds many dynamic partitions at once and removes them one by one, and keeps every event for
ever. `patchworks_pipeline.event_storage` removes many at once; in another storage keys are removed
one by one, and events are left alone.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from patchworks_pipeline.lineage import Lineage

if TYPE_CHECKING:
    from patchworks_pipeline.instance.events_together import EventsTogether


def live_tile_keys(instance: dg.DagsterInstance, lineage: Lineage) -> dict[str, list[str]]:
    """Return the keys of all tiles that are partitions now, by image."""
    keys: dict[str, list[str]] = {}
    for key in instance.get_dynamic_partitions(str(lineage.tiles.name)):
        keys.setdefault(key.rpartition("/")[0], []).append(key)
    return keys


def tile_keys_of(instance: dg.DagsterInstance, lineage: Lineage, image: str) -> list[str]:
    """Return the keys of the tiles of one image that are partitions now."""
    storage = own_storage(instance)
    start = f"{image}/"
    if storage is None:
        keys = instance.get_dynamic_partitions(str(lineage.tiles.name))
        return [key for key in keys if key.startswith(start)]
    return storage.dynamic_partitions_that_start_with(str(lineage.tiles.name), start)


def replace_tile_keys(
    instance: dg.DagsterInstance, lineage: Lineage, before: Sequence[str], keys: Sequence[str]
) -> None:
    """Put other keys in the place of some.

    All are added anew in one call, so that the tiles of an image stay one contiguous range.
    """
    remove_tile_keys(instance, lineage, before)
    instance.add_dynamic_partitions(str(lineage.tiles.name), list(keys))


def remove_tile_keys(instance: dg.DagsterInstance, lineage: Lineage, keys: Iterable[str]) -> None:
    """Remove keys of tiles; in one call where the storage can."""
    storage = own_storage(instance)
    if storage is not None:
        storage.delete_dynamic_partitions(str(lineage.tiles.name), list(keys))
        return
    for key in keys:
        instance.delete_dynamic_partition(str(lineage.tiles.name), key)


def purge_tile_events(
    instance: dg.DagsterInstance, asset: dg.AssetKey, keys: Sequence[str]
) -> int | None:
    """Remove what was logged of tiles; return how many events, None where the storage cannot."""
    storage = own_storage(instance)
    return None if storage is None else storage.delete_partition_events(asset, list(keys))


def has_own_storage(instance: dg.DagsterInstance) -> bool:
    """Tell whether the event storage is this package's."""
    return own_storage(instance) is not None


def own_storage(instance: dg.DagsterInstance) -> "EventsTogether | None":
    """Return the event storage where it is this package's."""
    # Not by its class: its module takes half a second to import, and needs insides of Dagster.
    storage: Any = instance.event_log_storage
    return storage if hasattr(storage, "together") else None
