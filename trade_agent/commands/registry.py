"""`trade-agent registry`: looking after the models that are there."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trade_agent.commands.shared import DEFAULT_MODELS, Json, Models, open_registry, print_json
from trade_agent.errors import RegistryError
from trade_agent.registry.probe import doctor as probe_disk
from trade_agent.registry.retention import PrunePolicy
from trade_agent.registry.signing import Signing
from trade_agent.registry.store import ModelRegistry

registry_app = typer.Typer(no_args_is_help=True, help="Look after the model registry.")

Keys = Annotated[Path | None, typer.Option("--keys", help="Folder of signing_key.pem and trusted/*.pem.")]
Reference = Annotated[str, typer.Argument(help="An id, hybrid@latest, hybrid@best, hybrid@1.0.0, ...")]
References = Annotated[list[str], typer.Argument(help="Ids, hybrid@1.0.0, sha256:..., ...")]
Cascade = Annotated[bool, typer.Option("--cascade", help="Take the models along that depend on it.")]


# ------------------------------------------------------------------------------------------------ checking


@registry_app.command()
def verify(
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
    deep: Annotated[bool, typer.Option("--deep", help="Also load every file through the gate.")] = False,
    signatures: Annotated[
        str, typer.Option("--signatures", help="off, sign (check those there are) or require.")
    ] = "off",
    keys: Keys = None,
) -> None:
    """Check every file against its digest, every parent and the index. Exit code 1 when something is found."""
    from trade_agent.registry.verify import is_clean
    from trade_agent.registry.verify import verify as verify_registry

    registry = open_registry(models_dir)
    findings = verify_registry(models_dir, deep=deep, signing=Signing(signatures, keys))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    elif findings:
        for finding in findings:  # a line each, whole: names and digests are there to be copied
            print(f"{finding.severity:6} {finding.kind:12} {finding.path}: {finding.message}")
        errors = sum(finding.severity == "error" for finding in findings)
        print(f"{models_dir}: {errors} errors, {len(findings) - errors} notes")
    else:
        print(f"{models_dir}: {len(registry.list(include_archived=True))} models, nothing found")
    if not is_clean(findings):
        raise typer.Exit(1)


@registry_app.command()
def keygen(keys: Keys = None) -> None:
    """Make the pair of keys that signs models. The private one stays with you, the public one is what others trust."""
    from trade_agent.registry.signing import make_keys

    folder = Signing("off", keys).folder
    print(f"key {make_keys(folder)} in {folder}; sign with registry.signing=sign")


@registry_app.command()
def sign(reference: str, keys: Keys = None, models_dir: Models = DEFAULT_MODELS) -> None:
    """Sign a model that was registered without a signature."""
    open_registry(models_dir)
    print(ModelRegistry(models_dir, signing=Signing("sign", keys)).sign(reference))


@registry_app.command()
def scan(
    path: Annotated[Path, typer.Argument(help="A file, or a folder whose files are all looked at.")],
    deep: Annotated[bool, typer.Option("--deep", help="Ask picklescan too: needs trade-agent[scan].")] = False,
    as_json: Json = False,
) -> None:
    """Which files from elsewhere are plain data. Nothing is executed. Exit code 1 when one is not."""
    from trade_agent.registry.scan import scan as scan_files

    verdicts = scan_files(path, deep=deep)
    if as_json:
        print_json([dataclasses.asdict(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            print(f"{'safe' if verdict.safe else 'REFUSED':8} {verdict.kind:10} {verdict.path}: {verdict.reason}")
    if not all(verdict.safe for verdict in verdicts):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ state


@registry_app.command()
def archive(
    references: References, cascade: Cascade = False, as_json: Json = False, models_dir: Models = DEFAULT_MODELS
) -> None:
    """Put models aside; `restore` takes them back. A model with an alias, or that others were built on, stays."""
    report("archived", open_registry(models_dir).archive(references, cascade=cascade), as_json)


@registry_app.command()
def restore(
    references: References,
    cascade: Annotated[bool, typer.Option("--cascade", help="With the archived models it was built on.")] = False,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Take archived models back, bit for bit."""
    report("restored", open_registry(models_dir).restore(references, cascade=cascade), as_json)


