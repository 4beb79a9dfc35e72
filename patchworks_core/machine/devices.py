"""The GPUs this process may use, and slots on them for worker processes.

Devices are found by NVML, which needs no framework and starts no context. ``CUDA_VISIBLE_DEVICES``
is honoured by index, UUID and UUID prefix, as CUDA reads it: NVML itself ignores it, so NVML's
device 0 is not always the one that was granted.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchworks_core.errors import PlanError
from patchworks_core.tiles.numbers import whole_number

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU."""

    index: int
    """As NVML counts, in PCI bus order."""

    uuid: str
    """``GPU-...``; names the device wherever it is counted."""

    name: str
    """Of the product."""

    free_bytes: int
    """Memory that nobody holds."""

    total_bytes: int
    """Memory in all."""


def granted_devices(
    *, environ: Mapping[str, str] | None = None, nvml: Any = None
) -> tuple[Device, ...]:
    """Return the GPUs that this process may use; none where there is no driver.

    Parameters
    ----------
    environ : mapping, optional
        Environment; this process's by default.
    nvml : module, optional
        ``pynvml`` by default.

    Returns
    -------
    tuple of Device
        In the order CUDA counts them.
    """
    library = nvml or importlib.import_module("pynvml")
    try:
        library.nvmlInit()
    except library.NVMLError:  # no driver or no device: there is nothing to list
        return ()
    try:
        devices = [_device(library, index) for index in range(library.nvmlDeviceGetCount())]
    finally:
        library.nvmlShutdown()
    return visible(devices, (os.environ if environ is None else environ).get(VISIBLE_DEVICES))


Gpus = int | Sequence[int | str] | None
"""How GPUs may be chosen: the first so many that this process may use, or some of them by their
place among those or by their UUID; None is all."""


def devices_for(use_gpu: bool, gpus: Gpus = None) -> tuple[Device, ...]:
    """Return the GPUs that are wanted; none, and a warning, where there is none to use.

    Raises
    ------
    PlanError
        If `gpus` names one that this process may not use.
    """
    if not use_gpu and gpus is None:
        return ()
    devices = granted_devices()
    if not devices and gpus is None:
        warnings.warn("no GPU found; the function runs on the CPU", stacklevel=4)
    return devices if gpus is None else _chosen(devices, gpus)


def _chosen(devices: Sequence[Device], gpus: int | Sequence[int | str]) -> tuple[Device, ...]:
    """Return some of the devices, in the order they are named in.

    Examples
    --------
    >>> pair = [Device(0, "GPU-aa", "", 0, 0), Device(1, "GPU-bb", "", 0, 0)]
    >>> [d.uuid for d in _chosen(pair, 1)], [d.uuid for d in _chosen(pair, [1, "GPU-aa"])]
    (['GPU-aa'], ['GPU-bb', 'GPU-aa'])
    """
    names: Sequence[int | str] = [gpus] if isinstance(gpus, str) else gpus  # type: ignore[assignment]
    if isinstance(gpus, int):
        names = range(whole_number("gpus", gpus, least=1))
    chosen: list[Device] = []
    for name in names:
        if isinstance(name, str):
            matching = [device for device in devices if name and device.uuid.startswith(name)]
        else:
            matching = list(devices[name : name + 1]) if name >= 0 else []
        if len(matching) != 1 or matching[0] in chosen:
            there = ", ".join(f"{i} ({d.uuid})" for i, d in enumerate(devices)) or "none"
            raise PlanError(
                f"gpus={gpus!r} names {name!r}, and each GPU is named once and is one that this "
                f"process may use: {there} (see {VISIBLE_DEVICES} and the driver)"
            )
        chosen.append(matching[0])
    if not chosen:
        raise PlanError(f"gpus names at least one GPU, got {gpus!r}; leave it out for all of them")
    return tuple(chosen)


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    text = [value.decode() if isinstance(value, bytes) else value for value in (uuid, name)]
    return Device(index, text[0], text[1], int(memory.free), int(memory.total))


def visible(devices: Sequence[Device], setting: str | None) -> tuple[Device, ...]:
    """Return the devices that a value of ``CUDA_VISIBLE_DEVICES`` leaves visible.

    What the first entry is, a number or a UUID, all are. One that is not, or that names no device,
    hides itself and all after it; one that is named twice hides all.

    Examples
    --------
    >>> pair = [Device(0, "GPU-aa", "", 0, 0), Device(1, "GPU-bb", "", 0, 0)]
    >>> [device.index for device in visible(pair, "1,0")]
    [1, 0]
    >>> [device.index for device in visible(pair, "GPU-bb,7,0")]
    [1]
    >>> visible(pair, "0,0")
    ()

    Notes
    -----
    CUDA reads a number as C does, up to what is none (``0x1`` is 0), and a UUID by its first
    digits, large or small, with ``GPU-`` before them and no blank before that.

    References
    ----------
    CUDA C++ Programming Guide, "CUDA Environment Variables"; the rest as a driver 580 was seen to
    read it.
    """
    if setting is None:
        return tuple(devices)
    chosen: list[Device] = []
    are_numbers = _NUMBER.match(setting) is not None
    for entry in setting.split(","):
        matching = _named(devices, entry, is_number=are_numbers)
        if len(matching) != 1:
            break
        if matching[0] in chosen:
            return ()
        chosen.append(matching[0])
    return tuple(chosen)


_NUMBER = re.compile(r"\s*([+-]?[0-9]+)")

_UUID = re.compile(r"GPU-[0-9A-Fa-f-]+")


def _named(devices: Sequence[Device], entry: str, *, is_number: bool) -> list[Device]:
    """Return the devices that one entry of ``CUDA_VISIBLE_DEVICES`` may mean."""
    if is_number:
        number = _NUMBER.match(entry)
        return [d for d in devices if number is not None and d.index == int(number[1])]
    if not _UUID.fullmatch(entry.rstrip()):
        return []
    return [d for d in devices if d.uuid.lower().startswith(entry.rstrip().lower())]


def slots_on(devices: Sequence[Device], per_device: int) -> tuple[str, ...]:
    """Return the UUID of the device behind each slot, devices in turn.

    Examples
    --------
    >>> slots_on([Device(0, "GPU-aa", "", 0, 0), Device(1, "GPU-bb", "", 0, 0)], 2)
    ('GPU-aa', 'GPU-bb', 'GPU-aa', 'GPU-bb')
    """
    return tuple(device.uuid for device in devices) * per_device
