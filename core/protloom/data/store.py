"""Opening a corpus, whatever it is: a store folder, a file, or a URI that a plugin reads.

Files and URIs become stores once, in a cache folder; the name of a cached store is a hash of everything that its
content depends on, so equal input is never built twice and changed input is never mistaken for old.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from protloom import __version__
from protloom.caches import cache_folder
from protloom.contracts import Record
from protloom.data.build import build_joined, build_store
from protloom.data.inputs import Input
from protloom.data.layout import VERSION, Store, is_store
from protloom.data.policies import POLICY_VERSION
from protloom.data.publish import own_name, remove_leftovers
from protloom.data.streams import WriteError, file_sha256, open_binary
from protloom.errors import UserError, did_you_mean
from protloom.specs import CorpusSpec

if TYPE_CHECKING:
    from protloom.config import Chosen
    from protloom.plugins import Registry

__all__ = [
    "Store",
    "build_joined",
    "build_store",
    "find_corpus",
    "is_store",
    "open_corpus",
    "open_input",
    "refuse_missing",
    "store_records",
    "uri_records",
    "uri_scheme",
]

_SCHEME = re.compile(r"([A-Za-z0-9_.+-]{2,}(?:/[A-Za-z0-9_.+-]+)?):")  # two letters or more: C: is a drive

Progress = Callable[[int], None]


def open_corpus(
    spec: str,
    *,
    cache_dir: str | Path | None = None,
    strict: bool = False,
    column: str | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Store:
    """Opens a corpus as a store, building the store first where there is none yet.

    Args:
        spec: a store folder, a FASTA, CSV, TSV or Parquet file, ``-`` for FASTA on standard input, or a URI
            ``scheme:rest``. A file or folder of that very name wins over a scheme.
        cache_dir: where stores are built; default :func:`protloom.caches.cache_folder`.
        strict: refuse what the cleaning policies would change or drop.
        column: sequence column of a table.
        registry: finds the reader of a URI's scheme.
        progress: called with the number of records read so far while a store is built.

    Raises:
        UserError: no such corpus, bad input, or the cache cannot be written.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else cache_folder("stores")
    scheme = uri_scheme(spec, registry)
    if scheme is not None:
        if registry is None:
            raise UserError(f"{spec!r} is not a file, and no plugins are loaded that could read {scheme + ':'!r}")
        return _open_uri(spec, scheme, registry, cache, strict, progress)
    if spec == "-":
        key = _key(["standard input", secrets.token_hex(16)])
        return _built(cache, key, lambda out: build_store("-", out, strict=strict, progress=progress))
    path = Path(spec).expanduser()
    if path.is_dir():
        return Store.open(path)
    key = _file_key(path, cache, strict, column)
    return _built(cache, key, lambda out: build_store(path, out, strict=strict, column=column, progress=progress))


