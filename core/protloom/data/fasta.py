"""Strict reading of FASTA: plain, gzip, Zstandard or standard input.

What is layout and what is content:

- A record is a line that begins with ``>`` and the lines up to the next one; its id is the header's first word.
- Line ends may be LF, CRLF or CR; blank lines, a byte-order mark at the start and the layout of sequence lines carry no
  meaning. Lines that begin with ``;`` are comments and are skipped.
- Everything else in a sequence line (lower case, spaces, ``*``, ``-``, digits) is content: the reader gives it as it
  stands and :mod:`protloom.data.policies` decides.

An empty file, text before the first ``>``, a truncated or damaged compressed file and binary data are errors.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from protloom.contracts import Record
from protloom.data.chunk import CHUNK_BYTES, Chunk, offsets_of
from protloom.data.streams import ByteSource, WriteError
from protloom.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMMENT = re.compile(rb"^;[^\n]*", re.MULTILINE)


def read_fasta(path: str | Path) -> Iterator[Record]:
    """Yields the records of a FASTA file one by one, before any policy; ``-`` is standard input.

    Raises:
        UserError: the file is missing, empty, truncated, damaged or not FASTA.
    """
    for chunk in fasta_chunks(ByteSource(path)):
        bounds = chunk.offsets.tolist()
        for name, start, end in zip(chunk.ids, bounds, bounds[1:], strict=False):
            yield Record(name.decode(), chunk.residues[start:end])


def fasta_chunks(source: ByteSource, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yields the records of a FASTA source in chunks of about ``size`` bytes."""
    blocks = _unix_lines(source.blocks())
    beginning, line = _first_header(blocks, source.name)
    record = 1
    for text in _whole_records(chain([beginning], blocks), size):
        chunk, lines = _parse(text, record, line)
        record += len(chunk)
        line += lines
        yield chunk


def _unix_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Turns CRLF and CR into LF."""
    held = b""
    for block in blocks:
        text = held + block if held else block
        # a CR at the very end may be half of a CRLF
        held = b"\r" if text.endswith(b"\r") else b""
        if held:
            text = text[:-1]
        yield text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
    if held:
        yield b"\n"


def _whole_records(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Joins blocks into texts of at least ``size`` bytes that end where a record ends, with a line end."""
    parts: list[bytes | memoryview] = []
    held, enough = 0, size
    for block in blocks:
        parts.append(block)
        held += len(block)
        if held < enough:
            continue
        cut = block.rfind(b"\n>") + 1
        if cut:
            parts[-1] = memoryview(block)[:cut]
            yield b"".join(parts)
            parts, held, enough = [block[cut:]], len(block) - cut, size
        else:
            # inside one long record, or the header's sign is in the next block: look again when there is more
            text = b"".join(parts)
            cut = text.rfind(b"\n>") + 1
            if cut:
                yield text[:cut]
            parts, held = [text[cut:]], len(text) - cut
            enough = max(size, 2 * held)
    text = b"".join(parts)
    yield text if text.endswith(b"\n") else text + b"\n"


def _first_header(blocks: Iterator[bytes], name: str) -> tuple[bytes, int]:
    """Reads up to the first header; returns the text from there on and the number of its line."""
    text = body = b""
    for block in blocks:
        text += block
        body = _COMMENT.sub(b"", text.removeprefix(_BYTE_ORDER_MARK))
        if len(text) > len(_BYTE_ORDER_MARK) and body.strip():
            break
    if b"\0" in text:
        raise UserError(f"{name} is a binary file, not FASTA: expected text with lines that begin with '>'")
    start = body.rfind(b"\n", 0, len(body) - len(body.lstrip())) + 1
    line = body.count(b"\n", 0, start) + 1
    body = body[start:]
    if not body.strip():
        raise UserError(f"{name} holds no sequence: it has only blank lines and comments")
    if not body.startswith(b">"):
        found = body.split(b"\n", 1)[0][:30].decode("utf-8", "backslashreplace")
        raise UserError(
            f"{name}, line {line}: expected a FASTA header that begins with '>', found {found!r}; "
            "put a line such as '>name' before each sequence (tables need the ending .csv, .tsv or .parquet)"
        )
    return body, line


def _parse(text: bytes, first: int, line: int) -> tuple[Chunk, int]:
    """Takes apart whole records and counts the lines: ``text`` begins with ``>`` and ends with a line end."""
    letters = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))  # [lines]
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    begins = letters[starts]  # [lines] first character of each
    if (begins == ord(";")).any():
        # the line end stays, so that line numbers do too
        return _parse(_COMMENT.sub(b"", text), first, line)
    header = np.flatnonzero(begins == ord(">"))  # [n] which lines are headers
    body_start = ends[header] + 1
    body_end = np.append(starts[header[1:]], len(text))
    body_lines = np.diff(header, append=len(ends)) - 1
    heads = zip((starts[header] + 1).tolist(), ends[header].tolist(), strict=True)
    ids = [(text[a:b].split(None, 1) or [b""])[0] for a, b in heads]
    if not text.isascii():
        ids = [name.decode("utf-8", "backslashreplace").encode() for name in ids]
    bodies = zip(body_start.tolist(), body_end.tolist(), strict=True)
    chunk = Chunk(
        ids,
        b"".join([text[a:b] for a, b in bodies]).replace(b"\n", b""),
        offsets_of(body_end - body_start - body_lines),
        numbers=np.arange(first, first + len(ids)),
        lines=header + line,
    )
    return chunk, len(ends)


def write_fasta(records: Iterable[Record], path: Path, *, width: int = 80) -> int:
    """Writes records as FASTA (compressed if the name ends in ``.gz``), beside and renamed; returns how many.

    Raises:
        UserError: the file exists already or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists: remove it first, or choose another name")
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a fixed time of change: equal records give equal bytes
        with part.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, 0) if path.suffix == ".gz" else raw as file:
            for record in records:
                lines = [record.residues[i : i + width] for i in range(0, len(record.residues), width)]
                file.write(b"\n".join([b">" + record.id.encode(), *lines, b""]))
                count += 1
        part.rename(path)
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return count
