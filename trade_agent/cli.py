"""The `trade-agent` command. Everything that needs torch is imported only where it is used: `list` answers at once."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trade_agent import __version__
from trade_agent.commands.registry import registry_app
from trade_agent.commands.search import search_app
from trade_agent.commands.shared import DEFAULT_MODELS, Json, Models, open_registry, print_json
from trade_agent.config.quoting import quoted
from trade_agent.errors import ConfigError, DataError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train and keep trading agents."
)
train_app = typer.Typer(no_args_is_help=True, help="Train a model; options of the config follow after --.")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(train_app, name="train")
app.add_typer(registry_app, name="registry")
app.add_typer(data_app, name="data")
app.add_typer(search_app, name="search")

SUFFIX_SOURCES = {
    ".parquet": "parquet",
    ".feather": "feather",
    ".csv": "csv",
    ".gz": "csv",
    ".txt": "csv",
    ".zip": "lean",
}

Data = Annotated[
    str | None, typer.Argument(help="A file (csv, parquet, feather, LEAN zip); the embedded sample when left away.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Config overrides, such as trainer=smoke seed=7.")]
Algorithm = Annotated[str, typer.Option("--model", help="ppo, sac or td3.")]
ForecasterId = Annotated[str | None, typer.Option("--cnn-lstm-model", help="Reference of a registered forecaster.")]
AgentId = Annotated[str | None, typer.Option("--rl-model", help="Reference of a registered agent.")]
Members = Annotated[str | None, typer.Option("--models", help="References of hybrids, separated by commas.")]
Optimize = Annotated[bool, typer.Option("--optimize", help="Search hyper-parameters with Optuna: -m search=MODEL.")]
Archived = Annotated[bool, typer.Option("--archived", help="Archived and purged models too.")]
SHOWN_FIELDS = ("grade", "objective", "data", "parents", "preprocessor", "seed", "trainer_profile", "command")


# ------------------------------------------------------------------------------------------------ train


@train_app.command("cnn-lstm")
def train_cnn_lstm(data: Data = None, overrides: Overrides = None, optimize: Optimize = False) -> None:
    """Stage 1: the forecaster."""
    train(["stage=cnn_lstm"], data, overrides, "cnn_lstm" if optimize else None)


def _train_agent(
    algorithm: str, data: str | None, overrides: list[str] | None, forecaster: str | None, optimize: bool
) -> None:
    options = ["stage=rl", f"model={algorithm}", *_named("upstream.cnn_lstm_model", forecaster)]
    train(options, data, overrides, algorithm if optimize else None)


@train_app.command("ppo")
def train_ppo(
    data: Data = None, overrides: Overrides = None, cnn_lstm_model: ForecasterId = None, optimize: Optimize = False
) -> None:
    """Stage 2: a PPO agent on the forecaster's features."""
    _train_agent("ppo", data, overrides, cnn_lstm_model, optimize)


@train_app.command("sac")
def train_sac(
    data: Data = None, overrides: Overrides = None, cnn_lstm_model: ForecasterId = None, optimize: Optimize = False
) -> None:
    """Stage 2: a SAC agent on the forecaster's features."""
    _train_agent("sac", data, overrides, cnn_lstm_model, optimize)


@train_app.command("td3")
def train_td3(
    data: Data = None, overrides: Overrides = None, cnn_lstm_model: ForecasterId = None, optimize: Optimize = False
) -> None:
    """Stage 2: a TD3 agent on the forecaster's features."""
    _train_agent("td3", data, overrides, cnn_lstm_model, optimize)


@train_app.command("hybrid")
def train_hybrid(
    data: Data = None,
    overrides: Overrides = None,
    model: Algorithm = "sac",
    cnn_lstm_model: ForecasterId = None,
    rl_model: AgentId = None,
    optimize: Optimize = False,
) -> None:
    """Stage 3: forecaster and agent in one network, jointly optimised."""
    from trade_agent.config.schema import ALGORITHMS

    if model not in ALGORITHMS:
        raise ConfigError(f"--model {model} is not an algorithm", f"use one of {', '.join(ALGORITHMS)}")
    named = [*_named("upstream.cnn_lstm_model", cnn_lstm_model), *_named("upstream.rl_model", rl_model)]
    train(["stage=hybrid", f"model={model}", *named], data, overrides, "hybrid" if optimize else None)


