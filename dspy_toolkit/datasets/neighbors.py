"""Which texts are near-duplicates: exactly those whose sets of character 5-grams have a Jaccard similarity ≥ threshold.

The search is exact, since a pair that is missed may stand on both sides of a split. It is a set-similarity join in three
sieves, none of which loses a near pair, n being the number of a text's 5-grams and t the threshold:

- prefixes (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007; Xiao et al., "Efficient
  similarity joins for near duplicate detection", WWW 2008): with the grams of every text sorted from rare to common, two
  texts with J ≥ t share one among the first n - ceil(2t/(1+t) n) + 1 of the one with fewer and n - ceil(t n) + 1 of the
  other;
- parities (Sandes, Teodoro and Melo, "Bitmap filter: Speeding up exact set similarity joins with bitwise operations",
  Information Systems 2020): each gram flips one bit of its text, so the bits in which two texts differ are at most as
  many as the grams that one of them lacks, which J ≥ t bounds by (1-t)/(1+t) of the grams of both;
- the grams themselves, counted.

The first two know grams by a hash. Two grams with one hash let more pairs pass, never fewer.

MinHash LSH was not taken: tuned for 0.8 with the usual 128 permutations, it misses several pairs in a hundred there.

Time grows with the characters, some six seconds of one core for 100,000 texts of 180, and with the pairs that pass the
first sieve: few, unless most texts are alike but for a tenth to a fifth, when they are all pairs. Memory grows with the
prefixes, a fifth of the grams at 0.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dspy_toolkit.datasets.grams import BLOCK_TEXTS, Grams, distinct_in, slices

COUNTERS = 22
"""Bits of the hash under which the occurrences of a gram are counted."""
TOKEN = 64 - (BLOCK_TEXTS - 1).bit_length()
"""Bits of a token, by which the grams of a text are sorted: first the count of its hash, then the hash."""
WORD = 64
MOST_WORDS = 64
WIDER = 8
"""Parities come in `MOST_WORDS` words at most, which nearly all pairs meet, and for those that pass in this many times more."""
HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Fibonacci hashing
PAIRS = 2**20
"""Candidate pairs at a time."""
COMPARED = 2**12
CHARACTERS = 2**21
"""Pairs whose grams are counted at a time, and characters of them."""
ROUNDING = 1e-9
"""A similarity that is below the threshold by floating-point error reaches it."""

Array = np.ndarray[Any, Any]


def comparable(values: Iterable[str]) -> str:
    """The text under which a row's inputs are compared: case and runs of white space do not count."""
    return "\x1f".join(" ".join(value.casefold().split()) for value in values)


