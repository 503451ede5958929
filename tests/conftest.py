"""What all tests share: fixtures, marks, skips, and how many examples Hypothesis draws.

Variables of the environment: HYPOTHESIS_PROFILE=thorough draws 1000 examples instead of 30, HYPOTHESIS_PROFILE=few draws
5, HYPOTHESIS_PROFILE=unshrunk does not look for a smaller example than the first that fails. BALANCER_FAULT_SECONDS is
how long each test of test_faults.py lasts (5), BALANCER_KILLS how often test_compiling.py kills one call (4), and
BALANCER_MUTATIONS how many broken files test_hostile.py makes (1200).
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.shared import HERE, SHARED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Derandomised, without deadlines: a loaded machine must not decide what passes. `thorough` is for a nightly run.
settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=1000)
settings.register_profile("few", settings.get_profile("ci"), max_examples=5)
# The same examples as `ci`; the first that fails is not made smaller, which may take minutes (benchmarks/mutants.py).
settings.register_profile("unshrunk", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Files whose tests run in every Python version, and single tests of others. They enter every rank in half a minute.
QUICK = {
    "test_allocation", "test_baselines", "test_cost", "test_cut", "test_doctests", "test_flatbuffer", "test_handing_in",
    "test_layers", "test_schema", "test_segment_sums", "test_tensors", "test_verification", "test_workers",
    "test_every_solver_can_be_chosen_and_none_beats_the_proven_one", "test_order_and_bits",
    "test_on_two_kinds_every_solver_meets_brute_force", "test_edge_tpus_each_in_a_process",
}  # fmt: skip
# Files and tests that only repeat in bulk, or on large models, what others reach. Tracing them would take minutes and
# show no further line.
UNTRACED = {
    "test_bit_exact", "test_fidelity", "test_hostile", "test_kinds", "test_layers",
    "test_an_op_may_have_too_few_inputs_and_outputs", "test_an_op_may_work_on_scalars",
    "test_an_op_behind_a_free_batch_may_have_the_options_of_another_or_none", "test_tensors_may_claim_any_size",
    "test_less_room_than_predicted", "test_more_tpus_are_never_slower", "test_tuning_closes_most_of_the_gap",
    "test_the_lowest_latency_at_a_camera_rate_is_proven_for_real_models",
    "test_no_segment_of_a_real_model_is_below_the_structure_of_its_cost", "test_no_bound_rules_out_a_part_of_a_pipeline",
    "test_every_op_and_tensor_of_a_real_model_is_in_a_segment_unchanged",
    "test_an_independent_reader_sees_the_same_values", "test_a_loaded_plan_costs_every_segment_as_it_was_costed",
    "test_with_any_replicas_and_few_pipelines_the_optimum_is_that_of_brute_force",
    "test_the_table_equals_the_exact_cost_on_real_models_in_any_order", "test_pipelines_side_by_side_meet_brute_force",
    "test_what_was_seen_is_predicted_afterwards", "test_measured_stages_come_out_as_measured",
    "test_a_model_with_constants_outside_is_decoded_solved_cut_and_run_as_its_twin",
    "test_half_of_a_real_models_constants_may_be_outside", "test_the_tail_of_yolov8n_is_cut_off_where_the_cpu_is_slow",
    "test_the_plan_compiles_as_surely_as_any_and_is_the_fastest_of_those",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is compiled in tests is kept apart from the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that streams on one TPU and on two."""
    from tests.plans import WIDE  # at the top it would load balancer before coverage starts to look

    path = tmp_path / "net.tflite"
    path.write_bytes(WIDE)
    return path


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def pytest_configure(config: pytest.Config) -> None:
    # Tests start a thousand processes. They read the bytecode that the first one wrote, which halves the time of a
    # start; this variable would have each of them compile the package for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "shared: reads the folder with the real models; skipped where it is absent")
    config.addinivalue_line("markers", "wide: repeats a slow test on further models; runs with `-m wide` alone")
    config.addinivalue_line("markers", "quick: one of the tests that run in every Python version")


def pytest_xdist_auto_num_workers() -> int:
    """Two processes, whatever the machine: tests start processes of their own, and some of them watch a clock."""
    return 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the quick tests. The one place where a test is skipped: real models are not part of the repository."""
    for item in items:
        names = {item.path.stem, item.name.partition("[")[0]}
        if names & QUICK and not item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.quick)
        if names & UNTRACED:
            item.add_marker(pytest.mark.no_cover)
        if not HERE and item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"no folder {SHARED}: the real models are not here"))
