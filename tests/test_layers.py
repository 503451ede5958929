"""The layering of the rooms, read from the syntax tree; what may be loaded when; what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import balancer

ROOT = Path(balancer.__file__).parent
# A room may import lower ranks and itself; the exceptions stand below.
RANK = {
    "processes": 0, "errors": 0, "version": 0, "ground": 0, "documents": 1, "arrays": 1, "graph": 1, "tflite": 2, "cost": 2,
    "solve": 2, "queues": 2, "worker_states": 2, "plan": 3, "interpreter": 3, "inputs": 3, "workers": 3, "opened": 4,
    "verification": 5, "compiler": 5, "runtime": 5, "planning": 6, "directory": 6, "learning": 7, "loops": 8, "cli": 9,
    "__main__": 10, "__init__": 10,
}  # fmt: skip
# Rooms that may know less than their rank allows: these rooms and no others.
KNOWS = {
    "solve": {"ground", "errors"}, "plan": {"ground", "errors", "documents"}, "interpreter": {"errors"},
    "inputs": {"ground", "errors", "arrays", "graph"},
}  # fmt: skip
# Rooms of one rank, or of two that could see each other, that must not.
APART = [{"tflite", "cost"}, {"verification", "compiler", "runtime"}, {"planning", "directory"}]
LATE = {"ortools", "networkx", "rich", "scipy", "matplotlib", "ai_edge_litert", "tflite_runtime", "PIL"}
MODULES = sorted(ROOT.rglob("*.py"))
READERS = {"hardware.py", "profile.py", "profiling.py", "calibrating.py", "correcting.py"}  # of JSON documents


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Names of imported modules, with what is imported from the package itself spelled out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "balancer":
            found |= {f"balancer.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def rooms_imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name.split(".")[1] for name in imports(tree) if name.startswith("balancer.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_lower_ranks_and_itself(path: Path) -> None:
    here = room(path)
    for there in rooms_imported(path) - {here}:
        assert RANK[there] < RANK[here], f"{path.name} imports {there}"
        assert there in KNOWS.get(here, RANK), f"{path.name} imports {there}"
        assert not any({here, there} <= rooms for rooms in APART), f"{path.name} imports {there}"


def test_workers_know_nothing_of_ours() -> None:
    assert rooms_imported(ROOT / "workers.py") <= {"queues", "worker_states"}
    assert not rooms_imported(ROOT / "queues.py") | rooms_imported(ROOT / "worker_states.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if room(path) in ("cli", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "logging.basicConfig"), (
                f"{path.name}:{node.lineno} calls {called}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_inside_functions_are_for_what_is_heavy(path: Path) -> None:
    """The command line may import our own rooms late: `--help` needs none of them, and the entry guards the import."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            late = {name.split(".")[0] for name in imports(function)}
            allowed = LATE | ({"balancer", "tempfile", "hashlib"} if room(path) in ("cli", "__main__") else set())
            assert late <= allowed, f"{path.name}: {function.name} imports {late - allowed}"


def loaded_after(statement: str) -> set[str]:
    """Top-level modules, and our own in full, that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_after("import balancer, balancer.cli.main\nbalancer.cli.main.build_parser()")
    assert not loaded & (LATE | {"numpy", "pandas", "flatbuffers"})


def test_running_a_plan_needs_neither_solver_nor_cost_model() -> None:
    loaded = loaded_after(
        "import balancer.plan, balancer.verification, balancer.workers, balancer.interpreter, balancer.tflite.cut\n"
        "import balancer.runtime.pipeline, balancer.runtime.measuring, balancer.runtime.host, balancer.compiler"
    )
    assert not loaded & {"ortools", "networkx", "balancer.cost.segment", "balancer.cost.timing", "balancer.solve"}
    assert not loaded & {"balancer.planning", "balancer.learning", "balancer.loops"}


def test_the_verbs_for_a_plan_load_neither_solver_nor_cost_model() -> None:
    """What verify, compile, run and bench import when they run."""
    loaded = loaded_after(
        "import balancer.cli.main\nimport balancer\n"
        "balancer.verify, balancer.compile_plan, balancer.save\nimport balancer.runtime.measuring"
    )
    assert not loaded & {"ortools", "networkx", "balancer.cost.segment", "balancer.solve"}


def test_the_public_names_are_those_listed() -> None:
    assert sorted(balancer.__all__) == dir(balancer)
    for name in balancer.__all__:
        assert getattr(balancer, name) is not None


def test_no_class_name_occurs_twice() -> None:
    """One name stands for one thing, private or not: who searches for a class finds it."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_arrays_have_array_types() -> None:
    """In the rooms that compute with arrays `Any` stands nowhere but in the readers of files."""
    for path in MODULES:
        if room(path) in ("solve", "cost", "ground", "learning") and path.name not in READERS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Name) and node.id == "Any"), f"{path.name}:{node.lineno} says Any"


def test_modules_and_functions_stay_small() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path.name}: {node.name}"
