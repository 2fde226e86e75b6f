"""The tool `dictionary`: definitions and synonyms, read from the files of WordNet or from a glossary of one's own."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from firesteel.errors import MissingDependency, StoreError
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool

WORDNET_VARIABLE = "WNSEARCHDIR"
WORDNET_FOLDERS = ("/usr/share/wordnet", "/usr/local/share/wordnet", "/opt/homebrew/share/wordnet")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_PREFIXES = ("define ", "definition of ", "meaning of ", "synonyms of ", "what is ")


@dataclass(frozen=True, slots=True)
class Sense:
    """One meaning: the words that share it and its definition."""

    part_of_speech: str
    words: tuple[str, ...]
    definition: str


class WordNet:
    """The database files of WordNet (`index.noun`, `data.noun`, ...), read in place: nothing is loaded.

    The files are sorted; an index line is found by halving. Versions 3.0 and 3.1 have the same format (wndb(5WN)).
    """

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` where the folder does not hold the files."""
        missing = [f"{kind}.{part}" for part in PARTS_OF_SPEECH for kind in ("index", "data")
                   if not (folder / f"{kind}.{part}").is_file()]  # fmt: skip
        if missing:
            raise StoreError(f"'{folder}' is not a folder of WordNet's files: {', '.join(missing)} missing")
        self._maps: dict[str, mmap.mmap] = {}
        for part in PARTS_OF_SPEECH:
            for kind in ("index", "data"):
                with (folder / f"{kind}.{part}").open("rb") as file:
                    self._maps[f"{kind}.{part}"] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def senses(self, word: str) -> list[Sense]:
        """All meanings of a word or phrase, most frequent first within each part of speech."""
        lemma = word.lower().replace(" ", "_").encode()
        return [
            self._sense(part, offset) for part in PARTS_OF_SPEECH for offset in self._offsets(part, lemma)
        ]  # fmt: skip

    def close(self) -> None:
        """Unmaps the files."""
        for mapped in self._maps.values():
            mapped.close()

    def _offsets(self, part: str, lemma: bytes) -> list[int]:
        index = self._maps[f"index.{part}"]
        low, high = 0, len(index)
        while low < high:
            middle = (low + high) // 2
            start = index.rfind(b"\n", 0, middle) + 1
            end = index.find(b"\n", start)
            line = index[start : len(index) if end < 0 else end]
            key = line.split(b" ", 1)[0]
            if line.startswith(b"  ") or key < lemma:  # the licence at the top begins with two spaces
                low = start + len(line) + 1
            elif key > lemma:
                high = start
            else:
                fields = line.split()
                num_senses = int(fields[2])
                return [int(field) for field in fields[-num_senses:]]
        return []

    def _sense(self, part: str, offset: int) -> Sense:
        data = self._maps[f"data.{part}"]
        line = data[offset : data.find(b"\n", offset)].decode("utf-8", errors="replace")
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(fields[4 + 2 * number].replace("_", " ").partition("(")[0] for number in range(count))
        return Sense(part, words, gloss.strip())


def find_wordnet() -> Path | None:
    """The folder of WordNet's files: `WNSEARCHDIR`, or where systems install them; None if there is none."""
    folders = [os.environ.get(WORDNET_VARIABLE, ""), *WORDNET_FOLDERS]
    return next((Path(folder) for folder in folders if folder and (Path(folder) / "index.noun").is_file()), None)


class Dictionary(Tool):
    """Definitions and synonyms of a word.

    Args:
        wordnet: The folder of WordNet's files. None: `find_wordnet()`, or none at all where a glossary is given.
        glossary: Own entries, word to definition; they come first.
        num_senses: Meanings of one answer.
    """

    name: ClassVar[str] = "dictionary"
    description: ClassVar[str] = "Defines an English word or phrase and gives its synonyms"
    example: ClassVar[str] = "harbinger"
    example_output: ClassVar[str] = "harbinger (noun): ..."
    max_query_characters: ClassVar[int] = 80

    def __init__(
        self,
        wordnet: str | Path | None = None,
        *,
        glossary: Mapping[str, str] | None = None,
        num_senses: int = 3,
        max_output_characters: int = MAX_OUTPUT_CHARACTERS,
    ) -> None:
        """Raises `MissingDependency` where there are neither WordNet's files nor a glossary."""
        super().__init__(max_output_characters=max_output_characters)
        self.glossary = {word.lower(): definition for word, definition in (glossary or {}).items()}
        self.num_senses = num_senses
        folder = Path(wordnet) if wordnet is not None else find_wordnet() if not self.glossary else None
        if folder is None and not self.glossary:
            raise MissingDependency(
                "the tool 'dictionary' needs the files of WordNet: sudo apt-get install wordnet-base, or unpack them "
                f"anywhere and set {WORDNET_VARIABLE} to that folder"
            )
        self._wordnet = WordNet(folder) if folder is not None else None

    def answer(self, query: str) -> str:
        word = query.strip(" ?.\"'").lower()
        for prefix in _PREFIXES:
            word = word.removeprefix(prefix)
        word = word.strip(" \"'")
        lines = [f"{word}: {self.glossary[word]}"] if word in self.glossary else []
        if self._wordnet is not None:
            lines += [_line(word, sense) for sense in self._wordnet.senses(word)[: self.num_senses]]
        return "\n".join(lines) if lines else f"no entry for '{word}'"

    def close(self) -> None:
        """Keeps the files mapped: they are only read."""


def _line(word: str, sense: Sense) -> str:
    others: Sequence[str] = [other for other in sense.words if other.lower() != word]
    synonyms = f"; also: {', '.join(others)}" if others else ""
    return f"{word} ({sense.part_of_speech}): {sense.definition}{synonyms}"
