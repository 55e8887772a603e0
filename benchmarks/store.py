"""FASTA to store on one core, beside other ways to read the same file.

    python benchmarks/store.py [--fasta FILE] [--megabytes 100] [--rounds 7] [--out benchmarks/results/store.md]

Without ``--fasta`` the file is random: lengths like those of UniRef50 (log-normal, mean about 320), headers as UniRef90
writes them, lines of 60 residues. Every round runs each side once, one after the other; the figures are medians of
rounds. Time is processor time (user and system) of a process that is held on one core, so other work on the machine
does not count; megabytes are those of the uncompressed file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protloom.contracts import Record
from protloom.data.fasta import fasta_chunks
from protloom.data.store import build_store
from protloom.data.streams import ByteSource

GOALS = {"plain": 150, "gzip": 60}


def write_random(path: Path, megabytes: float) -> None:
    """Writes a FASTA file of about this size."""
    generator = np.random.default_rng(0)
    alphabet = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    header = b">UniRef90_A0A%07d hypothetical protein n=1 Tax=Escherichia coli TaxID=562 RepID=A0A%07d_ECOLX\n"
    with path.open("wb") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            length = int(np.clip(generator.lognormal(5.6, 0.6), 30, 3000))
            residues = alphabet[generator.integers(0, 20, length)].tobytes()
            file.write(header % (number, number))
            file.write(b"".join(residues[i : i + 60] + b"\n" for i in range(0, length, 60)))
            number += 1


def one_line_each(source: Path, path: Path) -> None:
    """Rewrites a FASTA file without line breaks in sequences and with short headers."""
    with path.open("wb") as file:
        for chunk in fasta_chunks(ByteSource(source)):
            bounds = chunk.offsets.tolist()
            for name, a, b in zip(chunk.ids, bounds, bounds[1:], strict=False):
                file.write(b">" + name + b"\n" + chunk.residues[a:b] + b"\n")


def needletail_records(path: Path) -> Iterator[Record]:
    """Single records from needletail."""
    import needletail

    for record in needletail.parse_fastx_file(str(path)):
        yield Record(record.id.split(None, 1)[0], record.seq.encode())


def biopython_records(path: Path) -> Iterator[Record]:
    """Single records from Biopython's fast parser."""
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for title, residues in SimpleFastaParser(file):
            yield Record(title.split(None, 1)[0], residues.encode())


def loop_records(path: Path) -> Iterator[Record]:
    """Single records from the line loop that one writes first."""
    name, parts = "", list[bytes]()
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            if line.startswith(b">"):
                if name:
                    yield Record(name, b"".join(parts))
                name, parts = line[1:].split(None, 1)[0].decode(), []
            else:
                parts.append(line.strip())
    yield Record(name, b"".join(parts))


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "needletail": needletail_records,
    "Biopython": biopython_records,
    "line loop": loop_records,
}


def sides(files: dict[str, Path], out: Path) -> dict[tuple[str, str, str], Callable[[], object]]:
    """Returns what is timed, by (what, reader, file)."""
    installed = {"needletail": "needletail", "Biopython": "Bio", "line loop": "gzip"}
    readers = {k: v for k, v in READERS.items() if importlib.util.find_spec(installed[k])}
    found: dict[tuple[str, str, str], Callable[[], object]] = {}
    for kind, path in files.items():
        found["store", "protloom", kind] = lambda path=path: build_store(path, out)
        for name, read in readers.items():
            found["store", name, kind] = lambda read=read, path=path: build_store(read(path), out)
        found["read", "SHA-256 alone", kind] = lambda path=path: hashlib.sha256(path.read_bytes()).digest()
        found["read", "protloom", kind] = lambda path=path: sum(len(c) for c in fasta_chunks(ByteSource(path)))
        for name, read in readers.items():
            found["read", name, kind] = lambda read=read, path=path: sum(1 for _ in read(path))
    return found


def rounds(files: dict[str, Path], count: int, out: Path) -> dict[tuple[str, str, str], list[float]]:
    """Interleaves all sides; returns megabytes a second of every round."""
    size = {kind: files["plain" if kind == "gzip" else kind].stat().st_size / 1e6 for kind in files}
    found: dict[tuple[str, str, str], list[float]] = {}
    for number in range(count + 1):
        for key, call in sides(files, out).items():
            begin = time.process_time()
            call()
            if number:  # the first round warms caches up
                found.setdefault(key, []).append(size[key[2]] / (time.process_time() - begin))
            shutil.rmtree(out, ignore_errors=True)
    return found


def report(found: dict[tuple[str, str, str], list[float]], corpus: str, cores: int) -> str:
    """Returns the results as Markdown."""
    kinds = list(dict.fromkeys(kind for _, _, kind in found))
    count = len(next(iter(found.values())))
    lines = [
        "# FASTA to store on one core",
        "",
        f"{corpus}; medians of {count} interleaved rounds, with quartiles. MB/s of uncompressed FASTA by processor "
        f"time, process held on {cores} core(s). {platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}. Made by `benchmarks/store.py`.",
        "",
        f"Goals: {GOALS['plain']} MB/s plain, {GOALS['gzip']} MB/s gzip.",
    ]
    for what, title in (("store", "read, clean, hash, shuffle, write"), ("read", "read only")):
        lines += ["", f"| {title} | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
        for reader in dict.fromkeys(reader for w, reader, _ in found if w == what):
            cells = []
            for kind in kinds:
                values = found[what, reader, kind]
                low, high = np.quantile(values, [0.25, 0.75])
                cells.append(f"{statistics.median(values):,.0f} ({low:,.0f}–{high:,.0f})")
            name = {"protloom": "**protloom**"}.get(
                reader, f"{reader}, record by record" if reader in READERS else reader
            )
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the comparison and writes its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, help="a plain FASTA file; default: random sequences")
    parser.add_argument("--megabytes", type=float, default=100, help="size of the random file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "store.md")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = arguments.fasta or folder / "plain.fasta"
        if not arguments.fasta:
            write_random(plain, arguments.megabytes)
        files = {"plain": plain, "one line each": folder / "lines.fasta", "gzip": folder / "plain.fasta.gz"}
        one_line_each(plain, files["one line each"])
        files["gzip"].write_bytes(gzip.compress(plain.read_bytes(), 6))
        megabytes = plain.stat().st_size / 1e6
        corpus = arguments.fasta.name if arguments.fasta else "random proteins with UniRef90 headers"
        text = report(rounds(files, arguments.rounds, folder / "store"), f"{corpus} ({megabytes:,.0f} MB)", cores)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