def find_corpus(
    spec: str,
    *,
    cache_dir: str | Path | None = None,
    strict: bool = False,
    column: str | None = None,
    registry: Registry,
) -> Store | None:
    """Opens a corpus whose store was built before; None where the corpus or its store is not there (any more).

    Args:
        spec: as of :func:`open_corpus`.
        cache_dir: where stores are built; default :func:`protloom.caches.cache_folder`.
        strict: as when it was built.
        column: as when it was built.
        registry: finds the reader of a URI's scheme.

    Raises:
        UserError: an unknown scheme, or a store that is damaged.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else cache_folder("stores")
    scheme = uri_scheme(spec, registry)
    path = Path(spec).expanduser()
    if scheme is None and path.is_dir():
        return Store.open(path)
    if scheme is not None:
        key = _uri_key(spec, registry, strict)
    elif path.is_file():
        key = _file_key(path, cache, strict, column)
    else:
        return None
    return Store.open(cache / key) if is_store(cache / key) else None


def open_input(spec: str, registry: Registry, column: str | None = None) -> Input:
    """Returns a corpus of any kind as one of the sources of a new store; files are read when the store is built.

    Args:
        spec: as of :func:`open_corpus`.
        registry: finds the reader of a URI's scheme.
        column: sequence column of a table.

    Raises:
        UserError: an unknown scheme, a damaged store, or a column asked of what is no table.
    """
    if uri_scheme(spec, registry) is None and (spec == "-" or not Path(spec).is_dir()):
        return Input(spec, column)
    if column is not None:
        raise UserError(f"{spec} has no columns: leave --column out")
    if uri_scheme(spec, registry) is not None:
        records, origin = uri_records(spec, registry)
        return Input(records, origin=origin)
    store = Store.open(spec)
    records, origin = store_records(store)
    return Input(records, None, origin, store.manifest["licence"], store.manifest["seed"])


def _file_key(path: Path, cache: Path, strict: bool, column: str | None) -> str:
    return _key(["file", _remembered_sha256(path, cache), path.suffixes, POLICY_VERSION, VERSION, strict, column])


# ------------------------------------------------------------------------------------------------------------- URIs


def uri_scheme(spec: str, registry: Registry | None = None) -> str | None:
    """Returns the scheme of a URI such as ``demo:?n=100``, or None where ``spec`` names a file or folder.

    Raises:
        UserError: the scheme is unknown.
    """
    found = _SCHEME.match(spec)
    if not found or Path(spec).exists():
        return None
    scheme = found[1]
    if registry is None:
        return scheme
    offered = {name for c in registry.components("corpus") for name in (c.name, c.full_name)}
    if scheme in offered:
        return scheme
    if "/" in scheme:
        return None  # the path of a missing file that has a colon in it
    raise UserError(f"no file {spec!r}, and no corpus reader {scheme + ':'!r}.{did_you_mean(scheme, offered)}")


def refuse_missing(spec: str, registry: Registry) -> None:
    """Raises what :func:`open_corpus` would for a file or a scheme that is not there, and reads nothing."""
    if uri_scheme(spec, registry) is None and spec != "-" and not Path(spec).expanduser().is_dir():
        open_binary(Path(spec).expanduser()).close()


def uri_records(uri: str, registry: Registry) -> tuple[Iterable[Record], dict[str, Any]]:
    """Starts to read a URI through the plugin that offers its scheme.

    Returns:
        The records, and what a manifest says about them: ``name``, ``component``, ``simulated``.

    Raises:
        UserError: unknown scheme, or the query does not fit the reader's options.
    """
    chosen = _reader(uri, registry)
    component = chosen.component
    records: Iterable[Record] = component.build(chosen.config, uri, of=Iterable)
    simulated = isinstance(component.spec, CorpusSpec) and component.spec.simulated
    origin = {"name": uri, "component": component.full_name, "version": component.version, "simulated": simulated}
    return records, origin


def _reader(uri: str, registry: Registry) -> Chosen:
    """Returns the reader of a URI, with the options that the URI states."""
    from protloom.config import choose

    query = dict(parse_qsl(uri.partition("?")[2], keep_blank_values=True))
    return choose("corpus", uri.partition(":")[0], query, registry, where=uri)


def store_records(store: Store) -> tuple[Iterable[Record], dict[str, Any]]:
    """Returns the sequences of a store as records, in its order and groups, and what a manifest says about them."""
    origin = {"name": store.name, "store": store.content_hash, "simulated": bool(store.manifest.get("simulated"))}
    return _stored(store), origin


def _stored(store: Store) -> Iterator[Record]:
    group, end = 0, 0
    for i in range(len(store)):
        if store.groups is not None and i == end:
            group += 1
            end = int(store.groups[group])
        label = None if store.groups is None else str(group)
        yield Record(store.id(i), store.sequence(i).tobytes(), label)


def _uri_key(uri: str, registry: Registry, strict: bool) -> str:
    chosen = _reader(uri, registry)
    component, spec = chosen.component, chosen.component.spec
    assert isinstance(spec, CorpusSpec)
    made_by = [component.full_name, component.version, spec.data_version]
    if spec.identity is not None:
        made_by.append(str(component.load(spec.identity)(chosen.config, uri)))
    return _key(["uri", uri, *made_by, __version__, POLICY_VERSION, VERSION, strict])


def _open_uri(uri: str, scheme: str, registry: Registry, cache: Path, strict: bool, progress: Progress | None) -> Store:
    key = _uri_key(uri, registry, strict)

    def build(out: Path) -> Store:
        records, origin = uri_records(uri, registry)
        simulated = origin["simulated"]
        return build_store(records, out, strict=strict, simulated=simulated, origin=origin, progress=progress)

    return _built(cache, key, build)


# ------------------------------------------------------------------------------------------------------------ the cache


def _key(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _built(cache: Path, key: str, build: Callable[[Path], Store]) -> Store:
    """Opens the cached store of this key, or builds it; of two processes that build it at once, the first one wins."""
    target = cache / key
    if is_store(target):
        try:
            return Store.open(target)
        except UserError:
            shutil.rmtree(target, ignore_errors=True)  # damaged: it is ours, and made again below
    remove_leftovers(cache, key)
    own = cache / own_name(key)  # two builders never share a folder
    try:
        build(own)
        try:
            own.rename(target)
        except OSError as error:
            if not is_store(target):
                raise WriteError(target, error) from error
        return Store.open(target)
    except WriteError as error:
        raise UserError(f"{WriteError(cache, error.error)}; data.cache_dir names the folder for stores") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _remembered_sha256(path: Path, cache: Path) -> str:
    """Returns the SHA-256 of a file; a file of the same place, size and time of change is not read again."""
    with open_binary(path) as file:
        stat = os.fstat(file.fileno())
    identity = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = cache / "hashes" / f"{_key(identity)}.json"
    try:
        remembered = json.loads(note.read_text(encoding="utf-8"))
        if remembered["file"] == identity:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = file_sha256(path)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}-{secrets.token_hex(3)}.tmp")
        part.write_text(json.dumps({"file": identity, "sha256": digest}), encoding="utf-8")
        part.replace(note)
    except OSError:
        pass  # only a shortcut: a cache that cannot be written is explained when the store is built
    return digest
