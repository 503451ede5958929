"""Cutting a large model: what it adds to resident memory, in a child process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from balancer.tflite import synth

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
import resource, sys
from balancer.tflite import synth
from balancer.graph import boundary_names
from balancer.ground.opsets import op_set
from balancer.tflite.cut import Cutter

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

path, segments = sys.argv[1], int(sys.argv[2])
open("/proc/self/clear_refs", "w").write("5")
before = resident()
data = open(path, "rb").read()
cutter = Cutter(data)
n = len(cutter.graph.ops)
edges = [n * k // segments for k in range(segments + 1)]
sets = [op_set(range(a, b)) for a, b in zip(edges, edges[1:])]
names = boundary_names(cutter.graph, sets)
largest = 0
for ops in sets:
    largest = max(largest, len(cutter.cut(ops, names)))
print(peak() - before, len(data), largest)
"""


def test_memory_rises_by_at_most_three_files_and_the_largest_segment(tmp_path: Path) -> None:
    path = tmp_path / "large.tflite"
    path.write_bytes(synth.fc(4480))  # 60 MiB
    for segments in (1, 8):
        command = [sys.executable, "-c", CODE, str(path), str(segments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rise, size, largest = (int(n) for n in done.stdout.split())
        assert size > 55 << 20
        assert rise <= 3 * size + largest
    path.unlink()
