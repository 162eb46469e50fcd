"""The model registry: register, find, load and name model versions in a folder of plain files."""

import datetime
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.evaluation.grading import GradeDecision, GradePolicy, PerformanceGrade
from trade_agent.evaluation.grading import grade as decide_grade
from trade_agent.registry import lifecycle
from trade_agent.registry import resolve as references
from trade_agent.registry.drafts import Draft, full_contract, full_recipe, known_grade
from trade_agent.registry.environment import describe_environment
from trade_agent.registry.events import append_event, event_file, event_numbers, read_event
from trade_agent.registry.garbage import collect
from trade_agent.registry.layout import Layout, link_new, storage_errors
from trade_agent.registry.metadata import (
    Bump,
    DataInfo,
    FileInfo,
    ModelMetadata,
    Objective,
    Parent,
    PreprocessorInfo,
    check_config,
    finite,
    plain_hash,
)
from trade_agent.registry.naming import METADATA_FILE, MODEL_ID, check_model_type, file_names, metadata_file
from trade_agent.registry.publish import publish
from trade_agent.registry.retention import PruneItem, PrunePolicy, prune_plan
from trade_agent.registry.signing import Signing, signature_file
from trade_agent.registry.snapshot import (
    ACTIVE,
    ARCHIVED,
    PURGED,
    ModelRecord,
    View,
    holds_events,
    read_metadata,
    read_view,
    refresh,
    write_snapshot,
)

