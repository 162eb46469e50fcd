"""The one typed door: Hydra's DictConfig goes in, a checked TrainingConfig comes out."""

import copy
import dataclasses
import difflib
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trade_agent.config import schema
from trade_agent.config.check import check_config
from trade_agent.config.schema import TrainingConfig
from trade_agent.config.store import register_schemas
from trade_agent.errors import ConfigError
from trade_agent.safe_io import canonical_json

FROM_ENVIRONMENT = "<from the environment>"
# They decide how a run goes on, not what comes of it, and may change between two starts of it.
FREE_SETTINGS = (
    *("device.timeout_seconds", "device.max_restarts"),
    *("trainer.checkpoint_seconds", "trainer.divergence_retries"),
)


def conf_dir() -> Path:
    """The folder of YAML files: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """What `python train.py OVERRIDES` composes, without starting Hydra's job machinery.

    Raises ConfigError in one line where Hydra would raise its own errors.
    """
    register_schemas()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir())):
            return compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def load_config(cfg: DictConfig, command: str = "") -> TrainingConfig:
    """Turn a composed config into a typed and checked one with a run id of its own.

    Values that come from environment variables (`${oc.env:NAME}`) are used, and hidden from every snapshot.
    Raises ConfigError naming the field, its value and the remedy.
    """
    for name, leaf, known in unknown_keys(cfg, ""):
        nearest = difflib.get_close_matches(leaf, known, n=1)
        hint = f"did you mean {name.removesuffix(leaf)}{nearest[0]}?" if nearest else f"known here: {', '.join(known)}"
        raise ConfigError(f"there is no option {name}", hint)
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, TrainingConfig)
    check_config(config)
    config.hidden = environment_fields(cfg)
    config.command = command
    return with_run_id(config)


def with_run_id(config: TrainingConfig) -> TrainingConfig:
    """The same config as a run of its own: its id is the time, to the nanosecond, and the start of the content hash."""
    time_part = f"{datetime.now(UTC):%Y%m%dT%H%M%S}{time.time_ns() % 10**9:09d}"
    return dataclasses.replace(config, run_id=f"{time_part}-{config_hash(config)[:8]}")


def unknown_keys(node: DictConfig, prefix: str) -> Iterator[tuple[str, str, list[str]]]:
    """Keys that no dataclass declares, as (dotted name, key, names known there). `+key=` would add them unseen."""
    kind = OmegaConf.get_type(node)
    known = [item.name for item in fields(kind)] if is_dataclass(kind) else None
    for key in list(node.keys()):
        if known is not None and key not in known:
            yield f"{prefix}{key!s}", str(key), known
            continue
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from unknown_keys(child, f"{prefix}{key!s}.")


def environment_fields(cfg: DictConfig) -> dict[str, str]:
    """Dotted names and unresolved texts of the leaves that show an environment variable, read by themselves or through
    another leaf."""
    interpolated = dict(interpolated_leaves(cfg, ""))
    values = {name: str(OmegaConf.select(cfg, name)) for name in interpolated}
    secrets = {values[name] for name, text in interpolated.items() if "oc.env" in text and values[name]}
    return {name: interpolated[name] for name in sorted(values) if any(secret in values[name] for secret in secrets)}


def interpolated_leaves(node: DictConfig | ListConfig, prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted name, unresolved text) of every leaf that is written with `${...}`."""
    keys: list[Any] = list(range(len(node)) if isinstance(node, ListConfig) else node.keys())
    for key in keys:
        child: Any = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not child._is_none() and not child._is_missing():
            yield from interpolated_leaves(child, f"{prefix}{key}.")
        elif child is not None and "${" in str(child._value()):
            yield f"{prefix}{key}", str(child._value())


def snapshot(config: TrainingConfig) -> dict[str, Any]:
    """Plain values of a config for storing, without the command and without what came from the environment."""
    values = asdict(config)
    del values["command"]
    for name in config.hidden:
        _put(values, name, FROM_ENVIRONMENT)
    return values


def _put(values: Any, name: str, value: Any) -> None:
    """Set the leaf with a dotted name in nested dicts and lists."""
    *parents, leaf = name.split(".")
    for part in parents:
        values = values[int(part)] if isinstance(values, list) else values[part]
    values[int(leaf) if isinstance(values, list) else leaf] = value


def content(config: TrainingConfig) -> dict[str, Any]:
    """The part of the snapshot that numbers depend on, equal for two runs of one config at any time, in any folder."""
    own = ("run_id", "paths", "registry", "monitoring", "notes", "tags", "hidden")
    return {name: value for name, value in snapshot(config).items() if name not in own}


def from_content(values: dict[str, Any]) -> TrainingConfig:
    """The config of a run from its stored ``content``, checked like any other.

    Raises ConfigError where a value came from the environment, or where this program would make another config of it.
    """
    missing = [name for name, value in leaves(values) if value == FROM_ENVIRONMENT]
    if missing:
        raise ConfigError(f"{', '.join(missing)} came from the environment and was not stored", "train it by command")
    stage, model = values["stage"]["name"], values["model"]["name"]
    env = ["env=gymnasium"] if "id" in values["env"] else []
    cfg = compose_config([f"stage={stage}", *([f"model={model}"] if model in schema.ALGORITHMS else []), *env])
    _drop_unknown(cfg, values)
    try:
        cfg = OmegaConf.merge(cfg, values)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise explain(error) from error
    config = load_config(cfg)
    if content(config) != values:
        found = dict(leaves(content(config)))
        wrong = sorted(name for name, value in leaves(values) if name not in found or found[name] != value)
        wrong += sorted(found.keys() - dict(leaves(values)).keys())
        raise ConfigError(
            f"the stored config is one of another version of the program: {', '.join(wrong[:5])}",
            "use the version it was stored by",
        )
    return config


