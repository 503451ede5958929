"""How a plan is run."""

from __future__ import annotations

from dataclasses import dataclass, field

from balancer.runtime.recipes import Simulation

STOP, CONTINUE = "stop", "continue"
MOST_SECONDS = 1_000_000  # eleven days; the system's calls that wait take 24 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """depth: items that wait before a stage. on_error: "stop" ends the pipeline with the first item that fails,
    "continue" gives a Failure in its place. processes: for every device, not for Edge TPUs alone. seconds: that one
    inference may take in a process. restarts: of one device's process, before it is given up. simulation: of `sim`.
    keep_state: variable tensors go on from item to item, instead of being reset before each. An item that fails on its
    way is missing in the sequence; a process that held state and is lost is not started anew: all later items fail.
    """

    depth: int = 2
    on_error: str = STOP
    processes: bool = False
    seconds: float = 60.0
    restarts: int = 3
    keep_state: bool = False
    simulation: Simulation = field(default_factory=Simulation)

    def __post_init__(self) -> None:
        """Raises ValueError for what no pipeline can be run with."""
        if self.on_error not in (STOP, CONTINUE):
            raise ValueError(f"on_error must be '{STOP}' or '{CONTINUE}', not {self.on_error!r}")
        for name, number, least in (("depth", self.depth, 1), ("restarts", self.restarts, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number from {least}, not {number!r}")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise ValueError(f"seconds must be above 0 and at most {MOST_SECONDS}, not {self.seconds!r}")
