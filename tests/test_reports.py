"""The compiler's reports: real ones as they were published, and the same with what publishing does to them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cli.main import main
from balancer.compiler.report import MAPPED, ModelReport, parse_report, rounding_bytes, without_duration
from tests import edgetpu_compiler
from tests.shared import SHARED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOGS = SHARED / "data" / "compiler_logs"
NAMES = sorted(path.name for path in LOGS.glob("*.log"))
KIB, MIB = 1 << 10, 1 << 20

# github.com/google-coral/edgetpu/issues/427: compiler 15, an op of its own type that stays on the CPU, table cut.
ISSUE_427 = """Edge TPU Compiler version 15.0.340273435

Model compiled successfully in 1379 ms.

Input model: model.tflite
Input size: 4.41MiB
Output model: model_edgetpu.tflite
Output size: 5.49MiB
On-chip memory used for caching model parameters: 1.92MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 3.23MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 136
Operation log: model_edgetpu.log
Number of operations that will run on Edge TPU: 135
Number of operations that will run on CPU: 1

Operator                       Count      Status

RESHAPE                        15         Mapped to Edge TPU
CONCATENATION                  3          Mapped to Edge TPU
"""
# A translated article on motion blur on the Edge TPU (2020): compiler 2.0, line breaks lost at every empty line.
JOINED = (
    "Edge TPU Compiler version 2.0.267685300Model compiled successfully in 231 ms.Input model: blur_1.57.tflite\n"
    "Input size: 3.03KiB\nOutput model: blur_1.57_edgetpu.tflite\nOutput size: 296.85KiB\n"
    "On-chip memory available for caching model parameters: 1.73MiB\n"
    "On-chip memory used for caching model parameters: 10.00KiB\n"
    "Off-chip memory used for streaming uncached model parameters: 0.00B\nNumber of Edge TPU subgraphs: 1\n"
    "Total number of operations: 3\nOperation log: blur_1.57_edgetpu.logModel successfully compiled but not all\n"
    "Number of operations that will run on Edge TPU: 1\nNumber of operations that will run on CPU: 2"
    "Operator                       Count      Status"
    "DEPTHWISE_CONV_2D              1          Mapped to Edge TPU\n"
    "DEQUANTIZE                     1          Operation is working on an unsupported data type\n"
)

Figures = tuple[float | None, ...]
# (version, verdict, [(cached, remaining, streamed, subgraphs, ops, on the CPU, rows of the table)], [reasons])
EXPECTED: dict[str, tuple[str | None, bool | None, list[Figures], list[str]]] = {
    "v2_0_ok_no_table.log": ("2.0.291256449", None, [(6.25 * MIB, 0, 18.43 * MIB, 1, 77, 0, 0)], []),
    "v2_1_ok_partial_table_cut.log": ("2.1.302470888", None, [(6.86 * MIB, 7.75 * KIB, 1.22 * MIB, 1, 93, 10, 4)], []),
    "v14_1_ok_partial_wrapped_text.log": ("14.1.317412892", None, [(60 * KIB, 7.96 * MIB, 0, 1, 24, 18, 0)], []),
    "v14_1_ok_large_model_offchip.log": ("14.1.317412892", None, [(5.99 * MIB, 74 * KIB, 15.73 * MIB, 1, 108, 6, 0)], []),
    "v14_1_fail_internal_error.log": ("14.1.317412892", False, [], ["internal compiler error"]),
    "v15_ok_partial_table_two_of_36.log": ("15.0.340273435", None, [(3 * KIB, 7.67 * MIB, 0, 1, 36, 34, 9)], []),
    "v15_ok_partial_table_one_of_294.log": ("15.0.340273435", None, [(0, 8.05 * MIB, 0, 1, 294, 293, 18)], []),
    "v15_ok_three_subgraphs_table_cut.log": ("15.0.340273435", None, [(1.30 * MIB, 6.89 * MIB, 0, 3, 25, 2, 1)], []),
    "v15_ok_cocompiled_no_blank_lines_cut.log": ("15.0.340273435", None, [
        (7.16 * MIB, 2.25 * KIB, 2.95 * MIB, 1, 313, 0, 0), (0, 2.25 * KIB, 4.53 * MIB, 1, 78, None, 0)], []),
    "v15_fail_version_line_only.log": ("15.0.340273435", None, [], []),
    "v15_fail_not_quantized.log": ("15.0.340273435", None, [],
                                   ["the compiler finds the file invalid", "the compiler finds it not quantised"]),
    "v16_ok_all_mapped_no_table.log": ("16.0.384591198", True, [(604.5 * KIB, 511.5 * KIB, 3.45 * MIB, 1, 50, 0, 0)], []),
    "v16_ok_all_mapped_show_ops.log": ("16.0.384591198", True, [(1.41 * MIB, 5.74 * MIB, 0, 1, 34, 0, 4)], []),
    "v16_ok_partial_no_table.log": ("16.0.384591198", True, [(4.21 * MIB, 3.29 * MIB, 0, 1, 267, 3, 0)], []),
    "v16_ok_partial_show_ops_all_subgraphs.log": ("16.0.384591198", True, [(6.08 * MIB, 0, 1.7 * MIB, 2, 294, 5, 17)], []),
    "v16_ok_cocompiled_two_models_cut.log": ("16.0.384591198", None, [
        (2.27 * MIB, 1.07 * MIB, 0, 1, 57, 0, 0), (2 * MIB, 1.07 * MIB, 0, 1, 6, None, 0)], []),
    "v16_ok_search_prefix_line_table_cut.log": ("16.0.384591198", None, [
        (5.9 * MIB, 1.16 * MIB, 41.75 * KIB, 1, 246, 0, 8)], []),
    "v16_segments_first_ok_second_cut.log": ("16.0.384591198", True, [(6.02 * MIB, 1.02 * MIB, 0, 1, 84, 0, 0)], []),
    "v16_segments_first_ok_second_searching_cut.log": ("16.0.384591198", False, [(6.02 * MIB, 1.02 * MIB, 0, 1, 84, 0, 4)],
                                                       ["an activation is too large for the Edge TPU"] * 2),
    "v16_search_timeout_fragment.log": (None, False, [], ["it took longer than its time limit"]),
    "v16_search_two_failures_cut.log": ("16.0.384591198", False, [], ["an activation is too large for the Edge TPU"] * 2),
    "v16_fail_large_activations.log": ("16.0.384591198", False, [], ["an activation is too large for the Edge TPU"]),
    "v16_fail_dynamic_tensors.log": ("16.0.384591198", False, [],
                                     ["a tensor has no fixed size", "its interpreter refuses the model"]),
    "v16_fail_unresolved_custom_op.log": ("16.0.384591198", False, [],
                                          ["it does not know the custom op Atan", "its interpreter refuses the model"]),
    "v16_fail_cpp_exception.log": ("16.0.384591198", False, [], ["the compiler crashed (std::out_of_range: vector)"]),
    "v16_fail_segfault_wrapper.log": ("16.0.384591198", None, [], ["the compiler crashed (segmentation fault)"]),
    "v16_fail_no_reason.log": ("16.0.384591198", False, [], []),
    "v16_cut_short_after_timer.log": ("16.0.384591198", None, [], []),
    "opslog_v14_1_partial.log": ("14.1.317412892", None, [(None, None, None, None, None, None, 8)], []),
    "opslog_v16_partial.log": ("16.0.384591198", None, [(None, None, None, None, None, None, 11)], []),
    "opslog_v16_all_mapped.log": ("16.0.384591198", None, [(None, None, None, None, None, None, 14)], []),
}  # fmt: skip


def _figures(model: ModelReport) -> tuple[int | None, ...]:
    memory = (model.cached_bytes, model.remaining_bytes, model.streamed_bytes)
    return (*memory, model.subgraphs, model.ops, model.cpu_ops, len(model.statuses))


@pytest.mark.shared
def test_every_published_report_is_expected() -> None:
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_published_reports(name: str) -> None:
    """Sources: the table in the folder's README."""
    version, verdict, models, reasons = EXPECTED[name]
    found = parse_report((LOGS / name).read_text())
    assert (found.version, found.succeeded) == (version, verdict)
    assert [failure.reason for failure in found.failures] == reasons
    assert [_figures(m) for m in found.models] == [tuple(v if v is None else round(v) for v in m) for m in models]
    assert all(failure.remedy for failure in found.failures)