def from_snapshot(values: dict[str, Any]) -> TrainingConfig:
    """The config of a run from its ``snapshot``, under the same run id; what came from the environment is read there
    again. Raises ConfigError as ``from_content`` does, and where a variable is not set any more."""
    hidden = values["hidden"]
    values = _with_environment({name: value for name, value in values.items() if name != "hidden"}, hidden)
    own = {name: values.pop(name) for name in ("run_id", "paths", "registry", "monitoring", "notes", "tags")}
    kinds = {"paths": schema.PathsConfig, "registry": schema.RegistryConfig, "monitoring": schema.MonitoringConfig}
    for name, kind in kinds.items():
        own[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), own[name]))
    return dataclasses.replace(from_content(values), **own, hidden=hidden)


def _with_environment(values: dict[str, Any], hidden: dict[str, str]) -> dict[str, Any]:
    """A copy of the values with those that came from the environment, read anew as they were written."""
    values = copy.deepcopy(values)
    if not hidden:
        return values
    for name, text in hidden.items():
        _put(values, name, text)
    written = OmegaConf.create(values)
    for name, text in hidden.items():
        try:
            _put(values, name, OmegaConf.select(written, name, throw_on_resolution_failure=True))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{name} is {text}, which cannot be read any more", "set the variable again") from error
    return values


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is no container."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), values


def _drop_unknown(cfg: DictConfig, values: dict[str, Any]) -> None:
    """Remove the entries of free dictionaries that ``values`` lacks: a merge would keep them."""
    for key in list(cfg.keys()):
        child = cfg._get_node(key)
        if not is_dataclass(OmegaConf.get_type(cfg)) and key not in values:
            with open_dict(cfg):
                del cfg[key]
        elif isinstance(child, DictConfig) and isinstance(values.get(str(key)), dict):
            _drop_unknown(child, values[str(key)])


def config_hash(config: TrainingConfig) -> str:
    """SHA-256 of the content, equal to that of the config file which the registry keeps beside the model."""
    return hashlib.sha256(canonical_json(content(config))).hexdigest()


def explain(error: Exception) -> ConfigError:
    """One line for what Hydra or OmegaConf refused: what, where, what to do."""
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, MissingMandatoryValue):
        missing = re.search(r"full_key: (\S+)", text)
        key = missing.group(1) if missing else "a required option"
        return ConfigError(f"{key} is not set", f"add {key}=VALUE")
    unfit = re.search(r"In '([^'/]+)/([^']+)': ConfigKeyError raised while composing config", text)
    if unfit:
        group, name = unfit.groups()
        return ConfigError(f"{group}={name} does not fit the other choices", f"see conf/{group}/{name}.yaml")
    if re.search(r"Could not (find|load) 'hydra/launcher/submitit_slurm'", text):
        return ConfigError("hydra/launcher=slurm needs an extra", "pip install 'trade-agent[slurm]'")
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        prefix, _, leaf = unknown.group(1).split("@")[0].rpartition(".")
        kinds = [kind for kind in vars(schema).values() if isinstance(kind, type) and is_dataclass(kind)]
        names = sorted({item.name for kind in kinds for item in fields(kind)})
        nearest = [name for name in difflib.get_close_matches(leaf, names, n=1) if name != leaf]
        meant = f"{prefix}.{nearest[0]}" if nearest and prefix else "".join(nearest)
        hint = f"did you mean {meant}?" if nearest else "see every option with: python train.py --cfg job"
        return ConfigError(f"there is no option {unknown.group(1)}", hint)
    wrong = re.search(r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':\n(.*)", text, re.DOTALL)
    if wrong:
        group, name, options = wrong.groups()
        known = [line.strip() for line in options.splitlines() if line.startswith("\t") and "provider" not in line]
        return ConfigError(f"{group}={name} is not a choice", f"use one of {', '.join(known)}")
    lists = re.search(r"override (\S+?)=(\S+)", text)
    if lists and "ListConfig" in text:
        return ConfigError(f"{lists.group(1)} takes a list", f"write {lists.group(1)}=[{lists.group(2)}]")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"cannot read {error.override!r}", "write NAME=VALUE, special characters in quotes")
    if "Merge error" in text:
        return ConfigError("these groups do not fit together", "leave upstream= away: it follows stage=")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("object_type", "full_key", "reference_type", "Config search", "provider")
    lines = [line for line in lines if not line.startswith(noise)]
    return ConfigError(" ".join(dict.fromkeys(lines)).replace("\t", " ")[:400], "see python train.py --help")


def default_command(overrides: Sequence[str]) -> str:
    """The line that repeats a run from a shell."""
    return " ".join(["python train.py", *overrides]).strip()
