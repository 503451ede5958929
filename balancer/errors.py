"""All exceptions that a user can meet. Each message says what is wrong, where, and what to do about it.

    BalancerError              exit code 1
    ├── ModelError             the model file is corrupt, or balancer does not support it
    ├── PlanError              the plan file, or a file that it names, is not valid
    ├── OutputError            a file cannot be written, or one that exists would be replaced
    ├── InputError             the inputs given for a run do not fit the model
    ├── ProfileError           the per-op profile is not valid, or was written for another model
    ├── MeasurementError       a file of measurements is not valid
    ├── HardwareError          the hardware file is not valid
    ├── DependencyError        a package that this step needs is not installed, or does not work
    ├── InterpreterError       the interpreter refuses a model
    ├── CompilerError          the vendor's compiler is not installed, or fails
    ├── DeviceError            an Edge TPU is not connected, or cannot be used
    ├── StageError             a stage of a pipeline failed on an item
    ├── ConstraintError        a constraint is impossible, or contradicts another
    ├── InvalidSolutionError   a solver's answer failed its check: a defect of balancer
    └── InfeasibleError        exit code 3: no plan satisfies the constraints
        └── NotFoundError      the search ended early without a plan; there may be one

A wrong argument in a program's call raises ValueError or TypeError instead.
"""

from __future__ import annotations

_MOST_LETTERS = 1000  # of each part of a message, since it may quote text from a file


class BalancerError(Exception):
    """An error that a user can do something about. str() is the one line that they read.

    what: what is wrong. where: file, tensor, op or offset. remedy: what to do. All three are positional, since an
    exception with required keywords cannot be unpickled, and these travel between processes.
    """

    exit_code = 1

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        what, where, remedy = (_line(str(part)) for part in self.args)
        return f"{where}: {what}; {remedy}"


def _line(text: str) -> str:
    """The text on one line, truncated after 1000 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..."


class ModelError(BalancerError):
    """The model file is corrupt, or balancer does not support it."""


class PlanError(BalancerError):
    """The plan file, or a file that it names, is not valid."""


class OutputError(BalancerError):
    """A file cannot be written, or one that exists would be replaced."""


class InputError(BalancerError):
    """The inputs given for a run do not fit the model."""


class ProfileError(BalancerError):
    """The per-op profile is not valid, or was written for another model."""


class MeasurementError(BalancerError):
    """A file of measurements is not valid."""


class HardwareError(BalancerError):
    """The hardware file is not valid."""


class DependencyError(BalancerError):
    """A package that this step needs is not installed, or does not work."""


class InterpreterError(BalancerError):
    """The interpreter refuses a model."""


class CompilerError(BalancerError):
    """The vendor's compiler is not installed, or fails on a segment."""


class DeviceError(BalancerError):
    """An Edge TPU is not connected, or cannot be used."""


class StageError(BalancerError):
    """A stage of a pipeline failed on an item."""


class ConstraintError(BalancerError):
    """A constraint is impossible for the model, the devices or the solver, or contradicts another."""


class InvalidSolutionError(BalancerError):
    """A solver's answer contradicts its problem, its options, or itself: a defect of balancer, not of the input."""


class InfeasibleError(BalancerError):
    """No plan satisfies the constraints."""

    exit_code = 3


class NotFoundError(InfeasibleError):
    """A search that a limit or Ctrl-C ended early has found no plan. There may be one all the same."""
