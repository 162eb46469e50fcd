"""`trade-agent search`: what a study found."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trade_agent.commands.shared import Json, print_json

search_app = typer.Typer(no_args_is_help=True, help="Look at Optuna studies; train.py -m search=MODEL makes them.")
DEFAULT_STORAGE = "journal:///outputs/studies.journal"


@search_app.command("summary")
def summary(
    study: Annotated[str, typer.Argument(help="Name of the study: cnn_lstm, ppo, sac, td3, hybrid_sac, ensemble, ...")],
    storage: Annotated[str, typer.Option("--storage", help="journal:///FILE, sqlite:///FILE, ...")] = DEFAULT_STORAGE,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="A folder for history.png, importance.png, summary.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every trial, what was best, and which settings mattered."""
    from trade_agent.search.studies import load_study
    from trade_agent.search.summary import best_lines, state_counts, summarise, write_summary

    found = load_study(storage, study)
    result = summarise(found) if pictures is None else write_summary(found, pictures)
    if as_json:
        print_json(result)
        return
    objectives = list(result["objectives"])
    settings = list(dict.fromkeys(name for trial in result["trials"] for name in trial["params"]))
    constrained = any(trial["violated"] for trial in result["trials"])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (
        "trial",
        "state",
        *objectives,
        *(setting.rpartition(".")[2] for setting in settings),
        *["violates"] * constrained,
    ):
        table.add_column(name.replace("_", "\n"), overflow="fold")  # whole on the narrowest terminal
    for trial in result["trials"]:
        values = [f"{trial['values'][name]:.4g}" if name in trial["values"] else "" for name in objectives]
        chosen = [shown(trial["params"].get(name, "")) for name in settings]
        violated = [", ".join(trial["violated"])] * constrained
        table.add_row(str(trial["number"]), trial["state"], *values, *chosen, *violated)
    Console().print(table)
    for name, share in result["importance"].items():
        print(f"importance {share:4.0%}  {name}")
    for line in [f"study {study}: {state_counts(result)}", *best_lines(result)]:
        print(line)


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
