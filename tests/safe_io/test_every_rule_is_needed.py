"""Each refusal of the gate is switched off in turn: a hostile file must then get through, else it is dead code."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest

from tests.safe_io.corpus import PKL, PTH
from trade_agent import safe_io
from trade_agent.errors import UnsafeFileError

FOLDER = Path(safe_io.__file__).parent
MODULES = ("plain", "pickles", "checkpoints", "arrays")  # in the order of their imports
SOURCES = {name: (FOLDER / f"{name}.py").read_text() for name in MODULES}
DOORS = {PTH: ("checkpoints", "read_checkpoint"), PKL: ("arrays", "load_arrays")}


def refusals(tree):
    """The `if` statements that refuse, in the order of the source; limits of size are tested elsewhere."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            text = ast.unparse(node)
            refuses = "raise UnsafeFileError" in ast.unparse(node.body[0]) or text.endswith("return False")
            if refuses and not re.search("_BYTES|MAX_MEMBERS", ast.unparse(node.test)):
                found.append(node)
    return sorted(found, key=lambda node: node.lineno)


def is_or(test):
    return isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or)


def rules():
    """(module, number of the refusal, operand of its `or` or None for the whole)."""
    for module, source in SOURCES.items():
        for number, node in enumerate(refusals(ast.parse(source))):
            operands = len(node.test.values) if is_or(node.test) else 1
            for operand in range(operands):
                yield module, number, operand


def without(module, number, operand):
    """The source of a module with one condition of one refusal taken out."""
    tree = ast.parse(SOURCES[module])
    node = refusals(tree)[number]
    if is_or(node.test):
        del node.test.values[operand]
    else:
        node.test = ast.copy_location(ast.Constant(False), node.test)
    return ast.unparse(ast.fix_missing_locations(tree))


def build(monkeypatch, sources):
    """The gate made of these sources: its two doors."""
    modules = {}
    for name in MODULES:
        module = modules[name] = types.ModuleType(f"trade_agent.safe_io.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(sources[name], name, "exec"), module.__dict__)
    return {door: getattr(modules[module], function) for door, (module, function) in DOORS.items()}


@pytest.fixture(scope="module")
def refused_at(hostile):
    """The hostile files by the (module, line) that refused them."""
    places = {}
    for case in hostile:
        if case.door in DOORS:
            try:
                gate = {PTH: safe_io.load_tensors, PKL: safe_io.load_arrays}[case.door]
                gate(case.data, name="x")
            except UnsafeFileError as error:
                while error is not None:
                    trace = error.__traceback__
                    while trace is not None:
                        place = (Path(trace.tb_frame.f_code.co_filename).stem, trace.tb_lineno)
                        places.setdefault(place, []).append(case)
                        trace = trace.tb_next
                    error = error.__cause__
    return places


@pytest.mark.parametrize(("module", "number", "operand"), list(rules()))
def test_without_a_rule_a_file_gets_through(module, number, operand, refused_at, monkeypatch):
    node = refusals(ast.parse(SOURCES[module]))[number]
    lines = range(node.lineno, node.end_lineno + 1)
    doors = build(monkeypatch, SOURCES | {module: without(module, number, operand)})
    candidates = [case for line in lines for case in refused_at.get((module, line), [])]
    if "return False" in ast.unparse(node):
        candidates = [case for cases in refused_at.values() for case in cases]

    def gets_through(case):
        try:
            doors[case.door](case.data, "x") if case.door == PTH else doors[case.door](case.data, name="x")
        except UnsafeFileError:
            return False
        except Exception:  # nor may a file bring the gate to a fall
            return True
        return True

    candidates = [case for case in candidates if case.door in DOORS]
    assert any(gets_through(case) for case in candidates), (
        f"{ast.unparse(node)}\n{[case.name for case in candidates][:9]}"
    )
