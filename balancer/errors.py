"""What can go wrong, each with its remedy.

    BalancerError              exit code 1
    ├── ModelError             the model file is not one that balancer can take
    ├── PlanError              the plan file, or a file that it names, is not what it should be
    ├── OutputError            something cannot be written, or would replace what is there
    ├── InputError             the inputs given for a run do not fit the model
    ├── ProfileError             the per-op profile is not what it should be, or of another model
    ├── MeasurementError         a file of measurements is not what it should be
    ├── HardwareError          the hardware file is not what it should be
    ├── DependencyError        a package that this step needs is not installed, or does not work
    ├── InterpreterError       the interpreter refuses a model
    ├── CompilerError          the vendor's compiler is not there, or does not compile
    ├── DeviceError            an Edge TPU is not there, or cannot be used
    ├── StageError             a stage of a pipeline failed on an item
    ├── ConstraintError        a constraint makes no sense, or contradicts another
    └── InfeasibleError        exit code 3: no plan meets what was asked

A programmer's wrong argument stays a ValueError or TypeError.
"""

from __future__ import annotations

_MOST_LETTERS = 1000  # of what a part of a message says: it may quote a file


class BalancerError(Exception):
    """Something a user can mend. str() is the one line that they read.

    what: what is wrong. where: file, tensor, op or offset. remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        what, where, remedy = (_line(str(part)) for part in self.args)
        return f"{where}: {what}; {remedy}"


def _line(text: str) -> str:
    """In one line, and not without end."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..."


class ModelError(BalancerError):
    """The model file is not one that balancer can take."""


class PlanError(BalancerError):
    """The plan file, or a file that it names, is not what it should be."""


class OutputError(BalancerError):
    """Something cannot be written, or would replace what is there."""


class InputError(BalancerError):
    """The inputs given for a run do not fit the model."""


class ProfileError(BalancerError):
    """The per-op profile is not what it should be, or of another model."""


class MeasurementError(BalancerError):
    """A file of measurements is not what it should be."""


class HardwareError(BalancerError):
    """The hardware file is not what it should be."""


class DependencyError(BalancerError):
    """A package that this step needs is not installed, or does not work."""


class InterpreterError(BalancerError):
    """The interpreter refuses a model."""


class CompilerError(BalancerError):
    """The vendor's compiler is not there, or does not compile what it is given."""


class DeviceError(BalancerError):
    """An Edge TPU is not there, or cannot be used."""


class StageError(BalancerError):
    """A stage of a pipeline failed on an item."""


class ConstraintError(BalancerError):
    """A constraint that makes no sense for the model, the devices or the solver."""


class InfeasibleError(BalancerError):
    """No plan meets what was asked."""

    exit_code = 3