class Neighbors:
    """An index of texts."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        """Args: texts: from `comparable`. threshold: Jaccard similarity, in (0, 1]."""
        self._threshold = threshold
        self._grams = Grams(texts)
        self._sizes = np.zeros(len(texts), dtype=np.int64)
        self._counts = np.zeros(2 ** min(int(self._grams.lengths.sum()).bit_length(), COUNTERS), dtype=np.int64)
        for block in self._grams.blocks():
            np.add.at(self._counts, self._counter(self._grams.all(block) * HASH), 1)
        # As many bits as grams: of fewer, half differ between any two texts, and no bound is that high.
        words = -(-int(np.quantile(self._grams.lengths, 0.9)) // WORD) if len(texts) else 1
        words = min(max(words, 2), MOST_WORDS)
        self._wide = np.zeros((words * WIDER, len(texts)), dtype=np.uint64)
        found = [(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, bool))]
        found += [self._prefixes(block) for block in self._grams.blocks()]
        self._narrow = np.bitwise_xor.reduce(self._wide.reshape(WIDER, words, len(texts)), axis=0)
        token, text, indexed = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(token, kind="stable")
        self._tokens, self._texts, self._indexed = token[order], text[order], indexed[order]

    def near(self, text: int) -> Array:
        """Ascending positions of the other texts that are near the one at position `text`."""
        tokens = np.unique(self._prefixes(np.array([text]))[0])
        starts = np.searchsorted(self._tokens, tokens)
        stops = np.searchsorted(self._tokens, tokens, side="right")
        others = np.unique(self._texts[_ranges(starts, stops)])
        others = others[others != text]
        texts = np.full(len(others), text)
        passed = self._may_be_near(texts, others)
        return others[passed][self._are_near(texts[passed], others[passed])]

    def joined(self, labels: Array, first_new: int) -> Array:
        """Join labels until any two near texts have one, of which one at least is new.

        Args:
            labels: a whole number of [0, number of texts) for each text; texts with one label are joined already, and not
                compared.
            first_new: texts before this position are old; two of them are never compared.

        Returns:
            The labels, numbered anew.
        """
        # Neighbours first: a large group is then one before its pairs, a square of its size, would be made.
        for pairs in (self._next_pairs, self._pairs):
            for one, other in pairs(labels, first_new):
                labels = self._join(labels, one, other)
        return labels

    def _join(self, labels: Array, one: Array, other: Array) -> Array:
        """Give the near ones among these pairs one label."""
        apart = labels[one] != labels[other]
        # Once each, however many tokens they have in common.
        pairs = np.minimum(one, other)[apart] * len(labels) + np.maximum(one, other)[apart]
        pairs.sort()  # numpy's `unique` hashes, which takes twenty times as long
        pairs = pairs[distinct_in(pairs)]
        pairs = pairs[self._may_be_near(*np.divmod(pairs, len(labels)))]
        for start in range(0, len(pairs), COMPARED):
            one, other = np.divmod(pairs[start : start + COMPARED], len(labels))
            apart = labels[one] != labels[other]
            one, other = one[apart], other[apart]
            near = self._are_near(one, other)
            labels = connected(labels, one[near], other[near])
        return labels

    def _next_pairs(self, labels: Array, first_new: int) -> Iterator[tuple[Array, Array]]:
        """Texts with a common token, each with the next one that has it."""
        same = np.flatnonzero(~distinct_in(self._tokens))
        for start in range(0, len(same), PAIRS):
            some = same[start : start + PAIRS]
            one, other = self._texts[some - 1].astype(np.int64), self._texts[some].astype(np.int64)
            new = np.maximum(one, other) >= first_new
            yield one[new], other[new]

    def _pairs(self, labels: Array, first_new: int) -> Iterator[tuple[Array, Array]]:
        """All pairs of texts that the first sieve lets pass: a common token, two labels, at least one new text.

        A run is the texts with one token, the old before the new ones, and among each those with one label together, in
        order of the size of their label's smallest text. A text then meets a part of its run from one place to another.
        """
        smallest = np.full(len(labels), np.iinfo(np.int64).max)
        np.minimum.at(smallest, labels, self._sizes)
        order = np.argsort(smallest, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        # A label whose smallest text is too large for a text has none that is near it.
        largest = (self._sizes + ROUNDING) / self._threshold + ROUNDING
        beyond = np.searchsorted(smallest[order], largest, side="right")

        run = np.cumsum(distinct_in(self._tokens)) - 1
        new = self._texts >= first_new
        kept = (np.bincount(run) > 1)[run]
        if first_new:
            kept &= (np.bincount(run, weights=new) > 0)[run]
        text = self._texts[kept].astype(np.int64)
        key = (run[kept] << 32) | (new[kept].astype(np.int64) << 31) | rank[labels[text]]
        order = np.argsort(key)
        key, text, indexed = key[order], text[order], self._indexed[kept][order]
        del run, new, kept, order  # each as long as all prefixes together

        new_part = (key >> 31 | 1) << 31
        stops = np.searchsorted(key, new_part | beyond[text])
        borders = np.append(np.flatnonzero(distinct_in(key)), len(key))
        starts = borders[np.searchsorted(borders, np.arange(len(key)), side="right")]
        new = text >= first_new
        # A text with a label of its own meets texts with as many grams or more, so it must be indexed.
        alone = (np.bincount(labels, minlength=len(labels)) == 1)[labels[text]]
        meets = np.flatnonzero(new & (indexed | ~alone))
        ranges = [(meets, starts[meets], stops[meets])]
        if first_new:  # old texts meet the new ones on both sides of their own label
            old = np.flatnonzero(~new)
            own = new_part[old] | (key[old] & (2**31 - 1))
            ranges.append((old, np.searchsorted(key, new_part[old]), np.searchsorted(key, own)))
            ranges.append((old, np.searchsorted(key, own, side="right"), stops[old]))
        for entries, begins, ends in ranges:
            many = np.maximum(ends - begins, 0)
            for part in slices(many, PAIRS, len(many)):
                met = _ranges(begins[part], begins[part] + many[part])
                yield np.repeat(text[entries[part]], many[part]), text[met]

    def _prefixes(self, block: Array) -> tuple[Array, Array, Array]:
        """Of the texts at these positions the tokens of their prefixes, rarest first; of whom each is; whether it is indexed.

        Sizes and parities of the texts are kept meanwhile.
        """
        grams, sizes = self._grams.distinct(block)
        hashed = grams * HASH
        owner = np.repeat(np.arange(len(block), dtype=np.uint64), sizes)
        self._sizes[block] = sizes

        bit = (hashed >> np.uint64(20)) % np.uint64(len(self._wide) * WORD)
        place = (bit // np.uint64(WORD)) * np.uint64(len(block)) + owner
        parities = np.zeros(len(self._wide) * len(block), dtype=np.uint64)
        np.bitwise_xor.at(parities, place.view(np.int64), np.uint64(1) << (bit % np.uint64(WORD)))
        self._wide[:, block] = parities.reshape(-1, len(block))

        common = np.minimum(self._counts[self._counter(hashed)], 2**COUNTERS - 1)
        rest = np.uint64(TOKEN - COUNTERS)
        token = (owner << np.uint64(TOKEN)) | (common.astype(np.uint64) << rest) | (hashed >> (np.uint64(64) - rest))
        token.sort()
        place = np.arange(len(token)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        t = self._threshold
        asking = sizes - np.ceil(t * sizes - ROUNDING).astype(np.int64) + 1
        indexed = sizes - np.ceil(2 * t / (1 + t) * sizes - ROUNDING).astype(np.int64) + 1
        kept = place < np.repeat(asking, sizes)
        text = block[(token[kept] >> np.uint64(TOKEN)).view(np.int64)].astype(np.int32)
        return token[kept] & np.uint64(2**TOKEN - 1), text, (place < np.repeat(indexed, sizes))[kept]

    def _counter(self, hashed: Array) -> Array:
        """Where the occurrences of grams with these hashes are counted."""
        return (hashed >> np.uint64(65 - len(self._counts).bit_length())).view(np.int64)

    def _may_be_near(self, one: Array, other: Array) -> Array:
        """Whether sizes and parities allow the pairs to be near, as a mask."""
        sizes, others = self._sizes[one], self._sizes[other]
        t = self._threshold
        most = (sizes + others) * ((1 - t) / (1 + t)) + 1e-6
        passed = np.flatnonzero(np.minimum(sizes, others) >= t * np.maximum(sizes, others) - ROUNDING)
        for parities in (self._narrow, self._wide):
            differ = np.zeros(len(passed), dtype=np.uint16)
            left, right = one[passed], other[passed]
            for word in parities:
                differ += np.bitwise_count(word[left] ^ word[right])
            passed = passed[differ <= most[passed]]
        mask = np.zeros(len(one), dtype=bool)
        mask[passed] = True
        return mask

    def _are_near(self, one: Array, other: Array) -> Array:
        """Whether the pairs are near, as a mask: their common grams are counted."""
        near = np.zeros(len(one), dtype=bool)
        most = min(COMPARED, 2 ** (63 - self._grams.bits))
        for part in slices(self._grams.lengths[one] + self._grams.lengths[other], CHARACTERS, most):
            near[part] = self._count_common(one[part], other[part])
        return near

    def _count_common(self, one: Array, other: Array) -> Array:
        texts, place = np.unique(np.concatenate([one, other]), return_inverse=True)
        grams, sizes = self._grams.distinct(texts)
        stops = np.cumsum(sizes)[place]
        sizes = sizes[place]
        pair = np.tile(np.arange(len(one), dtype=np.uint64), 2)
        both = np.repeat(pair << np.uint64(self._grams.bits), sizes) | grams[_ranges(stops - sizes, stops)]
        both.sort()
        common = both[~distinct_in(both)] >> np.uint64(self._grams.bits)
        shared = np.bincount(common.view(np.int64), minlength=len(one))
        total = sizes[: len(one)] + sizes[len(one) :]
        return shared >= self._threshold * (total - shared) - ROUNDING


def _ranges(starts: Array, stops: Array) -> Array:
    """start, …, stop - 1 of every range, one after another."""
    many = stops - starts
    return np.arange(many.sum()) + np.repeat(starts - np.cumsum(many) + many, many)


def connected(labels: Array, one: Array, other: Array) -> Array:
    """`labels`, numbered anew, such that the two texts of every pair have one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(one):
        return labels
    links = (np.ones(len(one), dtype=bool), (labels[one], labels[other]))
    return connected_components(coo_array(links, shape=(len(labels), len(labels))), directed=False)[1][labels].astype(
        np.int64
    )
