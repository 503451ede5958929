"""How a plan is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from balancer.runtime.recipes import Simulation

OnError = Literal["stop", "continue"]
STOP: OnError = "stop"
CONTINUE: OnError = "continue"
MOST_SECONDS = 1_000_000  # eleven days; the system's waiting calls take 24 days at most


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a pipeline runs its items.

    depth: items that wait before a stage. on_error: "stop" ends the pipeline with the first item that fails, "continue"
    gives a Failure in place of its result. processes: every device gets a process of its own, not only Edge TPUs. exact:
    stages on the CPU compute with the kernels that bit-exactness is proven on, which are slower.
    seconds: time limit of one inference in a process. restarts: how often one device's process is started again before
    the device is given up. simulation: what the device `sim` does.

    keep_state: variable tensors keep their values from item to item; else they are reset before each. An item that fails
    is missing from the state of the later ones. A process that held state is not started again: all later items fail.
    """

    depth: int = 2
    on_error: OnError = STOP
    processes: bool = False
    exact: bool = False
    seconds: float = 60.0
    restarts: int = 3
    keep_state: bool = False
    simulation: Simulation = field(default_factory=Simulation)

    def __post_init__(self) -> None:
        """Raises ValueError for a value outside its range."""
        if self.on_error not in (STOP, CONTINUE):
            raise ValueError(f"on_error must be '{STOP}' or '{CONTINUE}', not {self.on_error!r}")
        for name, number, least in (("depth", self.depth, 1), ("restarts", self.restarts, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {number!r}")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise ValueError(f"seconds must be above 0 and at most {MOST_SECONDS}, not {self.seconds!r}")
