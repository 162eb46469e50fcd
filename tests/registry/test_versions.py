import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_agent.errors import RegistryError
from trade_agent.registry.versions import LEVELS, Version, differing_keys, next_version

versions = st.builds(Version, *[st.integers(0, 30)] * 3)


def following(line, contract, recipe, at_least=None):
    """``line``: [(version, contract, recipe)]."""
    known = {Version.parse(version): hashes for version, *hashes in line}
    return next_version(known, known.get, contract_hash=contract, recipe_hash=recipe, at_least=at_least)


@pytest.mark.parametrize(
    ("line", "contract", "recipe", "version", "level"),
    [
        ([], "c", "r", "1.0.0", "major"),
        ([("1.0.0", "c", "r")], "c", "r", "1.0.1", "patch"),
        ([("1.0.0", "c", "r")], "c", "other", "1.1.0", "minor"),
        ([("1.0.0", "c", "r")], "other", "r", "2.0.0", "major"),
        ([("1.0.9", "c", "r")], "c", "r", "1.0.10", "patch"),
        ([("1.2.3", "c", "r")], "c", "x", "1.3.0", "minor"),
        # Two contracts trained in turn each continue their own major.
        ([("1.0.0", "c", "r"), ("2.0.0", "d", "r")], "c", "r", "1.0.1", "patch"),
        ([("1.0.0", "c", "r"), ("2.0.0", "d", "r")], "c", "x", "1.1.0", "minor"),
        ([("1.0.0", "c", "r"), ("2.4.1", "d", "r")], "e", "r", "3.0.0", "major"),
        # A raised bump left one contract in two majors: the newer one goes on.
        ([("1.0.0", "c", "r"), ("2.0.0", "c", "r")], "c", "r", "2.0.1", "patch"),
        # The newest version of the contract counts, not an older one that had the same recipe.
        ([("1.0.0", "c", "r"), ("1.1.0", "c", "x")], "c", "r", "1.2.0", "minor"),
    ],
)
def test_bump_table(line, contract, recipe, version, level):
    result = following(line, contract, recipe)
    assert (str(result.version), result.level) == (version, level)


def test_more_may_be_asked_for_but_not_less():
    line = [("1.2.3", "c", "r")]
    assert str(following(line, "c", "r", "minor").version) == "1.3.0"
    assert str(following(line, "c", "r", "major").version) == "2.0.0"
    assert following(line, "c", "r", "major").reason == "asked for; computed was patch: same contract and recipe"
    for recipe, contract, asked in (("x", "c", "patch"), ("r", "d", "minor"), ("r", "d", "patch")):
        with pytest.raises(RegistryError, match=f"a {asked} bump was asked for"):
            following(line, contract, recipe, asked)
    with pytest.raises(RegistryError, match="not a version level"):
        following(line, "c", "r", "huge")


@given(
    st.lists(st.tuples(st.sampled_from("cde"), st.sampled_from("rst"), st.sampled_from([None, *LEVELS])), max_size=25)
)
def test_a_line_never_repeats_a_number_and_a_major_holds_one_contract(drafts):
    line = []
    for contract, recipe, asked in drafts:
        try:
            result = following(line, contract, recipe, asked)
        except RegistryError:
            continue
        line.append((str(result.version), contract, recipe))
    numbers = [Version.parse(version) for version, *_ in line]
    assert len(set(numbers)) == len(numbers)
    contracts = {}
    for number, (_, contract, _) in zip(numbers, line, strict=True):
        assert contracts.setdefault(number.major, contract) == contract


@given(st.sets(versions, max_size=20), st.sampled_from([None, *LEVELS]))
def test_a_used_number_is_never_given_again(taken, asked):
    result = next_version(taken, lambda _: ("c", "r"), contract_hash="c", recipe_hash="r", at_least=asked)
    assert result.version not in taken


@given(versions, versions)
def test_order_is_that_of_the_integers(a, b):
    left, right = ([getattr(v, part) for part in ("major", "minor", "patch")] for v in (a, b))
    assert (a < b, a == b) == (left < right, left == right)
    assert Version.parse(str(a)) == Version.parse(f"v{a}") == a


@pytest.mark.parametrize("text", ["1", "1.0", "1.0.0.0", "01.0.0", "1.0.-1", "1.0.0 ", "v", "", "1.0.x", "١.0.0"])
def test_other_texts_are_no_versions(text):
    with pytest.raises(RegistryError, match="not a version"):
        Version.parse(text)


def test_differing_keys_are_dotted_and_sorted():
    old = {"same": 1, "deep": {"a": 1, "b": [1]}, "gone": 0}
    new = {"same": 1, "deep": {"a": 2, "b": [1]}, "added": 0}
    assert differing_keys(old, new) == ["added", "deep.a", "gone"]


@given(st.lists(versions, min_size=1))
def test_sorting_is_total(several):
    assert functools.reduce(max, several) == sorted(several)[-1]
