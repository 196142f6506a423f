"""Text of a domain, read from an installed or unpacked Debian package and split by content hash."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

from mergekit_lite.errors import SourceError
from mergekit_lite.zoo.catalog import Expert, held_out_text

SPLITS = ("test", "validation", "train", "train", "train", "train", "train", "train")
"""One of these eight per document, chosen by the hash of its key."""


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def split_of(key: str) -> str:
    """Return the split of a document: `test` (1 in 8), `validation` (1 in 8) or `train`.

    The key of a translated message is its English original, so that no message is trained on in
    one language and scored in another.
    """
    return SPLITS[digest(key)[0] % len(SPLITS)]


def catalogue_entries(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (original, translation) of a compiled gettext catalogue, the singular of plurals.

    Args:
        data: bytes of a `.mo` file.
    """
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)
    for index in range(count):
        pair = []
        for table in (originals, translations):
            length, start = struct.unpack_from(f"{order}2I", data, table + 8 * index)
            pair.append(data[start : start + length].split(b"\0")[0].decode())
        if pair[0]:
            yield pair[0], pair[1]


def messages(root: Path, language: str) -> dict[str, str]:
    """Read the translated messages of the PostgreSQL server: English original -> translation."""
    folder = root / "usr/share/locale" / language / "LC_MESSAGES"
    found: dict[str, str] = {}
    for file in sorted(folder.glob("postgres-*.mo")):
        for original, translation in catalogue_entries(file.read_bytes()):
            if len(translation.split()) >= 4 and "\n" not in translation.strip():
                found.setdefault(original, translation.strip())
    return found


def glosses(root: Path, language: str) -> dict[str, str]:
    """Read WordNet: word and part of speech -> the lines of its entries, `word (pos): gloss`."""
    found: dict[str, str] = {}
    for part in ("noun", "verb", "adj", "adv"):
        file = root / "usr/share/wordnet" / f"data.{part}"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        for line in lines:
            if line.startswith("  "):
                continue
            fields, _, gloss = line.partition(" | ")
            word = fields.split()[4].split("(")[0].replace("_", " ")
            entry = f"{word} ({part}): {gloss.strip()}"
            found[word] = f"{found[word]}\n{entry}" if word in found else entry
    return found


def documents(expert: Expert, root: Path, split: str) -> list[str]:
    """Return the documents of one split of an expert's domain, in an order fixed by their hashes.

    Args:
        root: where the Debian package is installed (`/`) or was unpacked.
        split: `train`, `validation` or `test`.

    Raises:
        SourceError: the package is not there.
    """
    found = {"messages": messages, "glosses": glosses}[expert.reader](root, expert.language)
    if not found:
        raise SourceError(
            f"no text of the Debian package {expert.package} under {root}",
            expert.reference,
            f"install it (`apt-get install {expert.package}`), or unpack it with `apt-get download "
            f"{expert.package} && dpkg -x {expert.package}_*.deb FOLDER` and give `--data FOLDER`",
        )
    keys = sorted((key for key in found if split_of(key) == split), key=digest)
    return [found[key] for key in keys]


def write_held_out(expert: Expert, root: Path, split: str, size: int) -> Path:
    """Write the first documents of a held-out split, `size` bytes or a little more, as shipped.

    The files in `text/` came from 30,000 bytes of `test` and 15,000 of `validation`.
    """
    chosen: list[str] = []
    for document in documents(expert, root, split):
        chosen.append(document)
        if sum(len(text.encode()) + 1 for text in chosen) >= size:
            break
    file = held_out_text(expert.name, split)
    file.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return file
