"""Models to register, and whole registries of them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from trade_agent import safe_io
from trade_agent.registry.metadata import ModelMetadata
from trade_agent.registry.naming import file_names, metadata_file
from trade_agent.training.model_registry import DataInfo, ModelRegistry, Objective, PreprocessorInfo

FEATURES = [f"feature_{number}" for number in range(18)]


def draft(seed: int, **changes: Any) -> dict[str, Any]:
    """Arguments of one registration: an agent of 50 kB on 18 features. The weights follow ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    layers = {f"{layer}.weight": torch.randn(64, 64, generator=generator) for layer in range(3)}
    steps = [{"name": "standard_scaler", "mean": torch.zeros(18).numpy(), "scale": torch.ones(18).numpy()}]
    return {
        "model_type": "sac",
        "state": {"policy": layers, "step": seed},
        "preprocessor": safe_io.dump_arrays({"schema": 1, "steps": steps}),
        "config": {"model": {"name": "sac", "gamma": 0.99, "hidden": [64, 64]}, "seed": seed},
        "grade": "B",
        "grade_decision": {"policy_id": "default", "inputs": {"sharpe": 0.42}},
        "metric_token": ("sharpe", 0.42),
        "objective": Objective(name="sharpe", value=0.5, direction="max"),
        "metrics": {f"metric_{number}": number / 7 for number in range(20)},
        "baselines": {"buy_and_hold": {"sharpe": 0.3}},
        "parents": [],
        "preprocessor_info": PreprocessorInfo(version="1.0.0", content_hash="p" * 64, contract_hash="c" * 64),
        "data": DataInfo(fingerprint="d" * 64, symbols=["BTC"], source="sample", splits={"train": ["2020", "2021"]}),
        "contract": {"features": FEATURES, "window_bars": 16},
        "recipe": {"gamma": 0.99},
        "seed": seed,
        "run_id": f"run-{seed}",
        "trainer_profile": "smoke",
        "environment": {"python": "3.11", "torch": "2.13.0"},
    } | changes


def populate(root: Path, count: int) -> ModelRegistry:
    """A registry of ``count`` models: one registered, and copies of it under other numbers, written directly."""
    registry = ModelRegistry(root, durability="relaxed")
    first = registry.register(**draft(seed=0))
    for seed in range(1, count):
        copy(root / "sac", first, seed)
    registry.rebuild()
    return registry


def copy(folder: Path, first: ModelMetadata, seed: int) -> None:
    version = f"1.{seed // 100}.{seed % 100}"
    own = file_names(first.model_id, first.version)
    names = file_names(first.model_id.replace("v1.0.0", f"v{version}"), version)
    metadata = dataclasses.replace(
        first,
        model_id=names["model"].removesuffix(".pth"),
        version=version,
        run_id=f"run-{seed}",
        seed=seed,
        files={names[role]: first.files[own[role]] for role in own},
    )
    claim = {"version": version, "run_id": metadata.run_id, "host": "elsewhere", "pid": 1}
    claim |= {"contract_hash": metadata.contract_hash, "recipe_hash": metadata.recipe_hash}
    for role in own:
        os.link(folder / own[role], folder / names[role])
    (folder / ".claims" / f"v{version}").write_bytes(safe_io.checked_json(claim))
    os.link(folder / ".claims" / f"v{version}", folder / ".claims" / f"run-{metadata.run_id}")
    (folder / metadata_file(version)).write_bytes(metadata.to_json())
    os.link(folder / metadata_file(version), folder / ".claims" / f"v{version}.json")