@train_app.command("ensemble")
def train_ensemble(
    data: Data = None, overrides: Overrides = None, models: Members = None, optimize: Optimize = False
) -> None:
    """Stage 4: several hybrids in one policy."""
    named = [f"upstream.models=[{','.join(quoted(name) for name in models.split(','))}]"] if models else []
    train(["stage=ensemble", *named], data, overrides, "ensemble" if optimize else None)


def train(options: list[str], data: str | None, extra: Sequence[str] | None, search: str | None) -> None:
    """Compose the config of `options` and run the manager (or the search) on it; both print the equivalent line."""
    # The first word after the command is DATA unless it is an override: `trade-agent train sac -- trainer=smoke`.
    own = list(extra or [])
    if data is not None and "=" in data and not Path(data).exists():
        own.insert(0, data)
        data = None
    overrides = [*options, *data_overrides(data), *ask_before_upstream(own), *own]
    from trade_agent.config.load import compose_config, conf_dir, default_command, load_config

    if search is not None:
        arguments = ["-m", f"search={search}", *[option for option in overrides if not option.startswith("stage=")]]
        arguments = [option for option in arguments if search == "hybrid" or not option.startswith("model=")]
        print(default_command(arguments), file=sys.stderr)
        sys.stderr.flush()
        # In place of this process: signals, and the exit code, are the search's own.
        os.execv(sys.executable, [sys.executable, str(conf_dir().parent / "train.py"), *arguments])
    config = load_config(compose_config(overrides), default_command(overrides))
    from trade_agent.training.resume import default_run_dir
    from trade_agent.training.runs import run_config

    run_config(config, run_dir=default_run_dir(config))


def ask_before_upstream(own: Sequence[str]) -> list[str]:
    """On a terminal ask before stages below are trained; a script gets what it asked for."""
    chosen = any(option.startswith("upstream.missing=") for option in own)
    return ["upstream.missing=ask"] if sys.stdin.isatty() and not chosen else []


def data_overrides(data: str | None) -> list[str]:
    """The overrides that read a file, by its suffix."""
    if data is None:
        return []
    path = Path(data)
    if not path.is_file():
        raise DataError(f"{data} is not a file", "give the path of a csv, parquet, feather or LEAN zip file")
    if path.suffix.lower() not in SUFFIX_SOURCES:
        known = ", ".join(SUFFIX_SOURCES)
        raise DataError(
            f"{data} has the suffix {path.suffix!r}", f"use one of {known}, or say it: -- data=csv data.path="
        )
    return [f"data={SUFFIX_SOURCES[path.suffix.lower()]}", f"data.path={quoted(str(path.resolve()))}"]


def _named(option: str, reference: str | None) -> list[str]:
    return [] if reference is None else [f"{option}={quoted(reference)}"]


# ------------------------------------------------------------------------------------------------ registry


