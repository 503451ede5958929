"""What `edgetpu_compiler` prints when it fails, and what helps. Each entry names the public reports that show it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """A failure and what helps. reason: in one line. passing: whether the same command may succeed the next time."""

    reason: str
    remedy: str
    passing: bool = False


_LARGE = "cut this part further (more TPUs, or --keep-from), let it end earlier with --search_delegate, or use smaller inputs"
# edgetpu#N: github.com/google-coral/edgetpu/issues/N
_KNOWN: tuple[tuple[str, KnownFailure], ...] = (
    # edgetpu#439, 444, 449, 557, 608, 651, 653, 671
    (r"large activation tensors", KnownFailure("an activation is too large for the Edge TPU", _LARGE)),
    # edgetpu#686
    (r"Compilation timeout", KnownFailure("it took longer than its time limit", f"raise --timeout_sec; else {_LARGE}")),
    # edgetpu#173, 211: the same command passed on the next try
    (r"Internal compiler error", KnownFailure("internal compiler error", "compile again, or cut elsewhere", passing=True)),
    # edgetpu#829, 831
    (r"static-sized tensors", KnownFailure("a tensor has no fixed size", "convert the model with fixed shapes and batch 1")),
    # edgetpu#168, 213, 313
    (r"Model not quantized", KnownFailure("the compiler finds it not quantised", "convert with an older converter, batch 1")),
    (r"Invalid model", KnownFailure("the compiler finds the file invalid", "convert the model with an older converter")),
    (r"Encountered unresolved custom op: *([^\s.]*)",
     KnownFailure("it does not know the custom op {0}", "keep that op in a segment of its own, or out of the model")),
    (r"failed in Tflite interpreter", KnownFailure("its interpreter refuses the model", "run the model on a CPU first")),
    # edgetpu#728
    (r"terminating with uncaught exception of type ([^\n]*)",
     KnownFailure("the compiler crashed ({0})", "compile again, or cut elsewhere", passing=True)),
    # edgetpu#482, 643, 669
    (r"Segmentation fault", KnownFailure("the compiler crashed (segmentation fault)", "compile again, or cut elsewhere",
                                    passing=True)),
    (r"No space left on device", KnownFailure("the disk is full", "make room, and call again")),
)  # fmt: skip


def failures_in(text: str) -> tuple[KnownFailure, ...]:
    """The failures that an output names, in its order.

    >>> [failure.reason for failure in failures_in("Encountered unresolved custom op: Foo.")]
    ['it does not know the custom op Foo']
    """
    placed = [
        (match.start(), _filled(failure, match)) for pattern, failure in _KNOWN for match in re.finditer(pattern, text)
    ]
    return tuple(failure for _, failure in sorted(placed, key=lambda pair: pair[0]))


def _filled(failure: KnownFailure, match: re.Match[str]) -> KnownFailure:
    return KnownFailure(failure.reason.format(*match.groups()), failure.remedy, failure.passing)
