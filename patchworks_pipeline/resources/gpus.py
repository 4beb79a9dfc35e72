"""The GPUs that runs may use."""

from typing import ClassVar

from patchworks_core.machine.devices import Device, granted_devices, slots_on
from patchworks_pipeline.resources.settings import Deployed, setting


class GpuPool(Deployed):
    """The GPUs of this machine that runs may use; each running tile has one slot on one device."""

    section: ClassVar[str] = "gpus"

    slots_per_device: int = setting(1, ge=1, description="Tiles on one device at once.")
    min_free_bytes: int = setting(
        2_000_000_000, ge=0, description="A device with less free memory is not used."
    )

    def devices(self) -> list[Device]:
        """Return the devices that were granted and have enough free memory; may be none."""
        return [d for d in granted_devices() if d.free_bytes >= self.min_free_bytes]

    def slots(self) -> tuple[str, ...]:
        """Return the UUID of the device behind each slot; none where the CPU is used."""
        return slots_on(self.devices(), self.slots_per_device)
