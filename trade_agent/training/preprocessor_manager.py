"""The store of fitted preprocessing pipelines: ``models/preprocessors/``.

    preprocessor_v1.0.0.pkl    the pipeline's state, no objects; its appearance takes the number
    metadata_v1.0.0.json       its appearance is the commit: a version without it does not exist for readers
    cache/                     feature tables that can be computed again

Nothing is locked or overwritten: both files are linked into place under a name that must not exist yet, as models are
(see ``registry.layout``). Until then they lie in the registry's ``temp/``, which ``registry gc`` looks after.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.data.bars import Bars
from trade_agent.errors import PreprocessingError, RegistryError
from trade_agent.preprocessing.cache import FeatureCache, cache_key
from trade_agent.preprocessing.pipeline import FeatureTable, PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.templates import template_steps
from trade_agent.registry.layout import Layout, link_new, names, storage_errors
from trade_agent.registry.naming import METADATA_FILE, data_file_version, metadata_file
from trade_agent.registry.publish import is_tombstone
from trade_agent.registry.versions import Version

__all__ = ["PreprocessingPipeline", "PreprocessorManager", "PreprocessorMetadata"]

_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{7,64})")
_RESTORE = "restore the file from a backup, or fit and save the pipeline again"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessorMetadata:
    """What is known of a stored pipeline without loading it.

    ``rows`` are the bar indices [start, stop) it was fitted on, ``data_fingerprint`` names the bars they index,
    ``created`` is ISO 8601 in UTC, ``sha256`` is the digest of the file. ``content_hash`` identifies it whatever its
    version; pipelines of equal ``contract_hash`` are exchangeable in form.
    """

    version: str
    content_hash: str
    contract_hash: str
    feature_names: tuple[str, ...]
    warmup_bars: int
    rows: tuple[int, int]
    data_fingerprint: str
    created: str
    steps: tuple[dict[str, Any], ...]
    sha256: str


class PreprocessorManager:
    """Creates, stores, finds and caches preprocessing pipelines under ``root``, a registry's ``preprocessors`` folder.

    ``cache`` is the folder for computed tables, ``root/cache`` when None.
    """

    def __init__(self, root: Path, *, cache: Path | None = None) -> None:
        self.root = Path(root)
        self.layout = Layout(self.root.parent, durable=True)
        self.cache = FeatureCache(self.root / "cache" if cache is None else Path(cache))

    def create(
        self, *, template: str | None = None, steps: Sequence[StepSpec] | None = None, prices: str = "adjusted"
    ) -> PreprocessingPipeline:
        """An unfitted pipeline from the name of a template or from a list of steps; exactly one must be given."""
        if (template is None) == (steps is None):
            raise PreprocessingError("a pipeline is made from a template or from steps", "give exactly one of the two")
        chosen = template_steps(template) if template is not None else steps or ()
        return PreprocessingPipeline(chosen, prices=prices)

    def save(self, pipeline: PreprocessingPipeline, *, data_fingerprint: str, rows: range) -> PreprocessorMetadata:
        """Store a fitted pipeline and set its version; one whose content is stored already keeps that version.

        What is damaged in the store stands in nobody's way: its number stays taken, and ``registry verify`` names it.
        A contract that was not stored before raises the major number, another fit or fit data of a known contract the
        minor one. Raises PreprocessingError when ``rows`` are not the rows the pipeline was fitted on.
        """
        if rows != pipeline.fitted_rows:
            raise PreprocessingError(f"the pipeline was fitted on {pipeline.fitted_rows}, not on {rows}", "pass those")
        known = self._with_content(pipeline.content_hash)
        if known is None:
            self._publish(pipeline, data_fingerprint)
            # Two writers of equal content may both have published; the lowest number then counts.
            known = self._with_content(pipeline.content_hash)
        if known is None:
            raise RegistryError(f"the pipeline that was just written to {self.root} is gone", "do not edit the folder")
        pipeline.version = known.version
        return known

    def load(self, reference: str) -> PreprocessingPipeline:
        """The pipeline of a version (``v1.2.0``) or content hash (7 or more digits); its file is verified first.

        Raises RegistryError for an unknown or ambiguous reference and for a file that is missing or altered,
        UnsafeFileError for one that is not plain data, PreprocessingError for a state of another code version.
        """
        metadata = self.find(reference)
        path = self._file(metadata.version)
        data = safe_io.read_bytes(path, max_bytes=safe_io.MAX_ARRAY_BYTES)
        digest = safe_io.sha256_bytes(data)
        if digest != metadata.sha256:
            raise RegistryError(f"{path} is altered: sha256 is {digest}, expected {metadata.sha256}", _RESTORE)
        pipeline = PreprocessingPipeline.from_state(safe_io.load_arrays(data, name=str(path)))
        if pipeline.content_hash != metadata.content_hash:
            raise RegistryError(f"{path} does not have the content that its metadata states", _RESTORE)
        pipeline.version = metadata.version
        return pipeline

    def find(self, reference: str) -> PreprocessorMetadata:
        """Metadata of a version or content hash; RegistryError with the candidates where it is unknown or ambiguous.

        A version whose metadata is damaged is named; nothing is found by a hash that only damaged metadata has.
        """
        for version in _committed(self.root):
            if reference in (str(version), f"v{version}") and (metadata := self._read_metadata(version)):
                return metadata
        stored = self._readable()
        found = []
        if digits := _HASH.fullmatch(reference):
            found = [metadata for metadata in stored if metadata.content_hash.startswith(digits.group(1))]
        if found and len({metadata.content_hash for metadata in found}) == 1:
            return found[0]
        candidates = ", ".join(f"{m.version} ({m.content_hash[:12]})" for m in (found or stored)[-10:]) or "none stored"
        problem = "ambiguous" if found else "unknown"
        raise RegistryError(f"preprocessor '{reference}' is {problem} in {self.root}", f"candidates: {candidates}")

    def list(self) -> list[PreprocessorMetadata]:
        """All stored pipelines by ascending version; RegistryError names a metadata file that is damaged."""
        every = [self._read_metadata(version) for version in _committed(self.root)]
        return [metadata for metadata in every if metadata is not None]

    def transform(self, pipeline: PreprocessingPipeline, bars: Bars) -> FeatureTable:
        """``pipeline.transform(bars)``, from the cache where the same content has transformed the same bars."""
        key = cache_key(kind="transform", pipeline=pipeline.content_hash, data=bars.fingerprint)
        names = pipeline.feature_names
        values = self.cache.load_values(key, (bars.num_bars, bars.num_assets, len(names)))
        if values is not None:
            return FeatureTable(values, names, pipeline.warmup_bars)
        table = pipeline.transform(bars)
        self.cache.save_values(key, table.values)
        return table

    def fit_transform(
        self, pipeline: PreprocessingPipeline, bars: Bars, rows: range
    ) -> tuple[PreprocessingPipeline, FeatureTable]:
        """A copy of ``pipeline`` fitted on ``rows`` and its table of all bars, from the cache where nothing changed.

        The fit is found again by steps, rows and the bars up to their end: later bars may change.
        """
        key = cache_key(
            kind="fit",
            steps=[[step.name, dict(step.params)] for step in pipeline.steps],
            prices=pipeline.prices,
            data=bars.rows(0, min(rows.stop, bars.num_bars)).fingerprint,
            rows=[rows.start, rows.stop, rows.step],
        )
        state = self.cache.load_state(key)
        if state is not None:
            fitted = PreprocessingPipeline.from_state(state)
        else:
            fitted = PreprocessingPipeline(pipeline.steps, prices=pipeline.prices).fit(bars, rows)
            self.cache.save_state(key, fitted.to_state())
        return fitted, self.transform(fitted, bars)

    def _file(self, version: str) -> Path:
        return self.root / f"preprocessor_{version}.pkl"

    def _with_content(self, content_hash: str) -> PreprocessorMetadata | None:
        return next((metadata for metadata in self._readable() if metadata.content_hash == content_hash), None)

    def _readable(self) -> builtins.list[PreprocessorMetadata]:
        """``list`` without what is damaged."""
        found = []
        for version in _committed(self.root):
            with contextlib.suppress(RegistryError):
                found.append(self._read_metadata(version))
        return [metadata for metadata in found if metadata is not None]

    def _publish(self, pipeline: PreprocessingPipeline, data_fingerprint: str) -> None:
        data = safe_io.dump_arrays(pipeline.to_state())
        with storage_errors(f"storing a pipeline in {self.root}"), self.layout.scratch() as scratch:
            self.root.mkdir(exist_ok=True)
            self.layout.write_new(scratch / "pipeline", data)
            version = self._next_version(pipeline.contract_hash)
            while not link_new(scratch / "pipeline", self._file(f"v{version}")):
                version = self._next_version(pipeline.contract_hash)
            self.layout.sync(self.root)
            metadata = PreprocessorMetadata(
                version=f"v{version}",
                content_hash=pipeline.content_hash,
                contract_hash=pipeline.contract_hash,
                feature_names=pipeline.feature_names,
                warmup_bars=pipeline.warmup_bars,
                rows=(pipeline.fitted_rows.start, pipeline.fitted_rows.stop),
                data_fingerprint=data_fingerprint,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                steps=tuple({"name": step.name, "params": dict(step.params)} for step in pipeline.steps),
                sha256=safe_io.sha256_bytes(data),
            )
            self.layout.write_new(scratch / "metadata", safe_io.checked_json(asdict(metadata)))
            if not link_new(scratch / "metadata", self.root / metadata_file(version)):
                what = f"another process gave up storing v{version} in {self.root}, or left its metadata there"
                raise RegistryError(what, "run the same command again")
            self.layout.sync(self.root)

    def _next_version(self, contract_hash: str) -> Version:
        """First free number: a minor one above the newest of equal contract, else a new major one."""
        taken = {version for version in map(data_file_version, names(self.root)) if version}
        same = [version for version in taken if self._contract_hash(version) == contract_hash]
        if same:
            major = max(same).major
            return max(version for version in taken if version.major == major).bumped("minor")
        return max(taken, default=Version(0, 0, 0)).bumped("major")

    def _contract_hash(self, version: Version) -> str:
        """Contract hash of a version; "" for one that cannot be read."""
        with contextlib.suppress(RegistryError):
            if metadata := self._read_metadata(version):
                return metadata.contract_hash
        # Another writer is between its two links, or died there, or metadata is damaged: the state knows its contract.
        try:
            data = safe_io.read_bytes(self._file(f"v{version}"), max_bytes=safe_io.MAX_ARRAY_BYTES)
            return PreprocessingPipeline.from_state(safe_io.load_arrays(data, name=f"v{version}")).contract_hash
        except (RegistryError, PreprocessingError):
            return ""

    def _read_metadata(self, version: Version) -> PreprocessorMetadata | None:
        """None for a number that was given up (see ``registry.pipelines``)."""
        path = self.root / metadata_file(version)
        if is_tombstone(path):
            return None
        content = safe_io.read_checked_json(path)
        expected = [field.name for field in fields(PreprocessorMetadata)]
        if sorted(content) != sorted(expected) or content["version"] != f"v{version}":
            raise RegistryError(f"{path} is not the metadata of preprocessor v{version}", _RESTORE)
        texts = ("version", "content_hash", "contract_hash", "data_fingerprint", "created", "sha256")
        lists = ("feature_names", "rows", "steps")
        for name in expected:
            kind = str if name in texts else list if name in lists else int
            if type(content[name]) is not kind:
                raise RegistryError(f"field '{name}' of {path} is not {kind.__name__}", _RESTORE)
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        return PreprocessorMetadata(**plain)


def _committed(folder: Path) -> list[Version]:
    """Versions that have metadata, ascending."""
    matches = map(METADATA_FILE.fullmatch, names(folder))
    return sorted(Version.parse(match["version"]) for match in matches if match)
