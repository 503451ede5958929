"""What a model holds: a table of its ops, the same as a document, and what stays on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balancer.cli.drawing import Listing, in_lines, milliseconds, size
from balancer.errors import PlanError
from balancer.ground.opsets import members, op_ranges
from balancer.ground.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from balancer.graph import Graph
    from balancer.plan import Plan, Segment


def graph(graph: Graph) -> None:
    """Print the model, op by op."""
    document = graph_document(graph)
    print(
        f"{graph.name}: {counted(len(graph.ops), 'op')}, {size(graph.parameter_bytes)} of parameters, "
        f"{size(document['instruction_bytes'])} of instructions (predicted),\n{graph.macs / 1e6:.1f} million MACs"
    )
    table = Listing("", ("op", "type", "param.", "instr.", "MACs", "out", "mapped"))
    for row in document["ops"]:
        mapped = "folded" if row["folded"] else _place(row)
        numbers = (row[k] for k in ("parameter_bytes", "instruction_bytes", "macs", "output_bytes"))
        table.row(str(row["index"]), row["type"], *map(str, numbers), mapped)
    table.print()
    print(left_on_cpu(graph))


def _place(row: Mapping[str, Any]) -> str:
    """Whether the Edge TPU takes the op, and else, or all the same, the CPU: `left_on_cpu` says why."""
    if not row["mapped"]:
        return "no"
    return "CPU" if row["on_cpu"] else "yes"


def graph_document(graph: Graph) -> dict[str, Any]:
    """The JSON document of a model. on_cpu: the op runs on the CPU if the model is one segment; instructions are those of the
    other ops.
    """
    from balancer.cost.instructions import BASE_BYTES, instruction_bytes

    tensors = graph.tensors
    on_cpu = graph.on_cpu(graph.all_ops, graph.mapped)
    on_chip = graph.mapped & ~on_cpu
    instructions = [instruction_bytes(graph, op) if on_chip >> op.index & 1 else 0 for op in graph.ops]
    return {
        "name": graph.name,
        "parameter_bytes": graph.parameter_bytes,
        "instruction_bytes": BASE_BYTES + sum(instructions) if on_chip else 0,
        "macs": graph.macs,
        "inputs": [_tensor(graph, t) for t in graph.inputs],
        "outputs": [_tensor(graph, t) for t in graph.outputs],
        "ops": [
            {
                "index": op.index,
                "type": op.type,
                "parameter_bytes": op.parameter_bytes,
                "instruction_bytes": instructions[op.index],
                "macs": op.macs,
                "output_bytes": sum(tensors[t].bytes for t in op.outputs),
                "mapped": op.mapped,
                "reason": op.unmapped,
                "folded": op.folded,
                "on_cpu": bool(on_cpu >> op.index & 1),
            }
            for op in graph.ops
        ],
    }


def _tensor(graph: Graph, t: int) -> dict[str, Any]:
    tensor = graph.tensors[t]
    return {"tensor": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "bytes": tensor.bytes}


def left_on_cpu(graph: Graph) -> str:
    """Which ops run on the CPU if the model is one segment, and why: each reason with the ops that it holds for."""
    head = "on the CPU, if the model is one segment:"
    on_cpu = graph.on_cpu(graph.all_ops, graph.mapped)
    if not on_cpu:
        return f"{head} nothing"
    unmapped = (graph.ops[i] for i in members(on_cpu & ~graph.mapped))
    lines = [by_reason((op.index, op.type, op.unmapped) for op in unmapped)]
    after = (on_cpu & graph.mapped).bit_count()
    if after:
        lines.append(f"    {after} more that read results of these (`CPU` in the table)")
    return "\n".join([f"{head} {on_cpu.bit_count()} of {counted(len(graph.ops), 'op')}", *lines])


def by_reason(left: Iterable[tuple[int, str, str | None]]) -> str:
    """Ops that are left on the CPU, as lines: each reason once, behind its ops and their types. left: op, type, reason.

    >>> print(by_reason([(3, "PAD", "too large"), (4, "PACK", "too large"), (9, "CAST", "unknown")]))
        3-4 PAD, PACK: too large
        9 CAST: unknown
    """
    reasons: dict[str | None, dict[int, str]] = {}
    for op, kind, reason in left:
        reasons.setdefault(reason, {})[op] = kind
    lines = []
    for reason, ops in reasons.items():
        ranges, kinds = op_ranges(ops).replace(",", ", "), ", ".join(dict.fromkeys(ops.values()))
        lines.append(in_lines(f"    {ranges} {kinds}: {reason}", "        "))
    return "\n".join(lines)


def cpu_parts(plan: Plan) -> None:
    """Print how long each segment on an Edge TPU runs on the CPU instead, and from which op on."""
    from balancer.opened import open_plan

    held = [segment for segment in plan.segments if segment.predicted.cpu_ns and plan.is_compiled(segment.name)]
    try:
        graph = open_plan(plan).graph if held else None
    except PlanError:
        graph = None  # a plan whose model is not at hand is shown all the same
    for segment in held:
        print(f"on the CPU, predicted: {milliseconds(segment.predicted.cpu_ns)} ms of {segment.name}")
        if graph is not None and segment.reported is None:
            print(_cause(graph, segment))


def _cause(graph: Graph, segment: Segment) -> str:
    """The ops of a segment that run on the CPU, and why: first of all because of the op that ends the chip's part."""
    on_cpu = graph.on_cpu(segment.ops, graph.mapped)
    ending = list(members(graph.ending(segment.ops, graph.mapped)))
    causes = ending or list(members(on_cpu & ~graph.mapped))
    if not causes:
        return "    by the costs that replace the predicted ones"
    op = graph.ops[causes[0]]
    which = f"from op {op.index} {op.type} on" if ending else f"op {op.index} {op.type}"
    of = f"{on_cpu.bit_count()} of {counted(segment.ops.bit_count(), 'op')}"
    return in_lines(f"    {of}, {which}: {op.unmapped}", "        ")
