"""Flags that take a list: all words up to the next flag, as argparse's `nargs="*"` has it.

`--api-keys k1 k2 k3` and `--api-keys k1,k2,k3` are the same. Words for other things, MODEL
first, therefore stand before such a flag, or after `--`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import click


class ListOption(click.Option):
    """An option whose words are joined by commas, for a command of this module's class."""


class ListsCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lists = [param for param in self.params if isinstance(param, ListOption)]
        names = {spelling for param in lists for spelling in param.opts}
        return super().parse_args(ctx, list(fold_lists(args, names)))


def fold_lists(args: list[str], names: Collection[str]) -> Iterator[str]:
    """The words after each flag of these names made into one."""
    rest = iter(args)
    pending = next(rest, None)
    while pending is not None:
        yield pending
        if pending == "--":
            yield from rest
        if pending.replace("_", "-") not in names:
            pending = next(rest, None)
            continue
        words: list[str] = []
        flag, pending = pending, None
        for word in rest:
            if word.startswith("-"):
                pending = word
                break
            words.append(word)
        if not words:  # click would take the next flag for its value
            raise click.BadOptionUsage(flag, f"Option {flag!r} requires an argument.")
        yield ",".join(words)


def words(given: tuple[str, ...]) -> tuple[str, ...]:
    """Of all the times that such a flag was given."""
    return tuple(word for each in given for word in each.replace(",", " ").split())