def test_a_report_whose_table_is_cut() -> None:
    (model,) = parse_report(ISSUE_427).models
    assert _figures(model) == (round(1.92 * MIB), round(1.75 * KIB), round(3.23 * MIB), 1, 136, 1, 2)
    assert model.capacity_bytes == round(1.92 * MIB) + round(1.75 * KIB)


def test_a_report_without_line_breaks() -> None:
    found = parse_report(JOINED)
    (model,) = found.models
    assert found.version == "2.0.267685300"
    assert (model.input_file, model.output_file) == ("blur_1.57.tflite", "blur_1.57_edgetpu.tflite")
    assert model.log_file == "blur_1.57_edgetpu.log"
    assert (model.cached_bytes, model.capacity_bytes, model.cpu_ops) == (10 * KIB, round(1.73 * MIB), 2)
    assert [(s.type, s.count, s.mapped) for s in model.statuses] == [
        ("DEPTHWISE_CONV_2D", 1, True),
        ("DEQUANTIZE", 1, False),
    ]
    assert model.reasons("DEQUANTIZE") == ("Operation is working on an unsupported data type",)


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_blank_lines_and_carriage_returns_mean_nothing(name: str) -> None:
    text = (LOGS / name).read_text()
    found = parse_report(text)
    bare = "\n".join(line for line in text.splitlines() if line.strip())
    assert parse_report(bare) == found
    assert parse_report(text.replace("\n", "\r\n")) == found
    assert parse_report("exporting the model ...\n" + text) == found
    assert parse_report(without_duration(text)) == found


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_off_is_not_said(name: str) -> None:
    """A report cut at any line says nothing else than the whole one, or nothing."""
    lines = (LOGS / name).read_text().splitlines()
    whole = parse_report("\n".join(lines))
    for end in range(len(lines)):
        part = parse_report("\n".join(lines[:end]))
        assert part.version in (None, whole.version)
        for found, model in zip(part.models, whole.models, strict=False):
            pairs = zip(_figures(found)[:-1], _figures(model)[:-1], strict=True)
            assert all(a is None or a == b for a, b in pairs if a != 0)
            assert found.statuses == model.statuses[: len(found.statuses)]


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(n for n in EXPECTED if "show_ops" in n or "of_" in n))
def test_the_table_has_every_op(name: str) -> None:
    for model in parse_report((LOGS / name).read_text()).models:
        if "cut" not in name:
            assert sum(s.count for s in model.statuses) == model.ops
            assert sum(s.count for s in model.statuses if not s.mapped) == model.cpu_ops


