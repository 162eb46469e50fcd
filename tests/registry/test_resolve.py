import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.errors import RegistryError
from trade_agent.evaluation.grading import PerformanceGrade
from trade_agent.registry.metadata import Objective
from trade_agent.registry.naming import MODEL_TYPES, model_id
from trade_agent.registry.resolve import resolve
from trade_agent.registry.snapshot import ModelRecord, View
from trade_agent.registry.versions import Version


def record(
    model_type,
    version,
    *,
    grade="A",
    token=("acc", 0.95),
    value=0.5,
    name="acc",
    direction="max",
    state="active",
    digest="0",
):
    identifier = model_id(model_type, Version.parse(version), PerformanceGrade(grade), token)
    return ModelRecord(
        id=identifier, type=model_type, version=version, grade=grade, state=state, created="", parents=[], file="",
        objective=Objective(name=name, value=value, direction=direction), study="", file_sha256="1" * 64,
        weights_sha256=digest.ljust(64, "0"), metadata_sha256="2" * 64,
    )  # fmt: skip


def view(*records, aliases=()):
    return View({each.id: each for each in records}, dict(aliases))


LINE = view(
    record("cnn_lstm", "1.0.1", digest="abcdef01"),
    record("cnn_lstm", "1.0.10", value=0.9, digest="abcdef02"),
    record("cnn_lstm", "1.2.0", value=0.9, grade="A+"),
    record("cnn_lstm", "2.0.0", value=0.7),
    record("sac", "1.0.0", name="sharpe", value=-1.0),
    aliases={"cnn_lstm@champion": "cnn_lstm_v1.0.10_grade_A_acc_0.95"},
)


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("cnn_lstm_v1.0.10_grade_A_acc_0.95", "1.0.10"),
        ("cnn_lstm_v1.0.1", "1.0.1"),
        ("cnn_lstm@1.0.1", "1.0.1"),
        ("cnn_lstm@v1.0.10", "1.0.10"),
        ("cnn_lstm@1", "1.2.0"),
        ("cnn_lstm@1.0", "1.0.10"),
        ("cnn_lstm@^1.0", "1.2.0"),
        ("cnn_lstm@^1.0.2", "1.2.0"),
        ("cnn_lstm@^2", "2.0.0"),
        ("cnn_lstm@latest", "2.0.0"),
        ("cnn_lstm@best", "1.2.0"),  # equal to 1.0.10, higher version
        ("cnn_lstm@champion", "1.0.10"),
        ("sha256:abcdef02", "1.0.10"),
        ("cnn_lstm_v1.0.1_grade", "1.0.1"),
        ("cnn_lstm_v2", "2.0.0"),
        ("sac", "1.0.0"),
    ],
)
def test_accepted_references(reference, version):
    assert resolve(LINE, reference).version == version


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("cnn_lstm", "means 4 models"),
        ("cnn_lstm_v1.0", "v1.0.1_"),
        ("sha256:abcdef0", "means 2 models"),
        ("cnn_lstm_v1.0.1_grade_A_acc_0.9", "cnn_lstm_v1.0.1_grade_A_acc_0.95"),
        ("cnn_lstm_v1.2.0_grade_A", "no model"),  # the grade is A+
        ("cnn_lstm_v3.0.0", "cnn_lstm_v2.0.0"),
        ("cnn_lstm@^3", "no model"),
        ("cnn_lstm@^2.1", "no model"),
        ("cnn_lstm@1.0.2", "no model"),
        ("cnn_lstm@chamion", "cnn_lstm@champion"),
        ("sac@champion", "no model"),
        ("cnn_lst", "cnn_lstm_v"),
        ("ppo", "known models"),
        ("ppo@latest", "known models"),
        ("sha256:abc", "not a model|no model"),
        ("../../etc/passwd", "not a model reference"),
        ("cnn_lstm*", "not a model reference"),
        ("", "not a model reference"),
        ("cnn_lstm\n", "not a model reference"),
    ],
)
def test_unknown_and_ambiguous_references_name_candidates(reference, said):
    with pytest.raises(RegistryError, match=said):
        resolve(LINE, reference)


