"""Semantic versions, and the rule that computes the next one.

MAJOR: the contract differs, what a consumer must know to use the model. MINOR: same contract, other recipe. PATCH: same
contract and recipe (other seed, resumed, exported again). A caller may ask for more, never for less. A number is used
once.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from trade_agent.errors import RegistryError

LEVELS = ("patch", "minor", "major")


@dataclass(frozen=True, order=True, slots=True)
class Version:
    """Compared as a tuple of integers: 1.0.10 is after 1.0.9."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read ``1.0.0`` or ``v1.0.0``; RegistryError for anything else, also for leading zeros."""
        match = re.fullmatch(r"v?(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", text)
        if not match:
            raise RegistryError(f"{text!r} is not a version", "write it as 1.0.0")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    def bumped(self, level: str) -> "Version":
        """The first version after this one that differs from it at ``level``."""
        if level == "major":
            return Version(self.major + 1, 0, 0)
        if level == "minor":
            return Version(self.major, self.minor + 1, 0)
        return Version(self.major, self.minor, self.patch + 1)


@dataclass(frozen=True, slots=True)
class NextVersion:
    """The computed version, how far it is from ``compared_with`` (None for the first one), and why."""

    version: Version
    level: str
    reason: str
    compared_with: Version | None


def next_version(
    taken: Iterable[Version],
    hashes: Callable[[Version], tuple[str, str] | None],
    *,
    contract_hash: str,
    recipe_hash: str,
    at_least: str | None = None,
) -> NextVersion:
    """Compute the next version of a line.

    ``taken`` are all numbers ever used. ``hashes`` gives contract and recipe hash of one of them, None where unknown.
    The comparison is with the newest version of equal contract if there is one, so that two contracts that are trained
    in turn do not raise MAJOR each time, else with the highest version. One MAJOR holds one contract, so only the
    highest version of each MAJOR is asked.

    Raises:
        RegistryError: ``at_least`` is not a level, or lower than the computed one.
    """
    if at_least is not None and at_least not in LEVELS:
        raise RegistryError(f"{at_least!r} is not a version level", f"use one of {', '.join(LEVELS)}")
    highest: dict[int, Version] = {}
    for version in taken:
        highest[version.major] = max(version, highest.get(version.major, version))
    if not highest:
        return NextVersion(Version(1, 0, 0), "major", "the first version", None)
    tops = sorted(highest.values(), reverse=True)
    compared, level, reason = tops[0], "major", "no version has this contract"
    for top in tops:
        known = hashes(top)
        if known is not None and known[0] == contract_hash:
            same = known[1] == recipe_hash
            compared, level = top, "patch" if same else "minor"
            reason = "same contract and recipe" if same else "same contract, other recipe"
            break
    if at_least is not None and LEVELS.index(at_least) < LEVELS.index(level):
        raise RegistryError(
            f"a {at_least} bump was asked for, but {reason} makes it {level}", f"ask for {level} or leave it out"
        )
    if at_least is not None and at_least != level:
        level, reason = at_least, f"asked for; computed was {level}: {reason}"
    following = (tops[0] if level == "major" else compared).bumped(level)
    return NextVersion(following, level, reason, compared)


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys under which two plain values differ, sorted."""
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [prefix or "."]
    found = []
    for key in sorted(old.keys() | new.keys()):
        where = f"{prefix}.{key}" if prefix else str(key)
        if key not in old or key not in new:
            found.append(where)
        else:
            found += differing_keys(old[key], new[key], where)
    return found
