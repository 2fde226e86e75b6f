"""The shop's search engine: BM25 over products, with the settings of the original (Lucene's, k1 0.9, b 0.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from firesteel.environments.webshop.reward import INSTALL
from firesteel.errors import MissingDependency

NUM_CACHED = 10_000

_POSSESSIVE = re.compile(r"['\u2019]s\b")
_WORD = re.compile(r"\w+")


class SearchIndex:
    """Ranks texts by the words of a query. English stop words are dropped, all other words stemmed (Porter).

    Differs from the original: no Java and no Lucene. Words are cut by a regular expression, document lengths are
    exact (Lucene stores them in one byte), and ties go to the earlier text, so that ranks differ now and then.

    Raises:
        MissingDependency: bm25s or PyStemmer is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
            import Stemmer
            from bm25s.stopwords import STOPWORDS_EN
        except ImportError as error:
            raise MissingDependency(f"webshop searches by bm25s and PyStemmer ({error}); run {INSTALL}") from error
        self._stemmer: Any = Stemmer.Stemmer("porter")
        self._stop_words = frozenset(STOPWORDS_EN)
        self._index: Any = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        self._index.index([self.tokens(text) for text in texts], show_progress=False)
        self._found: dict[tuple[str, int], tuple[int, ...]] = {}

    def tokens(self, text: str) -> list[str]:
        """The stemmed words of a text; single letters stay as they are, since sizes are such."""
        found = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
        return [self._stem(word) for word in found if word not in self._stop_words]

    def _stem(self, word: str) -> str:
        stem: str = self._stemmer.stemWord(word)
        return stem or word

    def top(self, query: str, count: int) -> tuple[int, ...]:
        """The numbers of the `count` best texts that share a word with the query, best first."""
        key = (query, count)
        if key not in self._found:
            if len(self._found) >= NUM_CACHED:
                self._found.clear()
            self._found[key] = self._rank(query, count)
        return self._found[key]

    def scores(self, query: str) -> Any:
        """The score of every text, as an array: over the words of the query, the sum of

        ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length)),

        with N texts of which n have the word, f times in this one.
        """
        known = self._index.vocab_dict
        return self._index.get_scores_from_ids([known[token] for token in self.tokens(query) if token in known])

    def _rank(self, query: str, count: int) -> tuple[int, ...]:
        scores = self.scores(query)
        (hits,) = scores.nonzero()
        best = hits[(-scores[hits]).argsort(kind="stable")][:count]
        return tuple(best.tolist())
