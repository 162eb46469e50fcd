"""The house keeps its shape: layers import downwards only, and every list names the same things."""

import ast
from pathlib import Path

import pytest

from trade_agent.agents.builders import AGENT_BUILDERS
from trade_agent.cli import SUFFIX_SOURCES, train_app
from trade_agent.config import schema
from trade_agent.config.load import conf_dir
from trade_agent.config.store import SCHEMAS
from trade_agent.data.sources import SOURCES
from trade_agent.data.validation import KINDS
from trade_agent.envs.rules import FILLS, REWARDS
from trade_agent.evaluation.grading import MODEL_KINDS
from trade_agent.preprocessing.templates import TEMPLATES
from trade_agent.registry.naming import MODEL_TYPES
from trade_agent.training.plan import TRAINER_FIELDS

PACKAGE = Path(__file__).resolve().parents[1] / "trade_agent"
LAYERS = [
    {"errors"},
    {"safe_io"},
    {"config"},
    {"data"},
    {"preprocessing"},
    {"envs", "networks"},
    {"agents"},
    {"evaluation"},
    {"registry"},
    {"search"},
    {"training"},
    {"console"},
    {"slurm"},
    {"launchers"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Layers that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module if node.module != "trade_agent" else f"trade_agent.{node.names[0].name}")
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    parts = [name.split(".") for name in names if name.startswith("trade_agent.")]
    return {part[1] for part in parts if part[1] in LEVEL}


SOURCES_OF_PACKAGE = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_file_belongs_to_a_layer() -> None:
    assert {layer(path) for path in SOURCES_OF_PACKAGE} == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES_OF_PACKAGE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    own = layer(path)
    for other in imported(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{path} imports {other}, which is not below {own}"


def test_dictconfig_ends_at_the_door() -> None:
    allowed = {PACKAGE / "config/load.py", PACKAGE / "config/store.py", PACKAGE / "config/schema.py"}
    allowed |= {PACKAGE / "search/sweeper.py", PACKAGE / "console.py", PACKAGE / "slurm.py"}
    for path in set(SOURCES_OF_PACKAGE) - allowed:
        assert "omegaconf" not in path.read_text(encoding="utf-8"), f"{path} knows OmegaConf"


def names(group: str) -> set[str]:
    return {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def test_algorithms_are_the_same_everywhere() -> None:
    assert set(AGENT_BUILDERS) == set(schema.ALGORITHMS)
    assert names("model") == {*schema.ALGORITHMS, "cnn_lstm", "ensemble"}
    assert {path.split("/")[-1] for path in SCHEMAS if path.startswith("schema/model/")} == names("model")
    assert set(MODEL_TYPES) == set(MODEL_KINDS) == {*schema.ALGORITHMS, "cnn_lstm", "hybrid", "ensemble"}
    commands = {command.name for command in train_app.registered_commands}
    assert commands == {name.replace("_", "-") for name in MODEL_TYPES}
    assert names("search") - {"base"} == set(MODEL_TYPES)


def test_stages_are_the_same_everywhere() -> None:
    assert names("stage") == names("stage/settings") == names("upstream") == set(schema.STAGES) == set(TRAINER_FIELDS)


def options(kind: type, name: str) -> set[str]:
    return set(kind.__dataclass_fields__[name].metadata["options"])  # type: ignore[attr-defined]


def test_every_finding_has_its_policy_and_every_field_its_column_option() -> None:
    assert set(schema.PoliciesConfig.__dataclass_fields__) == set(KINDS)
    assert {"time", "open", "high", "low", "close", "adj_close", "volume"} == set(
        schema.ColumnsConfig.__dataclass_fields__
    )


def test_choices_of_the_config_are_those_of_the_code() -> None:
    assert set(SOURCES) == names("data") == options(schema.DataConfig, "source")
    assert set(SUFFIX_SOURCES.values()) <= set(SOURCES)
    assert options(schema.PreprocessingConfig, "template") == names("preprocessing") <= set(TEMPLATES)
    assert options(schema.MarketConfig, "fill") == set(FILLS)
    assert options(schema.MarketConfig, "reward") == set(REWARDS)
