"""Rows → groups → splits.

Rows are linked when their texts are near-duplicates or they share a key. Linked rows are never in two splits:

- linked new rows that touch no old row found a group, named after the row with the smallest hash; that name and the
  seed decide the split (`draw`);
- new rows that touch old rows of one split join it;
- where new rows would link old rows of two splits, each joins the split that it touches, and a row that touches both is
  set aside.

Old rows never move. Rows are processed in order of content hash, so the order of the file does not matter.
`cover_classes` then moves new groups, and only those, into splits that would lack a class.

Not covered: what the text and the keys of a row are.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dspy_toolkit.datasets.neighbors import Neighbors, connected
from dspy_toolkit.datasets.placements import Placement
from dspy_toolkit.datasets.spec import SPLITS, Fractions, SplitName
from dspy_toolkit.store import digest


class Row(NamedTuple):
    """A row to be placed."""

    row: str
    """Content hash."""
    text: str
    keys: tuple[str, ...]


class Placed(NamedTuple):
    """The outcome for the new rows."""

    placements: list[Placement]
    """In order of content hash."""
    founded: set[str]
    """New groups, which may still be moved as a whole."""
    aside: dict[str, tuple[str, ...]]
    """Row that is in no split → the groups, of several splits, to which it is linked."""


def draw(seed: int, group: str, fractions: Fractions) -> SplitName:
    """The split of a group: a number in [0, 1) from a hash of seed and name, against the fractions laid end to end."""
    number = int(digest(seed, group)[:13], 16) / 16**13  # 52 bits: exact in a float
    if number < fractions.train:
        return "train"
    return "val" if number < fractions.train + fractions.val else "sealed"


def place(
    rows: Sequence[Row], old: Sequence[Placement], *, seed: int, fractions: Fractions, threshold: float
) -> Placed:
    """Place the rows that `old` does not hold.

    Args:
        rows: distinct rows, in any order.
        old: rows that were placed before; they need not be among `rows`. One that is has the keys of both.
        threshold: Jaccard similarity of character 5-grams from which two texts are linked, in (0, 1].
    """
    known = {placement.row for placement in old}
    new = sorted(row for row in rows if row.row not in known)
    if not new:
        return Placed([], set(), {})
    # A row that was placed under one key may have come back under another.
    keys = {row.row: row.keys for row in rows}
    graph = _Graph(
        [Row(entry.row, entry.text, tuple({*entry.keys, *keys.get(entry.row, ())})) for entry in old],
        [entry.group for entry in old],
        new,
        threshold,
    )
    placed: dict[int, tuple[SplitName, str]] = {i: (entry.split, entry.group) for i, entry in enumerate(old)}
    founded: set[str] = set()
    aside: dict[str, tuple[str, ...]] = {}

    def found(members: list[int]) -> None:
        group = graph.name(min(members))
        founded.add(group)
        split = draw(seed, group, fractions)
        placed.update(dict.fromkeys(members, (split, group)))

    for component in graph.components():
        homes = {placed[node] for node in component if node in placed}
        fresh = [node for node in component if node not in placed]
        if not homes:
            found(fresh)
        elif len({split for split, _ in homes}) == 1:
            placed.update(dict.fromkeys(fresh, min(homes, key=lambda home: home[1])))
        else:
            left, torn = _take_sides(graph, fresh, placed)
            for members in graph.connected(left):
                found(members)
            for node in torn:
                # Asked again, with all rows placed: the answer must be the same when they are old rows.
                aside[graph.name(node)] = tuple(sorted({group for _, group in graph.homes(node, placed)}))

    placements = []
    for position, row in enumerate(new, start=len(old)):
        if position in placed:
            split, group = placed[position]
            placements.append(Placement(row=row.row, group=group, split=split, text=row.text, keys=row.keys))
    return Placed(placements, founded, aside)


def cover_classes(
    placements: Sequence[Placement], classes: Mapping[str, str], movable: set[str], seed: int
) -> dict[str, SplitName]:
    """Which groups must change their split so that every class is in every split, as far as possible.

    Args:
        placements: the rows that are in the data.
        classes: row → class.
        movable: groups that are not remembered yet.

    Returns:
        Group → its new split. A group moves only from where each of its classes has another group.
    """
    if len({(classes[placement.row], placement.split) for placement in placements}) == len(SPLITS) * len(
        {classes[placement.row] for placement in placements}
    ):
        return {}
    split_of: dict[str, SplitName] = {placement.group: placement.split for placement in placements}
    members: defaultdict[str, set[str]] = defaultdict(set)  # class → groups
    contents: defaultdict[str, set[str]] = defaultdict(set)  # group → classes
    sizes: defaultdict[str, int] = defaultdict(int)
    for placement in placements:
        members[classes[placement.row]].add(placement.group)
        contents[placement.group].add(classes[placement.row])
        sizes[placement.group] += 1

    def groups(name: str, split: str) -> int:
        return sum(split_of[group] == split for group in members[name])

    moves: dict[str, SplitName] = {}
    for name in sorted(members, key=lambda name: (len(members[name]), name)):  # the scarcest class chooses first
        for split in SPLITS:
            if groups(name, split):
                continue
            free = [
                group
                for group in members[name] & movable
                if all(groups(other, split_of[group]) > 1 for other in contents[group])
            ]
            if free:
                chosen = min(free, key=lambda g: (-groups(name, split_of[g]), sizes[g], digest(seed, g)))
                moves[chosen] = split_of[chosen] = split
    return moves


def _take_sides(
    graph: _Graph, fresh: list[int], placed: dict[int, tuple[SplitName, str]]
) -> tuple[list[int], list[int]]:
    """Let new rows join, ring by ring, the split that they touch: (rows that touch none, rows that touch several)."""
    waiting, torn = sorted(fresh), []
    while ring := [node for node in waiting if graph.homes(node, placed)]:
        for node in ring:
            homes = graph.homes(node, placed)
            if len({split for split, _ in homes}) == 1:
                placed[node] = min(homes, key=lambda home: home[1])
            else:
                torn.append(node)
        waiting = [node for node in waiting if node not in set(ring)]
    return waiting, torn


class _Graph:
    """Old rows, then new rows in order of hash, and the links of the new ones."""

    def __init__(self, old: Sequence[Row], groups: Sequence[str], new: Sequence[Row], threshold: float) -> None:
        """Args: groups: the group of each old row."""
        self._rows = [*old, *new]
        self._first_new = len(old)
        self._near: dict[int, list[int]] = {}
        self._of_key: defaultdict[str, list[int]] = defaultdict(list)
        for node, row in enumerate(self._rows):
            for key in row.keys:
                self._of_key[key].append(node)
        self._index = Neighbors([row.text for row in self._rows], threshold)
        self._labels = self._index.joined(self._joined_by_name(groups), self._first_new)

    def _joined_by_name(self, groups: Sequence[str]) -> np.ndarray[Any, Any]:
        """A label for each row: old rows of one group share it, and so do rows with one key if one of them is new."""
        first: dict[str, int] = {}
        links = [(node, first.setdefault(group, node)) for node, group in enumerate(groups)]
        for nodes in self._of_key.values():
            if nodes[-1] >= self._first_new:
                links += [(node, nodes[0]) for node in nodes[1:]]
        ends = np.array(links, dtype=np.int64).reshape(-1, 2)
        return connected(np.arange(len(self._rows)), ends[:, 0], ends[:, 1])

    def name(self, node: int) -> str:
        """The row's content hash; the smallest node of new rows is the smallest hash."""
        return self._rows[node].row

    def components(self) -> list[list[int]]:
        """Linked rows, for the components that hold a new row."""
        order = np.argsort(self._labels, kind="stable")
        borders = np.flatnonzero(np.diff(self._labels[order])) + 1
        nodes, starts = order.tolist(), [0, *borders.tolist(), len(order)]
        parts = (nodes[start:stop] for start, stop in itertools.pairwise(starts))
        return [part for part in parts if part[-1] >= self._first_new]

    def homes(self, node: int, placed: Mapping[int, tuple[SplitName, str]]) -> set[tuple[SplitName, str]]:
        """Splits and groups of the placed rows to which a new row is linked."""
        return {placed[other] for other in self._links(node) if other in placed}

    def connected(self, nodes: list[int]) -> list[list[int]]:
        """Components of the new rows `nodes`, with links among them only."""
        left, parts = set(nodes), []
        while left:
            part, border = [], [min(left)]
            left.discard(border[0])
            while border:
                node = border.pop()
                part.append(node)
                reached = left.intersection(self._links(node))
                left -= reached
                border.extend(reached)
            parts.append(sorted(part))
        return parts

    def _links(self, node: int) -> list[int]:
        """All rows to which a new row is linked. Only asked for where sides are taken: cliques are large."""
        if node not in self._near:
            near: list[int] = self._index.near(node).tolist()
            keys = [other for key in self._rows[node].keys for other in self._of_key[key] if other != node]
            self._near[node] = list(dict.fromkeys(near + keys))
        return self._near[node]
