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


def open_registry(models_dir: Path, *, may_be_new: bool = False) -> ModelRegistry:
    """Raises RegistryError for a folder without a registry: the wrong folder must not look like an empty one.

    may_be_new: the default folder need not have one yet.
    """
    if not (may_be_new and models_dir == DEFAULT_MODELS) and not (models_dir / ".registry").is_dir():
        what = "holds no registry" if models_dir.is_dir() else "is not a folder"
        raise RegistryError(
            f"{models_dir} {what}", "name the registry's folder with --models-dir, or train a model first"
        )
    return ModelRegistry(models_dir)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
