"""`trade-agent registry ...` and `list`: what they print, what they refuse, their exit codes."""

import json

import pytest
from typer.testing import CliRunner

from trade_agent import safe_io
from trade_agent.cli import app
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import RegistryError
from trade_agent.registry import probe

pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture
def models(registry, make_draft):
    return [registry.register(**make_draft(seed=seed)).model_id for seed in range(5)]


@pytest.fixture
def run(registry):
    def call(*arguments, code=0):
        done = CliRunner().invoke(app, [*arguments, "--models-dir", str(registry.root)])
        if isinstance(done.exception, RegistryError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return call


def test_a_model_goes_into_the_archive_and_back(run, registry, models):
    assert run("registry", "archive", "sac@1.0.1") == f"archived {models[1]}\n"
    assert models[1] not in run("list")
    assert json.loads(run("registry", "restore", models[1], "--json")) == [models[1]]
    assert models[1] in run("list")
    with pytest.raises(RegistryError, match="there is no model 'sac@7'"):
        run("registry", "archive", "sac@7")


def test_archived_models_and_past_states_are_shown_on_request(run, models):
    run("registry", "alias", "sac@champion", "sac@1.0.3")
    run("registry", "archive", "sac@1.0.1")
    shown = run("list", "--archived").splitlines()
    assert [line.split()[0] for line in shown] == models
    assert shown[1].split()[-1] == "archived"
    assert [model["id"] for model in json.loads(run("list", "--event", "1", "--json"))] == models
    assert len(json.loads(run("list", "--event", "2", "--json"))) == 4
    with pytest.raises(RegistryError, match="there is no state change 7"):
        run("list", "--event", "7")
    with pytest.raises(RegistryError, match="is archived; add --archived"):
        run("info", "sac@1.0.1")
    assert json.loads(run("info", "sac@1.0.1", "--archived", "--json"))["state"] == "archived"
    known = json.loads(run("info", "sac@1.0.3", "--json"))
    assert (known["state"], known["aliases"], known["present_grade"]) == ("active", ["sac@champion"], "B")
    assert "sac@champion" in run("info", "sac@1.0.3")


def test_aliases_notes_and_their_log(run, models):
    run("registry", "alias", "sac@champion", "sac@1.0.3")
    run("registry", "note", "sac@champion", "checked by hand")
    run("registry", "alias", "sac@champion", "--remove")
    lines = run("registry", "log").splitlines()
    assert [line.split()[2] for line in lines] == ["alias", "note", "alias"]
    assert lines[1].endswith(f"{models[3]} checked by hand")
    assert [event["number"] for event in json.loads(run("registry", "log", models[3], "--json"))] == [1, 2]
    assert lines[0].endswith(f"{models[3]} sac@champion")
    assert lines[2].endswith("sac@champion taken away")
    for arguments, words in (
        (["champion", "sac@1.0.3"], "write TYPE@NAME MODEL"),
        (["sac@champion"], "write TYPE@NAME MODEL"),
        (["ppo@champion", "sac@1.0.3"], "is no ppo model; write sac@champion"),
    ):
        with pytest.raises(RegistryError, match=words):
            run("registry", "alias", *arguments)


def test_prune_shows_its_plan_and_does_it_when_told(run, models):
    options = ("registry", "prune", "--keep-best", "1", "--keep-last", "1", "--min-age-days", "0")
    plan = json.loads(run(*options, "--json"))
    assert [item["id"] for item in plan] == sorted(models[:4])
    lines = run(*options).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == sorted(models[:4])
    assert lines[-1].startswith("would archive (add --yes) 4 of 5 models")
    assert len(json.loads(run("list", "--json"))) == 5
    run(*options, "--yes")
    assert [model["id"] for model in json.loads(run("list", "--json"))] == [models[4]]


def test_purge_asks_for_a_yes_and_for_the_days(run, registry, models):
    run("registry", "archive", models[0])
    with pytest.raises(RegistryError, match="deletes the files of .* add --yes"):
        run("registry", "purge", models[0], "--after-days", "0")
    with pytest.raises(RegistryError, match="less than 30 days ago"):
        run("registry", "purge", models[0], "--yes")
    run("registry", "purge", models[0], "--after-days", "0", "--yes")
    assert registry.view().records[models[0]].state == "purged"


def test_regrade_keeps_the_file_and_changes_the_grade(run, registry, make_draft):
    grading = load_config(compose_config([])).grading
    names = {item["metric"] for kind in (grading.trading["criteria"], grading.trading["caps"]) for item in kind}
    decision = {"inputs": dict.fromkeys(names, 0.0), "policy_id": "older"}
    model = registry.register(**make_draft(seed=50, grade="A", grade_decision=decision)).model_id
    decided = json.loads(run("registry", "regrade", model, "--json"))[model]
    assert decided["policy_id"] == grading.id
    assert decided["grade"] in "CDF"
    record = registry.view().records[model]
    assert record.grade == decided["grade"]
    assert "_grade_A_" in record.id
    assert json.loads(run("registry", "regrade", model, "--json"))[model] == decided
    assert registry.get(model).grade == "A"  # at birth


def test_lineage_up_and_down(run, registry, make_draft, models):
    child = registry.register(
        **make_draft(seed=60, model_type="hybrid", parents=[registry.pin(models[0], role="agent")])
    ).model_id
    assert json.loads(run("registry", "lineage", child, "--up", "--json"))["up"][0]["parent"] == models[0]
    down = json.loads(run("registry", "lineage", models[0], "--down", "--json"))
    assert down == {"down": [{"child": child, "parent": models[0], "role": "agent", "depth": 1}]}
    assert run("registry", "lineage", child).splitlines() == [
        "built on",
        f"  {models[0]} (agent of {child})",
        "built on it",
    ]


def test_gc_repair_rebuild_and_doctor(run, registry, monkeypatch):
    assert run("registry", "gc") == "nothing removed\n"
    assert run("registry", "repair") == "nothing repaired\n"
    registry.layout.snapshot.unlink()
    assert run("registry", "rebuild").endswith("registry.json: 5 models\n")
    needed = {each["name"] for each in json.loads(run("registry", "doctor", "--json")) if each["needed"]}
    assert needed == {"folder sync", "rename"}  # of hard links, exclusive rename and creation one is enough

    def refuse(*paths):
        raise OSError("Invalid argument")

    monkeypatch.setattr(probe.os, "link", refuse)
    links = next(each for each in json.loads(run("registry", "doctor", "--json")) if each["name"] == "hard links")
    assert not links["there"]
    monkeypatch.setattr(probe.safe_io, "sync", refuse)
    run("registry", "doctor", code=1)
    registry.root.rename(registry.root.with_name("moved"))
    with pytest.raises(RegistryError, match="is not a folder"):
        run("registry", "doctor")


def test_verify_prints_a_whole_line_for_each_thing(run, registry, models):
    path = registry.root / f"sac/{models[0]}.pth"
    recorded = safe_io.sha256_file(path)
    path.unlink()
    path.write_bytes(b"x" * 1000)
    (registry.root / "stray.pth").touch()
    error, note, total = run("registry", "verify", code=1).splitlines()
    assert error.startswith(f"error  file         sac/{path.name}: {models[0]}: altered: sha256 ")
    assert recorded in error
    assert safe_io.sha256_file(path) in error
    assert note.split()[:3] == ["note", "unknown", "stray.pth:"]
    assert total == f"{registry.root}: 1 errors, 1 notes"


def test_a_named_folder_without_a_registry_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "holds no registry"), ("typo", "is not a folder")):
        done = CliRunner().invoke(app, ["list", "--models-dir", str(tmp_path / name)])
        assert isinstance(done.exception, RegistryError)
        assert words in done.exception.message
