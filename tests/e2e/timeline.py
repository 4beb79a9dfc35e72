"""What the seconds between landing and labels are spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.e2e.facility import Run


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds from landing to merged labels of one image, by what they were spent on."""

    settling: float
    """Until the acquisition had been still for long enough: the deployment's choice."""

    sensing: float
    """Until a sensor's tick asked for the next run, three times."""

    launching: float
    """Between a run's request and the start of its first step, three times: line, process,
    imports."""

    running: float
    """In the runs' steps: the work, and the events around it."""

    @classmethod
    def of(cls, landed: float, runs: Sequence[Run], settle_seconds: float) -> Timeline:
        """Part the time of one image, given its runs in order."""
        ends = [landed + settle_seconds, *(run.ended for run in runs)]
        return cls(
            settling=settle_seconds,
            sensing=sum(run.created - end for run, end in zip(runs, ends, strict=False)),
            launching=sum(run.started - run.created for run in runs),
            running=sum(run.ended - run.started for run in runs),
        )

    @property
    def total(self) -> float:
        """From landing to the end of the last run."""
        return self.settling + self.sensing + self.launching + self.running

    def __str__(self) -> str:
        return (
            f"landing to labels {self.total:.1f} s: settling {self.settling:.1f}, "
            f"sensing {self.sensing:.1f}, launching {self.launching:.1f}, "
            f"running {self.running:.1f}"
        )
