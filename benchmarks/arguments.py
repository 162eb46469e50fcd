"""Arguments that several programs of this folder take."""

import argparse
from collections.abc import Sequence
from typing import Any


class Names(argparse.Action):
    """Some of the ``known`` names, with spaces or commas between them.

    ``default``: those where the option is left out, all of them unless it is given.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        *,
        known: Sequence[str],
        default: Sequence[str] | None = None,
        **fields: Any,
    ) -> None:
        default = list(known if default is None else default)
        super().__init__(option_strings, nargs="+", default=default, metavar="NAME", **fields)
        self.known = known

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        names = [name for value in values for name in value.split(",") if name]
        for name in names:
            if name not in self.known:
                parser.error(f"argument {option}: there is no {name!r}, choose from {', '.join(self.known)}")
        setattr(namespace, self.dest, names)