DURABILITIES = ("full", "relaxed")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model whose every byte was checked. ``state`` is on the CPU; ``preprocessor_state`` goes to ``from_state``."""

    metadata: ModelMetadata
    state: dict[Any, Any]
    config: dict[str, Any]
    preprocessor_state: dict[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageLink:
    """``child`` was built on ``parent``, which plays ``role`` in it; ``depth`` is 1 for a direct relation."""

    child: str
    parent: str
    role: str
    depth: int


class ModelRegistry:
    """Models under ``root``. Several processes, also on several hosts, may use one root at once.

    ``durability`` full waits for the disk before a registration is reported, relaxed leaves that to the system.
    ``signing`` says whether models are signed and signatures checked, by default not.
    """

    def __init__(self, root: Path | str, durability: str = "full", signing: Signing | None = None) -> None:
        if durability not in DURABILITIES:
            raise RegistryError(f"durability {durability!r} is unknown", f"use one of {', '.join(DURABILITIES)}")
        self.layout = Layout(root, durable=durability == "full")
        self.signing = signing or Signing()
        self.signing.check(self.root)
        self.layout.check_format()

    @property
    def root(self) -> Path:
        """The registry's folder, absolute."""
        return self.layout.root

    # ------------------------------------------------------------ writing

    def register(
        self,
        *,
        model_type: str,
        state: Mapping[Any, Any],
        preprocessor: bytes,
        config: Mapping[str, Any],
        grade: PerformanceGrade | str,
        grade_decision: Mapping[str, Any],
        metric_token: tuple[str, float],
        objective: Objective,
        metrics: Mapping[str, Any],
        baselines: Mapping[str, Any],
        parents: Sequence[Parent],
        preprocessor_info: PreprocessorInfo,
        data: DataInfo,
        contract: Mapping[str, Any],
        recipe: Mapping[str, Any],
        seed: int,
        run_id: str,
        trainer_profile: str,
        study: str = "",
        environment: Mapping[str, str] | None = None,
        command: str = "",
        bump: str | None = None,
        tags: Sequence[str] = (),
        notes: str = "",
    ) -> ModelMetadata:
        """Store a trained model as a new immutable version and return its metadata.

        Args:
            state: tensors and plain values, see ``safe_io.dump_tensors``.
            preprocessor: what ``safe_io.dump_arrays`` made of the fitted pipeline's state.
            config: the resolved configuration, plain values.
            grade_decision: how the grade came about (inputs, policy, caps).
            metric_token: name and value shown in the id, for example ("sharpe", 0.42).
            objective: the validation objective, which ``@best`` compares.
            metrics: test metrics; numbers that are not finite are stored as None. ``baselines`` likewise.
            parents: models this one was built on, from ``pin``; they must still be what they were.
            contract: what a consumer must know to use the model (features, window, action space, outputs ...). The
                layout of ``state``, the preprocessor's contract and the parents' majors are added to it.
            recipe: what else decides about the result (hyper-parameters, code version), without the seed. Data, parents
                and the fitted preprocessor are added to it.
            run_id: names the run; registering the same type again under it returns the first version. A run that
                registers several models of one type adds a suffix.
            study: the search that the run is a trial of, if any; each one's best models survive ``prune``.
            environment: from ``describe_environment`` at the start of the run; taken now where None.
            bump: least change of version: patch, minor or major. Lower than the computed one is refused.

        Raises:
            RegistryError: something above does not hold, or the disk fails; then nothing becomes visible. A parent was
                archived meanwhile: then the model is archived too.
        """
        check_model_type(model_type)
        check_config(dict(config), name="the configuration")
        safe_io.load_arrays(preprocessor, name="the preprocessor")
        self.signing.check(self.root, writes=True)
        for parent in parents:
            self._check_parent(parent)
        try:
            files = {
                "model": safe_io.dump_tensors(dict(state)),
                "preprocessor": preprocessor,
                "config": safe_io.canonical_json(dict(config)),
            }
            whole_contract = full_contract(contract, state=state, preprocessor=preprocessor_info, parents=parents)
            whole_recipe = full_recipe(recipe, data=data, preprocessor=preprocessor_info, parents=parents)
        except ValueError as error:
            raise RegistryError(f"{model_type} cannot be stored: {error}", "pass plain values and tensors") from error
        draft = Draft(
            metadata=ModelMetadata(
                model_id="",
                model_type=model_type,
                version="",
                grade=known_grade(grade).value,
                grade_decision=finite(dict(grade_decision)),
                objective=replace(objective, value=finite(objective.value)),
                metrics=finite(dict(metrics)),
                baselines=finite(dict(baselines)),
                parents=list(parents),
                preprocessor=preprocessor_info,
                data=data,
                contract=whole_contract,
                contract_hash=plain_hash(whole_contract),
                recipe=whole_recipe,
                recipe_hash=plain_hash(whole_recipe),
                config_hash=safe_io.sha256_bytes(files["config"]),
                seed=seed,
                run_id=run_id,
                study=study,
                trainer_profile=trainer_profile,
                files={},
                weights_sha256=safe_io.weights_sha256(dict(state)),
                created="",
                environment=dict(environment or describe_environment()),
                command=command,
                bump=Bump(level="", reason="", compared_with=None, differing_keys=[]),
                tags=list(tags),
                notes=notes,
            ),
            metric_token=metric_token,
            at_least=bump,
            files=files,
            sign=None if self.signing.mode == "off" else self.signing.sign,
        )
        with storage_errors(f"registering a {model_type} model in {self.root}"):
            self.layout.prepare()
            metadata = publish(self.layout, draft)
        refresh(self.layout)
        if parents:
            with storage_errors(f"checking the parents of {metadata.model_id}"):
                lifecycle.confirm_parents(self.layout, metadata.model_id)
        return metadata

    def set_alias(self, reference: str, alias: str) -> None:
        """Let ``type@alias`` mean the model ``reference``, for example ``sac@champion``; moves an alias that exists."""
        if not references.ALIAS.fullmatch(alias) or alias in references.RESERVED_ALIASES:
            raise RegistryError(
                f"{alias!r} cannot be an alias", "use a-z, 0-9, '_', '-'; not 'latest', 'best' or a version"
            )
        record = self._record(reference, include_archived=False)
        with storage_errors(f"setting the alias {alias}"):
            self._change("alias", record.id, model_type=record.type, alias=alias)
            if self.view().aliases.get(f"{record.type}@{alias}") != record.id:
                raise RegistryError(f"{record.id} was archived meanwhile", "restore it, or name another model")

    def remove_alias(self, model_type: str, alias: str) -> None:
        """Take an alias away. RegistryError where there is none of this name."""
        check_model_type(model_type)
        if f"{model_type}@{alias}" not in self.view().aliases:
            raise RegistryError(f"there is no alias {model_type}@{alias}", "trade-agent registry log shows them all")
        with storage_errors(f"removing the alias {alias}"):
            self._change("alias", "", model_type=model_type, alias=alias)

    def note(self, reference: str, text: str) -> None:
        """Add a note to a model, archived or not; ``history`` shows it."""
        record = self._record(reference, include_archived=True)
        with storage_errors(f"adding a note to {record.id}"):
            self._change("note", record.id, text=text)

    def regrade(self, reference: str, policy: GradePolicy) -> GradeDecision:
        """Grade a model again, from its stored metrics and what else its grade was decided by; files keep their names.

        Raises ConfigError where the policy asks for a metric that was not stored.
        """
        record = self._record(reference, include_archived=True)
        metadata = self._metadata(record)
        inputs = metadata.grade_decision.get("inputs")
        if not inputs:
            raise RegistryError(f"{record.id} was registered without metrics", "it keeps the grade it has")
        decision = decide_grade(record.type, metadata.metrics | inputs, policy)
        with storage_errors(f"grading {record.id}"):
            self._change("grade", record.id, grade=decision.grade.value, decision=finite(decision.as_dict()))
        return decision

    def archive(self, models: Sequence[str], *, cascade: bool = False) -> tuple[str, ...]:
        """Put models aside; nothing that others were built on, unless ``cascade`` takes those along. Returns the ids.

        Raises RegistryError, before anything is changed, where a model has an alias or active children.
        """
        return self._lifecycle("archiving", lifecycle.archive, models, cascade=cascade)

    def restore(self, models: Sequence[str], *, cascade: bool = False) -> tuple[str, ...]:
        """Take archived models back, files bit for bit; ``cascade`` their archived parents too. Returns the ids."""
        return self._lifecycle("restoring", lifecycle.restore, models, selecting=ARCHIVED, cascade=cascade)

    def purge(self, models: Sequence[str], *, purge_after_days: float, cascade: bool = False) -> tuple[str, ...]:
        """Delete the files of models archived at least ``purge_after_days`` ago, but their metadata; returns ids."""
        return self._lifecycle(
            "purging",
            lifecycle.purge,
            models,
            selecting=ARCHIVED,
            cascade=cascade,
            purge_after_days=purge_after_days,
        )

    def prune_plan(self, policy: PrunePolicy) -> Sequence[PruneItem]:
        """What ``prune`` would archive, with the reason; changes nothing."""
        return prune_plan(self.view(), policy, size=self._size, now=datetime.datetime.now(datetime.UTC))

    def prune(self, policy: PrunePolicy) -> tuple[str, ...]:
        """Archive what ``prune_plan`` names. Returns the ids."""
        return self.archive([item.id for item in self.prune_plan(policy)])

    def collect_garbage(self, *, older_than_hours: float) -> tuple[str, ...]:
        """End registrations whose writers are gone and remove what they left. Returns the paths, relative."""
        with storage_errors("removing left-overs"):
            return tuple(collect(self.layout, older_than_hours=older_than_hours))

    def repair(self) -> tuple[str, ...]:
        """Finish what was cut off, see ``lifecycle.repair``; deletes nothing. Returns a line for each thing done."""
        with storage_errors("repairing"):
            return tuple(lifecycle.repair(self.layout))

    def sign(self, reference: str) -> Path:
        """Sign a model that was registered without a signature, and return the new file; the model is verified first.

        Raises RegistryError where signing is off or a signature exists.
        """
        if self.signing.mode == "off":
            raise RegistryError("signing is off", "use registry.signing=sign")
        record = self._record(reference, include_archived=True)
        ModelRegistry(self.root).load(record.id, include_archived=True)
        folder = self.root / posixpath.dirname(record.file)
        path = folder / signature_file(record.version)
        metadata = self._metadata(record).to_json()
        with storage_errors(f"signing {record.id}"), self.layout.scratch() as scratch:
            self.layout.write_new(scratch / "signature", self.signing.sign(metadata, record.version))
            if not link_new(scratch / "signature", path):
                raise RegistryError(f"{path} exists", "move it away first if it is not to be believed")
            self.layout.sync(folder)
        return path

    def rebuild(self) -> None:
        """Write ``registry.json`` from metadata and events alone."""
        with storage_errors("rebuilding registry.json"):
            self.layout.prepare()
            view = read_view(self.layout, View())
            if view.damaged:
                raise RegistryError(f"event {view.damaged[0]} is damaged", "put it back from a backup, or move it away")
            write_snapshot(self.layout, view)

    # ------------------------------------------------------------ reading

    def resolve(self, reference: str, *, include_archived: bool = False) -> str:
        """Return the full id that ``reference`` means, see ``registry.resolve``; a path of a file in it works too."""
        return self._record(reference, include_archived=include_archived).id

    def get(self, reference: str, *, include_archived: bool = False) -> ModelMetadata:
        """Return the metadata of the model that ``reference`` means."""
        return self._metadata(self._record(reference, include_archived=include_archived))

    def list(
        self, model_type: str | None = None, *, include_archived: bool = False, until: int | None = None
    ) -> tuple[ModelRecord, ...]:
        """Lean records of all models, by type and ascending version; ``until`` see ``view``."""
        if model_type is not None:
            check_model_type(model_type)
        chosen = [
            record
            for record in self.view(until=until).records.values()
            if (model_type is None or record.type == model_type) and (include_archived or record.state == ACTIVE)
        ]
        return tuple(sorted(chosen, key=lambda record: (record.type, [int(n) for n in record.version.split(".")])))

    def find(
        self, model_type: str, predicate: Callable[[ModelMetadata], bool], *, include_archived: bool = False
    ) -> tuple[ModelMetadata, ...]:
        """Metadata of the models of a type that ``predicate`` accepts, newest version first."""
        records = reversed(self.list(model_type, include_archived=include_archived))
        return tuple(metadata for metadata in map(self._metadata, records) if predicate(metadata))

    def pin(self, reference: str, *, role: str) -> Parent:
        """Describe a model as a parent, with the digests that a child stores."""
        record = self._record(reference, include_archived=False)
        return Parent(
            role=role,
            id=record.id,
            version=record.version,
            metadata_sha256=record.metadata_sha256,
            weights_sha256=record.weights_sha256,
        )

    def load(self, reference: str, *, include_archived: bool = False) -> LoadedModel:
        """Load a model. Each file is read once, its digest compared, and those very bytes are loaded.

        Raises:
            RegistryError: the reference is unknown, a file is missing or altered (names it and both digests), or its
                signature is not what ``signing`` asks for.
            UnsafeFileError: a file holds more than data.
        """
        record = self._record(reference, include_archived=include_archived)
        if record.state == PURGED:
            raise RegistryError(f"{record.id} was purged: only its metadata is left", "train it again: see reproduce")
        metadata = self._metadata(record)
        folder = self.root / posixpath.dirname(record.file)
        signed_in = self.layout.locate(record.type, signature_file(record.version)).parent
        self.signing.verify(signed_in, metadata.version, record.metadata_sha256)
        names = file_names(metadata.model_id, metadata.version)
        with storage_errors(f"reading {record.id}"):
            content = {
                role: checked(*self.layout.read(record.type, name), metadata.files[name])
                for role, name in names.items()
            }
        config = safe_io.parse_json(content["config"], name=str(folder / names["config"]))
        check_config(config, name=str(folder / names["config"]))
        state = safe_io.load_tensors(content["model"], name=str(folder / names["model"]))
        if safe_io.weights_sha256(state) != metadata.weights_sha256:
            raise RegistryError(f"the weights of {record.id} are not those in its metadata", "restore it from a backup")
        preprocessor = safe_io.load_arrays(content["preprocessor"], name=str(folder / names["preprocessor"]))
        return LoadedModel(metadata=metadata, state=state, config=config, preprocessor_state=preprocessor)

    def lineage(self, reference: str) -> dict[str, tuple[LineageLink, ...]]:
        """What a model was built on (``up``) and what was built on it (``down``), nearest first, archived included."""
        start = self._record(reference, include_archived=True).id
        records = self.view().records
        links: dict[str, list[tuple[str, str, str]]] = {"up": [], "down": []}
        for record in records.values():
            if record.parents:
                for parent in self._metadata(record).parents:
                    links["up"].append((record.id, parent.id, parent.role))
                    links["down"].append((parent.id, record.id, parent.role))
        return {way: _walk(start, edges, down=way == "down") for way, edges in links.items()}

    def view(self, *, until: int | None = None) -> View:
        """All records, aliases and tombstones as they are now, or as they were after the event ``until``.

        RegistryError where there is no such event.
        """
        self.layout.check_format()
        with storage_errors(f"reading {self.root}"):
            if until is None:
                return read_view(self.layout)
            if until not in event_numbers(self.layout):
                raise RegistryError(f"there is no state change {until}", "trade-agent registry log shows them all")
            view = read_view(self.layout, View(), until=until)
            moment = read_event(self.layout, until)["created"]
            view.records = {key: record for key, record in view.records.items() if record.created <= moment}
            return view

    def history(self, reference: str | None = None) -> tuple[dict[str, Any], ...]:
        """The state changes of a model, or all of them, each with its ``number``; those that had no effect included.

        One that cannot be read, and may concern any model, is in all of them, with the type "damaged".
        """
        wanted = None if reference is None else self._record(reference, include_archived=True).id
        events = []
        for number in event_numbers(self.layout):
            try:
                event = read_event(self.layout, number)
            except RegistryError:
                event = {"type": "damaged", "model_id": "", "created": ""}
            if wanted in (None, event["model_id"]) or event["type"] == "damaged":
                events.append({"number": number} | event)
        return tuple(events)

    # ------------------------------------------------------------ inside

    def _record(self, reference: str, *, include_archived: bool, selecting: str = ACTIVE) -> ModelRecord:
        with storage_errors(f"reading {self.root}"):
            seen = self._seen(reference)
        if seen is not None and (include_archived or seen.state == ACTIVE):
            return seen
        return references.resolve(
            self.view(), self._without_path(reference), include_archived=include_archived, selecting=selecting
        )

    def _seen(self, identifier: str) -> ModelRecord | None:
        """The record of an exact id that this process has seen, where no event came since: models never change."""
        known: View | None = self.layout.known
        if known is None or event_file(self.layout, known.last_event + 1).exists():
            return None
        if not holds_events(self.layout, known):
            return None
        return known.records.get(identifier)

    def _without_path(self, reference: str) -> str:
        """Turn the path of a model or metadata file into an id; only the spelling is used, no file is touched."""
        if "/" not in reference and not reference.endswith((".pth", ".json")):
            return reference
        for base in (Path.cwd(), self.root):
            path = Path(os.path.normpath(base / reference))
            if path.parent.parent not in (self.root, self.root / "archived"):
                continue
            if path.suffix == ".pth" and MODEL_ID.fullmatch(path.stem):
                return path.stem
            if METADATA_FILE.fullmatch(path.name):
                return f"{path.parent.name}_{path.stem.removeprefix('metadata_')}"
        raise RegistryError(f"{reference} is not a model file inside {self.root}", "give an id, or a .pth file in it")

    def _metadata(self, record: ModelRecord) -> ModelMetadata:
        with storage_errors(f"reading {record.id}"):
            metadata, data = read_metadata(self.layout, record.type, record.number)
        if safe_io.sha256_bytes(data) != record.metadata_sha256 or metadata is None:
            path = self.layout.locate(record.type, metadata_file(record.version))
            raise RegistryError(
                f"{path} was altered: sha256 {safe_io.sha256_bytes(data)}, recorded {record.metadata_sha256}",
                "restore it from a backup; trade-agent registry verify shows more",
            )
        checked: ModelMetadata = metadata
        return checked

    def _change(self, kind: str, model_id: str, **fields: Any) -> None:
        """Store a state change, unless one that is damaged has to be put back first."""
        lifecycle.changeable_view(self.layout)
        append_event(self.layout, kind, model_id, **fields)
        refresh(self.layout, at_once=True)

    def _lifecycle(
        self,
        action: str,
        step: Callable[..., Sequence[str]],
        wanted: Sequence[str],
        *,
        selecting: str = ACTIVE,
        **options: Any,
    ) -> tuple[str, ...]:
        """Resolve references, archived ones included, and take the step with all of them."""
        records = [self._record(each, include_archived=True, selecting=selecting) for each in wanted]
        identifiers = list(dict.fromkeys(record.id for record in records))
        with storage_errors(f"{action} {', '.join(identifiers)}"):
            return tuple(step(self.layout, identifiers, **options))

    def _size(self, record: ModelRecord) -> int:
        return sum(file.size for file in self._metadata(record).files.values())

    def _check_parent(self, parent: Parent) -> None:
        record = self._record(parent.id, include_archived=False)
        self._metadata(record)
        if (record.metadata_sha256, record.weights_sha256) != (parent.metadata_sha256, parent.weights_sha256):
            raise RegistryError(f"the parent {parent.id} is not what was pinned", "pin it again and train on it")


def checked(path: Path, data: bytes, expected: FileInfo) -> bytes:
    """Return the content of a file when its digest is the expected one, else raise RegistryError."""
    digest = safe_io.sha256_bytes(data)
    if digest != expected.sha256:
        found = f"sha256 {digest} ({len(data)} bytes), recorded {expected.sha256} ({expected.size} bytes)"
        raise RegistryError(f"{path} was altered: {found}", "restore it from a backup")
    return data


def _walk(start: str, edges: Sequence[tuple[str, str, str]], *, down: bool) -> tuple[LineageLink, ...]:
    found, frontier, seen, depth = [], {start}, {start}, 0
    while frontier:
        depth += 1
        step = sorted(edge for edge in edges if edge[0] in frontier)
        for source, target, role in step:
            child, parent = (target, source) if down else (source, target)
            found.append(LineageLink(child=child, parent=parent, role=role, depth=depth))
        frontier = {target for _, target, _ in step} - seen
        seen |= frontier
    return tuple(found)
