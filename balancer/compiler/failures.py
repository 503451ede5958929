"""What `edgetpu_compiler` prints when it fails, and what helps. Each entry names the public reports that show it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum


class About(Enum):
    """What a failure tells about. The first two are refusals: another cut may be taken."""

    ACTIVATIONS = "how much memory the segment's activations need at once"
    SEGMENT = "the segment, for a reason that the compiler does not give"
    MODEL = "the model, however it is cut"
    COMPILER = "the compiler, the time that it was given or the machine"


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """A failure and what helps. reason: in one line. passing: whether the same command may succeed the next time. general:
    whether another failure of the same output says more.
    """

    reason: str
    remedy: str
    about: About
    passing: bool = False
    general: bool = False


_LARGE = "cut this part further (more TPUs, or --keep-from), let it end earlier with --search_delegate, or use smaller inputs"
# The remedy where an op by itself is too large.
NO_CUT_HELPS = "no cut helps: use smaller inputs, or leave ops to the CPU with --search_delegate"
_RECONVERT = "convert the model again with TensorFlow 2.16 or older and a fixed batch size of 1"
_ELSEWHERE = "compile again, or cut elsewhere"
# edgetpu#N: github.com/google-coral/edgetpu/issues/N
_KNOWN: tuple[tuple[str, KnownFailure], ...] = (
    # edgetpu#439, 444, 449, 557, 608, 651, 653, 671
    (r"large activation tensors", KnownFailure("an activation is too large for the Edge TPU", _LARGE, About.ACTIVATIONS)),
    # edgetpu#686
    (r"Compilation timeout",
     KnownFailure("it took longer than its time limit", f"raise --timeout_sec; else {_LARGE}", About.COMPILER)),
    # edgetpu#173, 211: the same command passed on the next try
    (r"Internal compiler error", KnownFailure("internal compiler error", _ELSEWHERE, About.COMPILER, passing=True)),
    # edgetpu#829, 831
    (r"static-sized tensors",
     KnownFailure("a tensor has no fixed size", "convert the model again with fixed shapes and batch size 1", About.MODEL)),
    # edgetpu#168, 213, 313
    (r"Model not quantized",
     KnownFailure("the compiler finds it not quantised", f"{_RECONVERT}, quantised to full integers", About.MODEL)),
    (r"Invalid model",
     KnownFailure("the compiler finds the file invalid", _RECONVERT, About.MODEL, general=True)),
    # About the model: each partition has a segment that holds the op.
    (r"Encountered unresolved custom op: *([^\s.]*)",
     KnownFailure("it does not know the custom op {0}", "keep that op in a segment of its own, or out of the model",
                  About.MODEL)),
    (r"failed in Tflite interpreter",
     KnownFailure("its interpreter refuses the model", "run the model on a CPU first", About.MODEL)),
    # edgetpu#728
    (r"terminating with uncaught exception of type ([^\n]*)",
     KnownFailure("the compiler crashed ({0})", _ELSEWHERE, About.COMPILER, passing=True)),
    # edgetpu#482, 643, 669
    (r"Segmentation fault",
     KnownFailure("the compiler crashed (segmentation fault)", _ELSEWHERE, About.COMPILER, passing=True)),
    (r"No space left on device", KnownFailure("the disk is full", "make room, and call again", About.COMPILER)),
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
    return replace(failure, reason=failure.reason.format(*match.groups()))
