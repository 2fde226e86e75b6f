"""The tool `search`: ranked passages of a local corpus (bm25s)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from firesteel.errors import StoreError
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool

PASSAGE_CHARACTERS = 1200
TEXT_SUFFIXES = (".txt", ".md", ".rst")


class Search(Tool):
    """The passages of a corpus that fit a query best, most relevant first.

    Args:
        corpus: A folder (its `.txt`, `.md` and `.rst` files, and `.jsonl` files), a JSONL file whose objects have a
            "text" (and perhaps a "title"), or the texts themselves. Long texts are cut into passages.
        num_results: Passages of one answer.
    """

    name: ClassVar[str] = "search"
    description: ClassVar[str] = "Finds passages of a local collection of documents by their words"
    example: ClassVar[str] = "when was the harbour of Velmora founded"
    example_output: ClassVar[str] = "[1] ..."
    max_query_characters: ClassVar[int] = 400

    def __init__(
        self,
        corpus: str | Path | Sequence[str],
        *,
        num_results: int = 2,
        max_output_characters: int = MAX_OUTPUT_CHARACTERS,
    ) -> None:
        """Raises `StoreError` for a corpus that is missing, damaged or empty."""
        super().__init__(max_output_characters=max_output_characters)
        self.num_results = num_results
        where = "the given texts" if not isinstance(corpus, (str, Path)) else f"'{corpus}'"
        texts = read_corpus(Path(corpus)) if isinstance(corpus, (str, Path)) else corpus
        self.passages = [passage for text in texts for passage in passages(text)]
        if not self.passages:
            raise StoreError(f"the search corpus {where} has no text; give a folder or a JSONL file with texts")

    def answer(self, query: str) -> str:
        import bm25s

        tokens = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)
        known = [token for token in tokens[0] if token in self._index.vocab_dict]
        if not known:
            return "nothing found"
        count = min(self.num_results, len(self.passages))
        found, scores = self._index.retrieve([known], k=count, show_progress=False)
        texts = [self.passages[int(index)] for index, score in zip(found[0], scores[0], strict=True) if score > 0]
        share = self.max_output_characters // max(1, len(texts)) - 8
        return "\n".join(f"[{number}] {text[:share]}" for number, text in enumerate(texts, start=1)) or "nothing found"

    @cached_property
    def _index(self) -> Any:
        import bm25s

        tokens = bm25s.tokenize(self.passages, stopwords="en", show_progress=False)
        index = bm25s.BM25()
        index.index(tokens, show_progress=False)
        return index


def read_corpus(path: Path) -> Iterator[str]:
    """The texts of a folder or of a JSONL file, in the order of their names.

    Raises:
        StoreError: nothing is there, or a line is not an object with a "text".
    """
    if path.is_dir():
        for child in sorted(path.rglob("*")):
            if child.suffix in TEXT_SUFFIXES and child.is_file():
                yield child.read_text(encoding="utf-8", errors="replace")
            elif child.suffix == ".jsonl" and child.is_file():
                yield from _read_jsonl(child)
    elif path.is_file():
        yield from (
            _read_jsonl(path) if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8", errors="replace")]
        )
    else:
        raise StoreError(f"the search corpus '{path}' does not exist; give a folder or a JSONL file")


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise StoreError(f"'{path}', line {number}: wanted a JSON object, got {line[:40]!r}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise StoreError(f"'{path}', line {number}: wanted an object with a text under 'text'")
        yield f"{record['title']}: {record['text']}" if record.get("title") else record["text"]


def passages(text: str) -> Iterable[str]:
    """The paragraphs of a text, each in pieces of at most `PASSAGE_CHARACTERS`."""
    for paragraph in text.split("\n\n"):
        flat = " ".join(paragraph.split())
        for start in range(0, len(flat), PASSAGE_CHARACTERS):
            yield flat[start : start + PASSAGE_CHARACTERS]