@pytest.mark.shared
@pytest.mark.parametrize(
    "mangled", [lambda t: re.sub(" +", " ", t), lambda t: re.sub("  +", "\t", t), lambda t: re.sub("(?m)^", "> ", t),
                lambda t: re.sub("(?m)^(.*)$", "\x1b[32m\\1\x1b[0m", t)], ids=["spaces", "tabs", "quoted", "coloured"],
)  # fmt: skip
def test_tables_survive_what_copies_do_to_them(mangled: Callable[[str], str]) -> None:
    text = (LOGS / "v16_ok_partial_show_ops_all_subgraphs.log").read_text()
    assert parse_report(mangled(text)).models == parse_report(text).models


def test_sizes_are_known_to_what_is_printed() -> None:
    for count in (0, 1, 1023, 1024, 98_765, MIB - 1, MIB, 7_654_321, 8 * MIB, 70 * MIB):
        text = f"Input model: a\nOn-chip memory used for caching model parameters: {edgetpu_compiler.size(count)}"
        (model,) = parse_report(text).models
        assert model.cached_bytes is not None
        assert abs(model.cached_bytes - count) <= rounding_bytes(count)


_NAMES = (
    st.text(st.characters(categories=("L", "N"), include_characters="/_-;. "), min_size=1).map(str.strip).filter(bool)
)
_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["CONV_2D", "ADD", "CUSTOM"]), st.integers(0, 999), st.sampled_from([MAPPED, "Odd (why: x)"])
    ),
    max_size=5,
)


@given(_NAMES, st.integers(0, 80 * MIB), st.integers(0, 80 * MIB), _ROWS)
def test_what_is_printed_is_read(name: str, cached: int, streamed: int, rows: list[tuple[str, int, str]]) -> None:
    table = "".join(f"{kind:<30} {count:<10} {status}\n" for kind, count, status in rows)
    text = (
        f"Edge TPU Compiler version 16.0.1\nInput model: {name}\nOutput model: {name}_edgetpu.tflite\n"
        f"On-chip memory used for caching model parameters: {edgetpu_compiler.size(cached)}\n"
        f"Off-chip memory used for streaming uncached model parameters: {edgetpu_compiler.size(streamed)}\n"
        f"\nOperator                       Count      Status\n\n{table}"
    )
    (model,) = parse_report(text).models
    assert model.input_file == name
    assert abs((model.cached_bytes or 0) - cached) <= rounding_bytes(cached)
    assert abs((model.streamed_bytes or 0) - streamed) <= rounding_bytes(streamed)
    assert [(s.type, s.count, s.status) for s in model.statuses] == rows


@given(st.text())
def test_any_text_is_a_report_of_something(text: str) -> None:
    parse_report(text)


def test_inspect_reads_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "model_edgetpu.log"
    log.write_text(ISSUE_427)
    assert main(["inspect", str(log)]) == 0
    assert "1.92 MiB" in capsys.readouterr().out
    assert main(["inspect", str(log), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"][0]["cached_bytes"] == round(1.92 * MIB)


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.log").write_text("nothing of the kind")
    assert main(["inspect", str(tmp_path / "a.log")]) == 1
    assert "holds no report of the compiler" in capsys.readouterr().err