@app.command("list")
def list_models(
    model_type: Annotated[
        str | None, typer.Option("--type", help="cnn_lstm, ppo, sac, td3, hybrid or ensemble.")
    ] = None,
    archived: Archived = False,
    event: Annotated[
        int | None, typer.Option("--event", help="As it was after this number of `registry log`.", min=1)
    ] = None,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Registered models, by type and version, with the grades they have now."""
    registry = open_registry(models_dir, may_be_new=True)
    records = registry.list(model_type, include_archived=archived, until=event)
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    if not records:
        print(f"no models in {models_dir}; train one: trade-agent train hybrid")
    # One line a model, the id whole: it is there to be copied, and cut by other programs.
    width = max((len(record.id) for record in records), default=0)
    for record in records:
        value = record.objective.value
        shown = "not finite" if value is None else f"{value:.4f}"
        state = "" if record.state == "active" else f"  {record.state}"
        print(f"{record.id:{width}}  {record.created[:16]}  {record.grade:2}  {record.objective.name} {shown}{state}")


@app.command()
def info(
    reference: Annotated[str, typer.Argument(help="An id, hybrid@latest, hybrid@best, hybrid@1.0.0, ...")],
    archived: Archived = False,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Everything known about one model, as it was registered, and what became of it."""
    registry = open_registry(models_dir)
    metadata = registry.get(reference, include_archived=archived)
    view = registry.view()
    record = view.records[metadata.model_id]
    names = sorted(alias for alias, identifier in view.aliases.items() if identifier == metadata.model_id)
    present = {"state": record.state, "aliases": names, "present_grade": record.grade}
    values = dataclasses.asdict(metadata)
    if as_json:
        print_json(values | present)
        return
    table = Table("", metadata.model_id, show_lines=False)
    for name, value in present.items():
        table.add_row(name.replace("_", " "), shown_value(value))
    for name in SHOWN_FIELDS:
        table.add_row(name, shown_value(values[name]))
    for name, value in values["metrics"].items():
        table.add_row(f"test {name}", shown_value(value))
    for cap in values["grade_decision"].get("caps", []):
        table.add_row(f"capped at {cap['cap']}", f"{cap['reason']} ({cap['rule']})")
    Console().print(table)


@app.command("import")
def import_file(
    path: Annotated[Path, typer.Argument(help="A .pth file of another registry, or any checkpoint of plain tensors.")],
    model_type: Annotated[
        str | None, typer.Option("--type", help="What it is, where no metadata lies beside it.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="JSON file: what it was built with.")] = None,
    preprocessor: Annotated[Path | None, typer.Option("--preprocessor", help="Its preprocessor_*.pkl.")] = None,
    notes: Annotated[str, typer.Option("--notes", help="Where it came from, in words.")] = "",
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Check a checkpoint from elsewhere, write it anew in the registry's format and register it."""
    from trade_agent.registry.quarantine import import_model

    metadata = import_model(
        open_registry(models_dir, may_be_new=True),
        path,
        model_type=model_type,
        config=config,
        preprocessor=preprocessor,
        notes=notes,
    )
    print(f"model_id: {metadata.model_id}")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run that was stopped, such as outputs/hybrid/...")],
) -> None:
    """Go on with a run that was stopped, from its last checkpoint; the same as `python train.py resume=FOLDER`."""
    from trade_agent.training.runs import resume_run

    resume_run(folder)


@app.command()
def reproduce(
    reference: Annotated[str, typer.Argument(help="An id, hybrid@latest, hybrid@best, hybrid@1.0.0, ...")],
    data: Annotated[Path | None, typer.Option("--data", help="Its data file, where that has moved.")] = None,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Train a model again from its stored config, seed and data, and compare. Exit code 1 when it differs."""
    from trade_agent.training.reproduce import reproduce as train_again

    rows = train_again(open_registry(models_dir), reference, data=data, quiet=as_json)
    if as_json:
        print_json([dataclasses.asdict(row) | {"equal": row.equal} for row in rows])
    else:
        table = Table("", "registered", "reproduced", "equal")
        for row in rows:
            shown = [str(value)[:20] for value in (row.registered, row.reproduced)]
            table.add_row(row.name, *shown, "yes" if row.equal else "NO")
        Console().print(table)
    if not all(row.equal for row in rows):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ data


@data_app.command("validate")
def validate_data(
    file: Annotated[str, typer.Argument(help="A csv, parquet, feather or LEAN zip file.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """What is wrong with a file, and what would be done about it. Exit code 2 when it would be refused."""
    from trade_agent.config.load import compose_config, load_config
    from trade_agent.training.dataset import validate_source

    config = load_config(compose_config(["stage=cnn_lstm", *data_overrides(file), *(overrides or [])]))
    report = validate_source(config.data)
    if as_json:
        print_json(report.to_dict())
    else:
        table = Table("symbol", "kind", "rows", "policy", "first", "detail")
        for row in report.table_rows():
            table.add_row(*row)
        Console().print(table)
    report.raise_if_refused()


# ------------------------------------------------------------------------------------------------ output


def shown_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {shown_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(shown_value(item) for item in value)
    return str(value)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `trade-agent` script."""
    from trade_agent.console import exit_code_of
    from trade_agent.training.signals import end_on_signals

    end_on_signals()
    sys.exit(exit_code_of(app))