def test_at_most_ten_candidates_are_named():
    line = view(*(record("sac", f"1.0.{n}") for n in range(30)))
    for reference in ("sac", "sac_v7.0.0"):
        with pytest.raises(RegistryError) as caught:
            resolve(line, reference)
        assert 1 <= str(caught.value).count("_grade_") <= 10


def test_best_follows_the_objectives_direction_and_skips_what_cannot_be_compared():
    line = view(
        record("sac", "1.0.0", value=0.1, name="loss", direction="min"),
        record("sac", "1.0.1", value=0.3, name="loss", direction="min"),
        record("sac", "1.0.2", value=None, name="loss", direction="min"),
        record("sac", "1.0.3", value=-9.0, name="loss", direction="min", state="archived"),
        record("sac", "0.9.0", value=0.01, name="sharpe"),
    )
    assert resolve(line, "sac@best").version == "1.0.0"
    assert resolve(line, "sac@best", include_archived=True).version == "1.0.0"
    assert resolve(line, "sac@best", include_archived=True, selecting="archived").version == "1.0.3"


def test_archived_models_only_on_request():
    line = view(record("sac", "1.0.0", state="archived"), aliases={"sac@champion": "sac_v1.0.0_grade_A_acc_0.95"})
    for reference in ("sac", "sac@1", "sac@latest", "sac_v1.0.0_grade_A_acc_0.95", "sac@champion", "sha256:0000000"):
        with pytest.raises(RegistryError):
            resolve(line, reference)
        assert resolve(line, reference, include_archived=True, selecting="archived").version == "1.0.0"
    for reference in ("sac@1.0.0", "sac_v1.0.0_grade_A_acc_0.95"):
        with pytest.raises(RegistryError, match="is archived"):
            resolve(line, reference)
        assert resolve(line, reference, include_archived=True).version == "1.0.0"


def test_what_selects_means_an_active_model_also_where_archived_ones_may_be_named():
    line = view(record("sac", "1.0.0"), record("sac", "1.1.0", value=0.9, state="archived"))
    for reference in ("sac@latest", "sac@best", "sac@1", "sac@^1.0"):
        assert resolve(line, reference, include_archived=True).version == "1.0.0"


@pytest.mark.parametrize("name", ["v1", "v2-old", "latest", "best"])
def test_an_alias_is_no_version_and_no_selector(registry, make_draft, name):
    registry.register(**make_draft())
    with pytest.raises(RegistryError, match="cannot be an alias"):
        registry.set_alias("sac@1.0.0", name)


registries = st.dictionaries(
    st.tuples(st.sampled_from(MODEL_TYPES[:3]), st.tuples(*[st.integers(0, 12)] * 3)),
    st.tuples(st.sampled_from([grade.value for grade in PerformanceGrade]), st.floats(-2, 2)),
    min_size=1,
    max_size=8,
)


def line_of(content):
    records = [
        record(model_type, ".".join(map(str, number)), grade=grade, token=("acc", value))
        for (model_type, number), (grade, value) in content.items()
    ]
    return view(*records)


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000)
@given(registries)
def test_the_id_of_every_model_means_that_model(content):
    line = line_of(content)
    for identifier in line.records:
        assert resolve(line, identifier).id == identifier


@settings(deadline=None, max_examples=30)
@given(registries)
def test_every_id_means_itself_and_a_prefix_means_one_model_or_lists_all(content):
    line = line_of(content)
    for identifier, each in line.records.items():
        assert resolve(line, identifier).id == identifier
        assert resolve(line, f"{each.type}_v{each.version}").id == identifier
    identifier = next(iter(line.records))
    for end in range(1, len(identifier)):
        reference = identifier[:end]
        # The rule in its own words: what follows the prefix starts a new word or number.
        fitting = {key for key in line.records if key[:end] == reference and key[end] in "_."}
        if len(fitting) == 1:
            assert {resolve(line, reference).id} == fitting
        else:
            with pytest.raises(RegistryError) as caught:
                resolve(line, reference)
            assert not fitting or str(caught.value).count("_grade_") == min(10, len(fitting))
