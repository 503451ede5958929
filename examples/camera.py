"""An endless source, as a camera is one, with back-pressure: frames that come while the pipeline is full are dropped.

    python examples/camera.py MODEL.tflite [--tpus 4] [--fps 2000] [--seconds 3]

One thread pushes a frame every 1 / fps seconds, and drops it where there is no room; the main thread pops results. Ends
after so many seconds, or with Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import balancer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Camera(threading.Thread):
    """Pushes frames at a rate of its own until it is told to end."""

    def __init__(self, pipeline: balancer.Pipeline, frames: Iterable[dict[str, Any]], fps: float) -> None:
        super().__init__(name="camera")
        self.pipeline, self.frames, self.fps = pipeline, frames, fps
        self.taken = self.dropped = 0
        self.ending = threading.Event()

    def run(self) -> None:
        start = time.perf_counter()
        for k, frame in enumerate(self.frames):
            self.ending.wait(max(0.0, start + k / self.fps - time.perf_counter()))
            if self.ending.is_set():
                break
            try:
                self.pipeline.push(frame, timeout=0)
                self.taken += 1
            except TimeoutError:
                self.dropped += 1
            except balancer.StageError:
                return  # the pipeline has stopped
        self.pipeline.finish()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tpus", type=int, default=4)
    parser.add_argument("--fps", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args(argv)
    plan = balancer.balance(arguments.model, arguments.tpus)
    # Frames are counted, not looked at: the simulated TPUs compute nothing, and keep the promised rate.
    options = balancer.RunOptions(simulation=balancer.Simulation(outputs="none"))
    with balancer.Pipeline(plan, "sim", options) as pipeline:
        frames = itertools.cycle(balancer.random_items(pipeline.interface.inputs, 8))
        camera = Camera(pipeline, frames, arguments.fps)
        camera.start()
        threading.Timer(arguments.seconds, camera.ending.set).start()
        try:
            results = sum(1 for _ in pipeline)
        finally:
            camera.ending.set()
    print(f"{camera.taken} frames taken, {camera.dropped} dropped, {results} results in order")
    print(f"{results / arguments.seconds:.1f}/s; the plan promises {plan.predicted.throughput_per_s:.1f}/s")
    return 0 if results == camera.taken else 1


if __name__ == "__main__":
    raise SystemExit(main())
