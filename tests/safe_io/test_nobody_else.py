"""No other file of the project opens a pickle, a checkpoint or a config in a way that can run code."""

import ast
from pathlib import Path

import pytest

from trade_agent import safe_io

GATE = Path(safe_io.__file__).parent
PACKAGE = GATE.parent

BANNED_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "joblib.load",
    "torch.load", "torch.jit.load", "torch.export.load", "torch.serialization.add_safe_globals", "np.load",
    "numpy.load", "hydra.utils.instantiate", "hydra.utils.call", "shelve.open", "yaml.load", "yaml.unsafe_load",
    "pd.read_pickle", "pandas.read_pickle", "marshal.loads", "marshal.load",
}  # fmt: skip
BANNED_NAMES = {"add_safe_globals", "safe_globals", "instantiate", "read_pickle"}


def dangerous_calls(source):
    """(line, name) of every call or import of a loader that can run code, import aliases resolved."""
    tree = ast.parse(source)
    aliases = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    plain_loads = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False" for keyword in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node)
            if name == "numpy.load" and id(node) in plain_loads:
                continue
            if name in BANNED_CALLS or name.split(".")[-1] in BANNED_NAMES:
                found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads as x\nx(b'')",
        "import torch as t\nt.load('x', weights_only=False)",
        "import torch\ntorch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from hydra.utils import instantiate\ninstantiate(c)",
        "import hydra\nhydra.utils.instantiate(c)",
        "import yaml\nyaml.load(f)",
        "import torch\nwith torch.serialization.safe_globals([x]): pass",
        "import torch\ntorch.export.load('x.pt2')",
        "import shelve\nshelve.open('x')",
        "f = __import__\nfrom joblib import load\nload('x')",
    ],
)
def test_the_search_for_dangerous_calls_finds_them(source):
    assert dangerous_calls(source)


def test_only_safe_io_reads_pickles_and_checkpoints():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "safe_io"]
    files.append(PACKAGE.parent / "train.py")
    assert len(files) > 100
    found = {str(path.relative_to(PACKAGE.parent)): dangerous_calls(path.read_text()) for path in files}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_the_gate_itself_calls_no_loader_but_its_own():
    """``pickle.Unpickler`` is the machine whose every name the gate answers; nothing else that can run code is used."""
    calls = {path.name: {name for _, name in dangerous_calls(path.read_text())} for path in GATE.glob("*.py")}
    assert {name: found for name, found in calls.items() if found} == {"pickles.py": {"pickle.Unpickler"}}