@registry_app.command()
def prune(
    keep_best: Annotated[int, typer.Option(help="Of each type and of each search, by validation score.", min=0)] = 3,
    keep_last: Annotated[int, typer.Option(help="Of each type, by version.", min=0)] = 3,
    min_age_days: Annotated[float, typer.Option(help="Younger models stay.", min=0.0)] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this the plan is shown.")] = False,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Archive what is neither good, new, named, nor needed. Shows the plan unless --yes."""
    registry = open_registry(models_dir)
    policy = PrunePolicy(keep_best=keep_best, keep_last=keep_last, min_age_days=min_age_days)
    plan = registry.prune_plan(policy)
    if as_json:
        print_json([dataclasses.asdict(item) for item in plan])
    else:
        for item in plan:  # a line each, the id whole: it is there to be copied
            children = f"; with {', '.join(item.dependents)}" if item.dependents else ""
            print(f"{item.id}  {item.size / 1024:.0f} KiB  {item.reason}{children}")
        action, size = "archiving" if yes else "would archive (add --yes)", sum(item.size for item in plan)
        print(f"{action} {len(plan)} of {len(registry.list())} models, {size / 2**20:.1f} MiB")
    if yes:
        registry.archive([item.id for item in plan])


@registry_app.command()
def purge(
    references: References,
    after_days: Annotated[float, typer.Option(help="Only what has been archived this long.", min=0.0)] = 30.0,
    cascade: Cascade = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: the files cannot be had back.")] = False,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Delete the files of archived models for good. Their metadata stays, and no number is used again."""
    registry = open_registry(models_dir)
    if not yes:
        names = [registry.resolve(reference, include_archived=True) for reference in references]
        raise RegistryError(f"this deletes the files of {', '.join(names)} for good", "add --yes to do it")
    report("purged", registry.purge(references, purge_after_days=after_days, cascade=cascade), as_json)


@registry_app.command()
def gc(
    older_than_hours: Annotated[
        float, typer.Option(help="Writers elsewhere count as gone after this time.", min=0.0)
    ] = 24.0,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Close the registrations of writers that died, and remove what they left."""
    report("removed", open_registry(models_dir).collect_garbage(older_than_hours=older_than_hours), as_json)


@registry_app.command()
def repair(as_json: Json = False, models_dir: Models = DEFAULT_MODELS) -> None:
    """Finish archiving and restoring that was cut off, and close what dead writers began. Deletes nothing."""
    report("repaired", open_registry(models_dir).repair(), as_json)


@registry_app.command()
def rebuild(models_dir: Models = DEFAULT_MODELS) -> None:
    """Write registry.json again, from metadata and events."""
    registry = open_registry(models_dir)
    registry.rebuild()
    print(f"{registry.layout.snapshot}: {len(registry.list(include_archived=True))} models")


@registry_app.command()
def alias(
    name: Annotated[str, typer.Argument(help="TYPE@NAME, such as sac@champion.")],
    reference: Annotated[str | None, typer.Argument(help="The model that it shall mean.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Give a model a name that can be moved to another one later."""
    registry = open_registry(models_dir)
    model_type, at, short = name.partition("@")
    if not at or (reference is None) != remove:
        raise RegistryError(
            f"{name!r} alone says too little or too much", "write TYPE@NAME MODEL, or TYPE@NAME --remove"
        )
    if reference is None:
        registry.remove_alias(model_type, short)
        return
    identifier = registry.resolve(reference)
    if not identifier.startswith(f"{model_type}_v"):
        raise RegistryError(f"{identifier} is no {model_type} model", f"write {identifier.split('_v')[0]}@{short}")
    registry.set_alias(identifier, short)
    print(f"{name} is {identifier}")


@registry_app.command()
def note(reference: Reference, text: str, models_dir: Models = DEFAULT_MODELS) -> None:
    """Add a note to a model, which `log` shows."""
    open_registry(models_dir).note(reference, text)


@registry_app.command()
def regrade(
    references: References,
    grading: Annotated[str, typer.Option(help="A policy of conf/grading/.")] = "default",
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """Grade models again from their stored test metrics, by another policy. Files keep their names."""
    from trade_agent.config.load import compose_config, load_config
    from trade_agent.evaluation.grading import policy_from_dict

    registry = open_registry(models_dir)
    chosen = load_config(compose_config([f"grading={grading}"])).grading
    policy = policy_from_dict({"id": chosen.id, "forecaster": chosen.forecaster, "trading": chosen.trading})
    decisions = {}
    for reference in references:
        identifier = registry.resolve(reference, include_archived=True)
        decisions[identifier] = registry.regrade(identifier, policy).as_dict()
    if as_json:
        print_json(decisions)
    for identifier, decision in {} if as_json else decisions.items():
        caps = "".join(f"; at most {cap['cap']}: {cap['reason']}" for cap in decision["caps"])
        print(f"{identifier}: {decision['grade']} by {policy.id}{caps}")


# ------------------------------------------------------------------------------------------------ looking


@registry_app.command()
def lineage(
    reference: Reference,
    up: Annotated[bool, typer.Option("--up", help="Only what it was built on.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was built on it.")] = False,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """What a model was built on and what was built on it, archived models included."""
    links = open_registry(models_dir).lineage(reference)
    chosen = {way: links[way] for way, wanted in (("up", up or not down), ("down", down or not up)) if wanted}
    if as_json:
        print_json({way: [dataclasses.asdict(link) for link in found] for way, found in chosen.items()})
        return
    for way, found in chosen.items():
        print("built on" if way == "up" else "built on it")
        for link in found:
            print(f"{'  ' * link.depth}{link.parent if way == 'up' else link.child} ({link.role} of {link.child})")


@registry_app.command()
def log(
    reference: Annotated[str | None, typer.Argument(help="One model; all state changes when left away.")] = None,
    as_json: Json = False,
    models_dir: Models = DEFAULT_MODELS,
) -> None:
    """State changes in their order: aliases, archiving, grades, notes."""
    events = open_registry(models_dir).history(reference)
    if as_json:
        print_json(list(events))
        return
    for event in events:
        details = {
            "alias": f"{event.get('model_type')}@{event.get('alias')}{'' if event['model_id'] else ' taken away'}",
            "grade": event.get("grade"),
            "note": event.get("text"),
        }.get(event["type"], "")
        line = f"{event['number']:6}  {event['created'][:19]}  {event['type']:8} {event['model_id']} {details}"
        print(line.rstrip())


@registry_app.command()
def doctor(as_json: Json = False, models_dir: Models = DEFAULT_MODELS) -> None:
    """What the disk below the registry can do. Exit code 1 when a registry cannot be kept there."""
    abilities = probe_disk(models_dir)
    if as_json:
        print_json([dataclasses.asdict(ability) for ability in abilities])
    else:
        table = Table("", "there", "needed", "for")
        for each in abilities:
            table.add_row(each.name, "yes" if each.there else "NO", "yes" if each.needed else "", each.meaning)
        Console().print(table)
    if any(each.needed and not each.there for each in abilities):
        raise typer.Exit(1)


def report(done: str, what: tuple[str, ...], as_json: bool) -> None:
    """The ids or paths that a command dealt with, a line each."""
    if as_json:
        print_json(list(what))
        return
    for line in what:
        print(f"{done} {line}")
    if not what:
        print(f"nothing {done}")
