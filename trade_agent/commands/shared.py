"""What several commands share: options, the registry they open, JSON."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trade_agent.errors import RegistryError
from trade_agent.registry.store import ModelRegistry

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Models = Annotated[Path, typer.Option("--models-dir", help="Folder of the registry.")]
DEFAULT_MODELS = Path("models")


def open_registry(models_dir: Path) -> ModelRegistry:
    """Raises RegistryError for a named folder without a registry: a typing error must not look like an empty one."""
    if models_dir != DEFAULT_MODELS and not (models_dir / ".registry").is_dir():
        what = "holds no registry" if models_dir.is_dir() else "is not a folder"
        raise RegistryError(f"{models_dir} {what}", "name the registry's folder with --models-dir")
    return ModelRegistry(models_dir)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
