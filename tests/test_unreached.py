"""What the other tests leave out: mostly how a contradiction in a file, or in a caller's arguments, is refused.

They were found by measuring coverage. Each stands for a line or a branch that no traced test reached.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import struct
import sys
import threading
import time
import traceback
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from flatbuffers import flexbuffers
from PIL import Image

import balancer
from balancer.cli.main import main
from balancer.cost.hardware import load_hardware
from balancer.cost.layout import layout
from balancer.errors import DependencyError, InfeasibleError, InputError, InterpreterError, ModelError
from balancer.ground.opsets import parse_op_set
from balancer.inputs import InputSpec, load_items, random_items
from balancer.interpreter import runtime
from balancer.processes.scratch import scratch
from balancer.runtime.devices import list_devices
from balancer.runtime.executors import Recipe, make_executor, open_with_retry
from balancer.runtime.images import image_files, load_image
from balancer.runtime.measuring import measure
from balancer.runtime.simulated import Behaviour
from balancer.runtime.stage_errors import named_error
from balancer.runtime.tensors import Life, TensorSpec
from balancer.runtime.tensors import layout as frame_layout
from balancer.solve import (
    Constraints,
    Cost,
    Problem,
    SolverOptions,
    Structure,
    Transfer,
    check,
    solve,
    structured_problem,
)
from balancer.solve.cpsat import _solve
from balancer.tflite import flatbuffer, synth
from balancer.tflite.constant_folding import folded
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import EDGETPU_CUSTOM_OP, IDENTIFIER
from balancer.tflite.package import read_package
from balancer.workers import Failure, WorkerLost
from tests import handmade
from tests.plans import three_stages
from tests.strategies import KIND, interval_problem, looped_batch
from tests.test_forged import _vector as forged_vector
from tests.test_older_files import OLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# A model file contradicts itself.


def _no_buffers(b: handmade.Builder) -> bytes:
    b.buffers.clear()
    return b.file([], [])


def _metadata_of_no_buffer(b: handmade.Builder) -> bytes:
    source = b.tensor("in")
    metadata = [Table("Metadata", {"name": "labels", "buffer": 9})]
    return b.file([source], [b.relu(source, "relu")], metadata=metadata)


def _no_ops(b: handmade.Builder) -> bytes:
    source = b.tensor("in")
    return b.file([source], [source])


def _external_buffers(b: handmade.Builder) -> bytes:
    source = b.tensor("in")
    return b.file([source], [b.relu(source, "relu")], external_buffers=[Table("ExternalBuffer", {"id": 1})])


def _short_constant(b: handmade.Builder) -> bytes:
    source = b.tensor("in")
    made = b.conv(source, "conv")
    b.tensors[1] = b.tensors[1].changed(buffer=b.buffer(np.zeros(7, np.int8)))
    return b.file([source], [made])


def _constant_as_input(b: handmade.Builder) -> bytes:
    source, constant = b.tensor("in"), b.ints("seven", [7])
    return b.file([source, constant], [b.relu(source, "relu")])


def _read_before_it_is_computed(b: handmade.Builder) -> bytes:
    source, later = b.tensor("in"), b.tensor("later")
    made = b.add(source, later, "sum")
    b.op("RELU", [source], [later])
    return b.file([source], [made])


def _computed_twice(b: handmade.Builder) -> bytes:
    source = b.tensor("in")
    made = b.relu(source, "relu")
    b.op("RELU", [source], [made])
    return b.file([source], [made])


@pytest.mark.parametrize(
    ("forge", "what"),
    [
        (_no_buffers, "no buffers"),
        (_metadata_of_no_buffer, "metadata 'labels': buffer 9 does not exist"),
        (_no_ops, "the model has no ops"),
        (_external_buffers, "its constants lie in other files"),
        (_short_constant, r"shape \[4, 3, 3, 4\] takes 144 bytes, its buffer has 7"),
        (_constant_as_input, "'seven': is both a constant and a model input"),
        (_read_before_it_is_computed, "reads tensor 1 'later' before any op computes it"),
        (_computed_twice, "writes tensor 1 'relu' a second time"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(forge: Callable[[handmade.Builder], bytes], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        decode_model(forge(handmade.Builder()), "made")


@pytest.mark.parametrize("data", [handmade.conv_chain(2), handmade.with_signature_and_metadata()])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(data: bytes) -> None:
    for size in range(0, len(data) - 16, 5):
        with pytest.raises(ModelError):
            decode_model(data[:size], "made")


def test_options_of_an_unknown_kind_are_refused() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    b.operators[0] = b.operators[0].changed(builtin_options_type=250)
    with pytest.raises(ModelError, match=r"Operator has builtin_options of an unknown kind \(250\)"):
        decode_model(b.file([source], [made]), "made")


def test_a_field_outside_its_table_is_refused() -> None:
    data = bytearray(handmade.conv_chain(1))
    root = struct.unpack_from("<I", data)[0]
    layout_at = root - struct.unpack_from("<i", data, root)[0]
    struct.pack_into("<H", data, layout_at + 4, 0xFFF0)
    with pytest.raises(ModelError, match="field 'version' outside its Model"):
        decode_model(bytes(data), "made")


def test_a_vector_of_tables_that_many_tables_share_is_not_walked_for_each() -> None:
    """500 subgraphs with the same 500 tensors: our encoder would write a vector for each."""
    builder = flatbuffers.Builder(1 << 16)
    generated.TensorStart(builder)
    shared = forged_vector(builder, [generated.TensorEnd(builder)] * 500)
    subgraphs = []
    for _ in range(500):
        generated.SubGraphStart(builder)
        generated.SubGraphAddTensors(builder, shared)
        subgraphs.append(generated.SubGraphEnd(builder))
    listed = forged_vector(builder, subgraphs)
    generated.ModelStart(builder)
    generated.ModelAddSubgraphs(builder, listed)
    builder.Finish(generated.ModelEnd(builder), IDENTIFIER)
    with pytest.raises(ModelError, match="more parts than the file has room for"):
        decode_model(bytes(builder.Output()), "made")


def test_a_free_input_that_makes_a_tensor_too_large_is_refused() -> None:
    b = handmade.Builder()
    source = b.tensor("in", (1, 30_000, 1, 1), shape_signature=np.array([-1, 30_000, 1, 1], np.int32))
    made = b.tensor("made", (1, 1, 1, 1), shape_signature=np.array([-1] * 4, np.int32))
    b.op("TILE", [source, b.ints("times", [1, 1, 30_000, 4])], [made])
    with pytest.raises(ModelError, match="takes 3600000000 bytes"):
        balancer.load_graph(b.file([source], [made]))


def test_an_op_whose_tensors_lack_the_dimensions_that_it_needs_is_refused() -> None:
    b = handmade.Builder()
    source, made = b.tensor("in"), b.tensor("made")
    b.op("CONV_2D", [source, b.weights("w", (4, 4)), b.bias("b", 4)], [made], Table("Conv2DOptions", {}))
    with pytest.raises(ModelError, match="op 0 CONV_2D: its tensors do not have the shapes"):
        balancer.load_graph(b.file([source], [made]))


def test_an_op_that_reads_a_shape_unknown_before_the_run_is_refused_with_the_tensor() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    b.op("CUSTOM:Decode", [source], [b.tensor("boxes", (), "INT8")])
    b.tensors[-1].fields.pop("shape")
    made = b.tensor("made")
    b.op("BATCH_MATMUL", [len(b.tensors) - 2, source], [made], Table("BatchMatMulOptions", {}))
    with pytest.raises(ModelError, match="the shape of tensor 'boxes' is not known"):
        balancer.load_graph(b.file([source], [made]))


def test_a_signature_goes_along_only_where_the_segment_has_its_tensors() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    unused = b.tensor("unused")

    def signature(given: int) -> Table:
        sides = {"inputs": given, "outputs": made}
        return Table(
            "SignatureDef", {side: [Table("TensorMap", {"name": side, "tensor_index": t})] for side, t in sides.items()}
        )

    cutter = Cutter(b.file([source], [made], signature_defs=[signature(source), signature(unused)]))
    assert len(decode_model(cutter.cut(0b1), "segment").root["signature_defs"]) == 1


def test_a_model_is_read_from_what_is_a_file_alone() -> None:
    with pytest.raises(ModelError, match="/dev/null: is not a file"):
        balancer.load_graph("/dev/null")


# What is not folded because kernels might compute it otherwise.

INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")


def _array(*values: float, dtype: np.dtype[Any] = INT32) -> NDArray[Any]:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("kind", "options", "fields", "values"),
    [
        ("CONCATENATION", "ConcatenationOptions", {"axis": 3}, [_array(1), _array(2)]),
        ("CONCATENATION", "ConcatenationOptions", {"fused_activation_function": 1}, [_array(1), _array(2)]),
        ("CONCATENATION", "ConcatenationOptions", {}, [_array(1), _array(2, dtype=FLOAT32)]),
        ("PACK", "PackOptions", {"values_count": 3}, [_array(1), _array(2)]),
        ("SLICE", "SliceOptions", {}, [_array(1, 2, 3), _array(2), _array(2)]),
        ("SLICE", "SliceOptions", {}, [_array(1, 2, 3), _array(-1), _array(1)]),
        ("RESHAPE", "ReshapeOptions", {}, [_array(1, 2), _array(1, 2, dtype=FLOAT32)]),
        ("CAST", "CastOptions", {}, [_array(np.inf, dtype=FLOAT32)]),
        ("GATHER", "GatherOptions", {}, [_array(1, 2), _array(2)]),
        ("GATHER", "GatherOptions", {}, [_array(1, 2), _array(-1)]),
        ("ADD", "AddOptions", {}, [np.zeros((40, 1), INT32), np.zeros((1, 40), INT32)]),
        ("MUL", "MulOptions", {}, [_array(3e38, dtype=FLOAT32), _array(3e38, dtype=FLOAT32)]),
        ("REDUCE_PROD", "ReducerOptions", {}, [_array(2, dtype=FLOAT32), _array(0)]),
    ],
)
def test_what_kernels_refuse_or_compute_in_another_way_is_not_folded(
    kind: str, options: str, fields: dict[str, int], values: list[NDArray[Any]]
) -> None:
    dtype = FLOAT32 if kind == "MUL" else INT32
    assert folded(kind, values, Table(options, fields), dtype) is None


def test_sums_of_numbers_with_a_fraction_are_folded() -> None:
    made = folded("ADD", [_array(0.5, dtype=FLOAT32), _array(1.25, dtype=FLOAT32)], Table("AddOptions", {}), FLOAT32)
    assert made is not None
    assert made.tolist() == [1.75]


def _folded_ops(source_type: str, constant: Callable[[handmade.Builder], int], out_type: int = 2) -> int:
    """The folded ops of a model that joins its own shape (op 0) with a constant (op 1)."""
    b = handmade.Builder()
    source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    shape, joined = b.tensor("shape", (4,), source_type, scale=None), b.tensor("joined", (5,), "INT32", scale=None)
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": out_type}))
    b.op("CONCATENATION", [shape, constant(b)], [joined], Table("ConcatenationOptions", {"axis": 0}))
    return Cutter(b.file([source], [b.conv(source, "conv")])).graph.folded


def test_a_computation_of_shapes_is_folded_only_if_all_it_reads_is_known_and_plain() -> None:
    assert _folded_ops("INT32", lambda b: b.ints("one", [1])) == 0b11
    assert _folded_ops("INT32", lambda b: b.ints("one", [1]), out_type=4) == 0b00  # the option says int64
    quantised = b"\x01\x00\x00\x00"
    assert _folded_ops("INT32", lambda b: b.tensor("one", (1,), "INT32", data=np.frombuffer(quantised, "<i4"))) == 0b01
    assert (
        _folded_ops("INT32", lambda b: b.tensor("one", (1,), "INT16", scale=None, data=np.array([1], np.int16))) == 0b01
    )


# What a compiled file holds.


def _compiled(package: bytes) -> bytes:
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Key("4")
        builder.Blob(package)
    b = handmade.Builder()
    source, made = b.tensor("in"), b.tensor("made")
    options = np.frombuffer(bytes(builder.Finish()), np.uint8)
    b.op(f"CUSTOM:{EDGETPU_CUSTOM_OP}", [source], [made], custom_options=options)
    return b.file([source], [made])


def _package(identifier: bytes = b"DWN1", **fields: Any) -> bytes:
    return flatbuffer.encode(Table("Package", fields), identifier=identifier, size_hint=1 << 10)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (handmade.conv_chain(1), "holds 0 compiled parts, where one is expected"),
        (_compiled(_package()), "its package holds no executable"),
        (_compiled(_package(b"OTHR")), "the package in its compiled part has an unknown format"),
    ],
)
def test_a_package_without_what_it_should_hold_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        read_package(data, name="made", where="made")


def test_a_compiled_part_without_a_readable_package_is_refused() -> None:
    b = handmade.Builder()
    source, made = b.tensor("in"), b.tensor("made")
    b.op(f"CUSTOM:{EDGETPU_CUSTOM_OP}", [source], [made], custom_options=np.zeros(2, np.uint8))
    with pytest.raises(ModelError, match="no readable package"):
        read_package(b.file([source], [made]), name="made", where="made")


# Costs of what converters hardly ever write.


def _dense_on_computed_weights(b: handmade.Builder) -> bytes:
    source = b.tensor("in", (4, 4))
    weights, made = b.relu(source, "weights", shape=(4, 4)), b.tensor("made", (4, 4))
    b.op("FULLY_CONNECTED", [source, weights, -1], [made], Table("FullyConnectedOptions", {}))
    return b.file([source], [made])


def _depthwise_of_three_dimensions(b: handmade.Builder) -> bytes:
    source, made = b.tensor("in"), b.tensor("made")
    kernel = b.weights("w", (3, 3, 4))
    b.op("DEPTHWISE_CONV_2D", [source, kernel, b.bias("b", 4)], [made], Table("DepthwiseConv2DOptions", {}))
    return b.file([source], [made])


@pytest.mark.parametrize("forge", [_dense_on_computed_weights, _depthwise_of_three_dimensions])
def test_weights_of_an_unknown_layout_are_predicted_to_take_nothing(
    forge: Callable[[handmade.Builder], bytes],
) -> None:
    plan = balancer.balance(forge(handmade.Builder()), 1)
    assert sum(s.predicted.cached_bytes + s.predicted.streamed_bytes for s in plan.segments) == 0


def test_padding_of_channels_is_laid_out_as_a_convolution_that_widens() -> None:
    b = handmade.Builder()
    source, made = b.tensor("in"), b.tensor("made", (1, 4, 4, 9))
    b.op("PAD", [source, b.ints("pads", [[0, 0], [0, 0], [0, 0], [0, 5]])], [made], Table("PadOptions", {}))
    graph = balancer.load_graph(b.file([source], [made]))
    assert layout(graph, graph.ops[0]).cached == 64 * (4 + 4)  # 64 rows of 4 weights and a bias


# Synthetic models.


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: synth.fc(10, layers=1), "2 or more layers"),
        (lambda: synth.fc(10, layers=2, output_type="int4"), "output type"),
        (lambda: synth.conv(0), "width must be from 1 to 65536, not 0"),
        (lambda: synth.fc(65_536, layers=3), "weight bytes is more than"),
    ],
)
def test_a_synthetic_model_of_impossible_sizes_is_a_value_error(make: Callable[[], bytes], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()


# Solvers and their callers' mistakes.

TWO_OPS = {0b01: Cost(5, 0), 0b10: Cost(5, 0), 0b11: Cost(10, 0)}


@pytest.mark.parametrize("change", [{"stages": 0}, {"solver": "best"}])
def test_wrong_options_are_value_errors(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least one device|there is no solver 'best'"):
        solve(interval_problem((0, 1), TWO_OPS, 2), SolverOptions(**change))


@pytest.mark.parametrize("solver", ["chain", "cpsat"])
def test_a_solver_that_does_not_take_the_problem_says_so(solver: str) -> None:
    kinds = replace(interval_problem((0, 1), TWO_OPS, 1), devices=((KIND, 1), ("other", 1)))
    with pytest.raises(ValueError, match=f"the solver '{solver}' takes"):
        solve(kinds, SolverOptions(solver=solver, max_pipelines=1))


@pytest.mark.parametrize("solver", ["chain", "downset", "exhaustive", "dfs-interval-dp"])
def test_where_no_segment_is_allowed_there_is_no_plan(solver: str) -> None:
    with pytest.raises(InfeasibleError):
        solve(interval_problem((0, 1), {}, 2), SolverOptions(solver=solver, max_pipelines=1))


@pytest.mark.parametrize("solver", ["chain", "downset", "shortest-path"])
def test_a_batch_that_allows_what_the_exact_cost_forbids_is_found_out(solver: str) -> None:
    problem = interval_problem((0, 1), TWO_OPS, 2)
    held = Constraints(max_latency_ns=1000) if solver == "shortest-path" else Constraints()
    with pytest.raises(ValueError, match="the batch form of the cost allows a segment"):
        solve(
            replace(problem, exact=lambda ops, kind: None),
            SolverOptions(solver=solver, max_pipelines=1, constraints=held),
        )


def _parallel(count: int) -> Problem:
    """Ops that read nothing from each other, each with a time of its own."""
    times = tuple(3 + k % 4 for k in range(count))
    structure = Structure(stage_ns=1, op_ns=times, transfers=())
    return structured_problem((0,) * count, [(KIND, 2)], {KIND: structure})


def _interrupted_at(problem: Problem, call: int) -> Problem:
    """The same problem; Ctrl-C comes at a call of its costs."""
    calls = itertools.count(1)

    def counted(costs: Callable[..., Any]) -> Callable[..., Any]:
        def costed(*arguments: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return costs(*arguments)

        return costed

    return replace(problem, exact=counted(problem.exact), batch=lambda sets, kind: counted(problem.batch(sets, kind)))


# The best pipeline of two stages is not cut from the order of execution: 9 ns alone beside the others.
BETTER_OUT_OF_ORDER = structured_problem(
    (0, 0, 0, 0), [(KIND, 2)], {KIND: Structure(stage_ns=1, op_ns=(3, 9, 2, 4), relaxed=True)}
)


@pytest.mark.parametrize("solver", ["auto", "cpsat", "downset", "shortest-path"])
def test_an_interrupt_at_any_time_gives_the_best_so_far_or_is_passed_on(solver: str) -> None:
    held = Constraints(max_latency_ns=99) if solver == "shortest-path" else Constraints()
    options = SolverOptions(solver=solver, max_pipelines=1, max_replicas=1, constraints=held)
    ends: list[str] = []
    while "complete" not in ends:
        try:
            solution = solve(_interrupted_at(BETTER_OUT_OF_ORDER, len(ends) + 1), options)
        except KeyboardInterrupt:
            ends.append("passed on")
            continue
        check(BETTER_OUT_OF_ORDER, solution, options)
        ends.append(solution.ended.value)
    assert {"passed on", "interrupted"} <= set(ends)


def test_an_interrupt_before_any_plan_is_known_is_passed_on() -> None:
    problem = interval_problem((0, 0, 0), {0b101: Cost(5, 0), 0b010: Cost(5, 0)}, 2)
    options = SolverOptions(solver="downset", max_pipelines=1)
    assert solve(problem, options).value.objective_ns == 5
    with pytest.raises(KeyboardInterrupt):
        solve(_interrupted_at(problem, 2), options)


def _main_thread_waits() -> bool:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    names = [entry.name for entry in traceback.extract_stack(frame)]
    return "wait" in names and "start" not in names


def test_an_interrupt_stops_cp_sat() -> None:
    stopped = threading.Event()

    class Waiting:
        """A solver that ends when it is told to."""

        def solve(self, model: object) -> None:
            while not _main_thread_waits():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped.wait(20)

        def stop_search(self) -> None:
            stopped.set()

    with pytest.raises(KeyboardInterrupt):
        _solve(Waiting(), None)  # type: ignore[arg-type]
    assert stopped.is_set()


def test_no_time_at_all_is_a_limit_that_was_reached() -> None:
    options = SolverOptions(solver="shortest-path", constraints=Constraints(max_latency_ns=99), seconds=1e-9)
    with pytest.raises(InfeasibleError, match="within the limits"):
        solve(_parallel(5), options)


def test_too_many_down_sets_for_a_latency_are_left_to_cp_sat() -> None:
    problem = _uneven(24)
    solution = solve(problem, SolverOptions(max_replicas=1, constraints=Constraints(max_latency_ns=10_000)))
    assert solution.solver == "cpsat"
    order = solve(
        problem, SolverOptions(solver="shortest-path", max_replicas=1, constraints=Constraints(max_latency_ns=10_000))
    )
    assert order.statistics["down_sets_left_out"] == 1
    assert solution.value.objective_ns <= order.value.objective_ns


def _uneven(count: int) -> Problem:
    """Independent ops, no two of which are alike, so that none can be folded."""
    structure = Structure(stage_ns=1, op_ns=tuple(100 + 7 * k for k in range(count)))
    return structured_problem((0,) * count, [(KIND, 2)], {KIND: structure})


def test_cp_sat_holds_to_a_number_of_stages() -> None:
    problem = _parallel(5)
    for stages in (1, 2):
        solution = solve(problem, SolverOptions(solver="cpsat", stages=stages, max_pipelines=1))
        assert len(solution.pipelines[0].stages) == stages


def _two_tensors() -> Problem:
    """Three ops in a row; a tensor of 50 bytes crosses the first cut, one of 10 the second."""
    transfers = (Transfer(0, (1,), False, 0, 0, 50), Transfer(1, (2,), False, 0, 0, 10))
    structure = Structure(stage_ns=1, op_ns=(20, 10, 10), transfers=transfers)
    return structured_problem((0, 0b001, 0b010), [(KIND, 2)], {KIND: structure})


@pytest.mark.parametrize("solver", ["auto", "cpsat"])
@pytest.mark.parametrize(("most_bytes", "expected"), [(50, [0b001, 0b110]), (49, [0b011, 0b100]), (9, [0b111])])
def test_the_bytes_that_cross_a_cut_are_limited(solver: str, most_bytes: int, expected: list[int]) -> None:
    held = Constraints(max_boundary_bytes=most_bytes)
    solution = solve(_two_tensors(), SolverOptions(solver=solver, max_replicas=1, constraints=held))
    assert [stage.ops for stage in solution.pipelines[0].stages] == expected
    assert solution.status == "optimal"


def test_a_latency_at_a_rate_has_a_bound_under_further_constraints() -> None:
    held = Constraints(max_objective_ns=35, kept_from=frozenset({(1, 0)}))
    solution = solve(_two_tensors(), SolverOptions(max_replicas=1, constraints=held))
    assert [stage.ops for stage in solution.pipelines[0].stages] == [0b001, 0b110]
    assert solution.latency_bound_ns == solution.value.latency_ns


@pytest.mark.parametrize("truth", [None, Cost(1000, 0)])
def test_what_a_kind_really_costs_is_learnt_where_the_structure_is_too_cheap(truth: Cost | None) -> None:
    """The structure says 30 ns on either kind. In truth one kind takes 40, and the other a second or nothing at all."""
    structure = Structure(stage_ns=0, op_ns=(30,), relaxed=True)
    plain = structured_problem((0,), [("slow", 1), ("fast", 1)], {"slow": structure, "fast": structure})

    def exact(ops: int, kind: str) -> Cost | None:
        return truth if kind == "slow" else Cost(40, 0)

    problem = replace(plain, exact=exact, batch=looped_batch(exact))
    solution = solve(problem, SolverOptions(solver="cpsat", max_pipelines=1, max_replicas=1))
    assert solution.pipelines[0].stages[0].kind == "fast"
    assert solution.value.objective_ns == solution.bound_ns == 40


# Running.


def test_what_says_none_gives_the_same_arrays_for_every_item() -> None:
    spec = TensorSpec("out", (2,), "int8", 2)
    executor = make_executor(Recipe(segment="s", device="none", outputs=(spec,)), 1.0)
    given: list[dict[str, NDArray[Any]]] = [{}, {"out": np.ones(2, np.int8)}]
    for tensors in given:
        executor.run(0, tensors)
        assert tensors["out"].dtype == np.int8
    executor.interrupt()
    executor.close()


def test_a_device_that_refuses_is_opened_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refusing(model: bytes, device: str) -> Any:
        tries.append(device)
        if len(tries) != 3:
            raise InterpreterError("refused", device, "wait")
        return "opened"

    monkeypatch.setattr("balancer.runtime.executors.open_on_tpu", refusing)
    with pytest.raises(InterpreterError):
        open_with_retry(b"", "usb:0", (0, 0))
    assert open_with_retry(b"", "usb:0", (0, 0)) == "opened"  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match="an entry for each try"):
        open_with_retry(b"", "usb:0", ())


@pytest.mark.parametrize("wrong", [{"stage_ns": -1}, {"stage_ns": 1, "jitter": math.inf}])
def test_a_behaviour_is_of_finite_times(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Behaviour(**wrong)


def test_a_simulated_tpu_that_dies_in_a_thread_is_lost_and_one_in_a_process_ends_it() -> None:
    died: list[int] = []
    tensors: dict[str, NDArray[Any]] = {}
    recipe = Recipe(segment="s", device="sim", behaviour=Behaviour(stage_ns=0, dying=1_000_000))
    with pytest.raises(WorkerLost, match="the simulated TPU is gone"):
        make_executor(recipe, 1.0).run(0, tensors)
    make_executor(recipe, 1.0, lambda: died.append(1)).run(0, tensors)
    assert died


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_measuring_takes_a_finite_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        measure(None, [], seconds=seconds)  # type: ignore[arg-type]


def test_a_pipeline_is_entered_once_and_used_inside(tmp_path: Path) -> None:
    pipeline = balancer.Pipeline(three_stages(tmp_path, synth.fc(60, layers=4)), "sim")
    item = random_items(pipeline.interface.inputs, 1)[0]
    with pytest.raises(RuntimeError, match="in a with statement"):
        pipeline.push(item)
    with pipeline:
        with pytest.raises(RuntimeError, match="entered once"):
            pipeline.__enter__()
        pipeline.push(item)
        pipeline.finish()
        assert len(list(pipeline)) == 1


def test_an_error_that_is_not_ours_is_named_by_segment_and_item(tmp_path: Path) -> None:
    plan = three_stages(tmp_path, synth.fc(60, layers=4))
    error = named_error(plan, Failure(item=7, line=0, stage=1, error=KeyError("x")))
    assert str(error) == f"{plan.segments[1].name}, item 7: KeyError: 'x'; see the log"


def test_tensors_of_types_that_numpy_lacks_stay_out_of_shared_memory() -> None:
    lives = {name: Life(TensorSpec(name, (4,), dtype, 4), 0, 1) for name, dtype in (("a", "int8"), ("b", "resource"))}
    assert list(frame_layout([lives]).offsets) == ["a"]


def test_a_usb_device_without_its_node_is_named_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/usb/devices/2-1"
    folder.mkdir(parents=True)
    for name, text in (("idVendor", "18d1"), ("idProduct", "9302"), ("busnum", "2"), ("devnum", "9")):
        (folder / name).write_text(text)
    (device,) = list_devices(tmp_path)
    assert "is not there" in str(device.problem)
    assert "/dev/bus/usb" in str(device.remedy)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_pictures_are_for_bytes_and_floats(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("L", (3, 3), 255).save(path)
    spec = InputSpec("in", (1, 2, 2, 1), dtype)
    if dtype == "float32":
        assert load_image(path, spec).tolist() == np.ones((1, 2, 2, 1)).tolist()
        return
    with pytest.raises(InputError, match="input 'in' is int16"):
        load_image(path, spec)


def test_pictures_are_files_in_a_folder_that_can_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is not a file"):
        load_image(tmp_path / "pipe.png", InputSpec("in", (1, 2, 2, 1), "uint8"))
    with pytest.raises(InputError, match="cannot be read"):
        image_files(tmp_path / "nowhere")


def test_where_files_cannot_be_locked_folders_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refused)
    with scratch(tmp_path, "made-") as folder:
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


# Arguments and files at the command line.


def test_a_profile_is_written_and_reported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ops = len(balancer.load_graph(model).ops)
    assert main(["profile", str(model)]) == 0
    assert capsys.readouterr().out.startswith(f"net_profile.json: {ops} ops")
    assert main(["profile", str(model), "-o", "other.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "other.json", "ops": ops}
    document = json.loads(Path("other.json").read_text())
    Path("other.json").write_text(json.dumps(document | {"ops": None}))
    assert main(["solve", str(model), "-n", "2", "--profile", "other.json"]) == 1
    assert "has no list of ops" in capsys.readouterr().err


def test_a_synthetic_model_is_reported_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made.tflite"
    assert main(["synth", "fc", "--width", "20", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path), "bytes": path.stat().st_size}


def test_fitted_constants_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    assert main(["calibrate", "--data", str(OLDER / "tuned"), "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert "fitted to measured times" in said
    assert "mean absolute error" in said
    assert load_hardware(str(path)).name == "mine, fitted to simulated times"


def test_segments_are_given_op_by_op_or_by_the_plan_of_the_same_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = len(balancer.load_graph(model).ops) - 1
    assert main(["predict", str(model), "--segments", f"0-3;4-{last}", "--json"]) == 0
    assert [s["ops"] for s in json.loads(capsys.readouterr().out)["segments"]] == ["0-3", f"4-{last}"]
    plan = three_stages(tmp_path, synth.fc(60, layers=4))
    (tmp_path / "other.tflite").write_bytes(synth.fc(61, layers=4))
    assert main(["predict", str(tmp_path / "other.tflite"), "--plan", str(plan.directory)]) == 1
    assert "was made for another model" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1,1", "0-3,2-3", "0-2,0-2"])
def test_no_op_is_listed_twice(text: str) -> None:
    with pytest.raises(ValueError, match=r"lists an op twice|lists ops a second time"):
        parse_op_set(text, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--sim-jitter", "2"], 2, "must be from 0 to 1"),
        (["--devices", "cpu", "--sim-jitter", "0.1"], 1, "no device is simulated"),
        (["--devices", "sim", "--item-timeout", "1e12"], 2, "must be at most"),
    ],
)
def test_impossible_simulations_are_refused(
    arguments: list[str], code: int, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = three_stages(tmp_path, synth.fc(60, layers=4))
    assert main(["bench", str(plan.directory), *arguments]) == code
    assert what in capsys.readouterr().err


def test_results_go_into_a_folder_that_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = three_stages(tmp_path, synth.fc(60, layers=4))
    np.save(tmp_path / "x.npy", np.zeros((1, 64), np.float32))
    arguments = ["run", str(plan.directory), "--devices", "cpu", "--inputs", str(tmp_path / "x.npy")]
    assert main([*arguments, "-o", str(tmp_path / "x.npy")]) == 1
    assert "x.npy: cannot be created" in capsys.readouterr().err


def test_ctrl_c_is_said_and_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("balancer.cli.main.remove_left_over", interrupted)
    assert main(["devices", "--json"]) == 130
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["type"] == "KeyboardInterrupt"
    assert "nothing was left half-written" in said.err


def test_each_input_of_a_model_has_its_array(tmp_path: Path) -> None:
    specs = [InputSpec(name, (1, 4), "float32") for name in ("a", "b")]
    np.save(tmp_path / "one.npy", np.zeros((1, 4), np.float32))
    np.savez(tmp_path / "one.npz", a=np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="is one array, the model has 2 inputs"):
        load_items(tmp_path / "one.npy", specs)
    with pytest.raises(InputError, match="has no array for input 'b'"):
        load_items(tmp_path / "one.npz", specs)
    with pytest.raises(InputError, match="has element type resource"):
        random_items([InputSpec("c", (1,), "resource")], 1)


def test_the_interpreter_is_one_that_is_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_INTERPRETER", "tensorflow")
    with pytest.raises(DependencyError, match="names an unknown interpreter"):
        runtime()

    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", absent)
    for package in ("tflite-runtime", "ai-edge-litert"):
        monkeypatch.setenv("BALANCER_INTERPRETER", package)
        with pytest.raises(DependencyError, match="this TFLite interpreter is not installed"):
            runtime()


def test_a_plan_is_verified_on_an_input_at_least() -> None:
    plan = balancer.balance(synth.fc(60, layers=4), 1)
    with pytest.raises(ValueError, match="at least one random input"):
        balancer.verify(plan, 0)
