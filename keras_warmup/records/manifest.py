"""The manifest of a warmup file: what real data it holds, and which model it was made for.

`assets.extra/keras_warmup.json` lies beside the warmup file; a server ignores it. It holds no value
of a record. The schema is in docs/guides/privacy.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_warmup._version import __version__
from keras_warmup.errors import OptionsError
from keras_warmup.options import PRIVACY_MODES, PRIVACY_VARIABLE, REAL, Privacy, least_privacy
from keras_warmup.paths import explained, join, why_not_a_file
from keras_warmup.publishing.filesystem import exists, replace_file
from keras_warmup.publishing.workspace import Workspace
from keras_warmup.records.warmup_file import scan_records, warmup_path
from keras_warmup.report import RecordReport, count_real_rows
from keras_warmup.savedmodel.files import require_file

MANIFEST_PATH = "assets.extra/keras_warmup.json"
SCHEMA_VERSION = 1
# Files of the model, of which the manifest holds a hash, beside all assets. The index holds a
# checksum of each weight.
_MODEL_FILES = (
    "saved_model.pb",
    "saved_model.pbtxt",
    "fingerprint.pb",
    "variables/variables.index",
)
_DAMAGED = (
    f"The manifest {MANIFEST_PATH} is damaged, or of another version of keras_warmup: what real "
    "data the warmup file holds is not known. Run keras-warmup add or redact."
)
_BLOCK_BYTES = 2**20
_MAX_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        privacy: the mode, and the redacted features.
        not_found: names of features that were to be redacted, but that no row had.
        real_features: names of the features that hold real values.
        records: an entry for each record of the warmup file: `signature_key`, `kind`,
            `batch_size`, `output_filter`, `source`, `real_features`.
        problems: why it does not describe the warmup file and the model beside it, one sentence
            each; empty where it does.
    """

    privacy: Privacy
    real_features: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...] = ()
    not_found: frozenset[str] = frozenset()

    def vouches_for(self, feature: str) -> bool:
        """Returns whether no record holds a real value of a feature of this name."""
        is_named = feature in self.privacy.features | self.not_found
        return self.privacy.mode == "synthetic" or is_named


def write_manifest(
    export_dir: str,
    records: Sequence[RecordReport],
    privacy: Privacy,
    *,
    not_found: Iterable[str] = (),
    seed: int,
    flush: bool = True,
) -> None:
    """Writes the manifest of a warmup file, or removes an old one where there is no file.

    Args:
        export_dir: the SavedModel with its warmup file.
        records: the records of the file.
        privacy: what was replaced in them.
        not_found: features that were to be redacted, but that no row had. Defaults to none.
        seed: seed of the choice of rows.
        flush: write it to the disk before this returns. Defaults to `True`.

    Raises:
        PublishError: a file cannot be read or written.
    """
    entries = [
        {
            "signature_key": record.signature_key,
            "kind": record.kind,
            "batch_size": record.batch_size,
            "output_filter": list(record.output_filter),
            "source": record.source,
            "real_features": list(record.real_features),
        }
        for record in records
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "versions": {
            "keras_warmup": __version__,
            "tensorflow": tf.__version__,
            "keras": importlib.metadata.version("keras"),
        },
        "seed": seed,
        "privacy": {
            "mode": privacy.mode,
            "redacted": sorted(privacy.features),
            "not_found": sorted(not_found),
        },
        "real_rows": count_real_rows(records),
        "real_features": sorted({name for record in records for name in record.real_features}),
        "records": entries,
    }
    _write(export_dir, content, flush=flush)


def read_manifest(export_dir: str | os.PathLike[str]) -> Manifest | None:
    """Reads a manifest, and compares it with the warmup file and the model beside it.

    Args:
        export_dir: version directory of a SavedModel.

    Returns:
        The manifest; `None` if it does not exist. One that this version cannot read has problems,
        and nothing else.

    Raises:
        PublishError: the file system refuses to read a file.
    """
    directory = os.fspath(export_dir)
    with explained(directory, "read the manifest of"):
        content = _read(directory)
        if content is None:
            return None
        try:
            return Manifest(
                _privacy_of(content),
                tuple(content["real_features"]),
                tuple(content["records"]),
                tuple(_problems_of(directory, content)),
                frozenset(content["privacy"]["not_found"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            return Manifest(Privacy(), (), (), (_DAMAGED,))


def current_manifest(export_dir: str | os.PathLike[str]) -> Manifest | None:
    """Returns the manifest where it describes the warmup file and the model, else `None`."""
    found = read_manifest(export_dir)
    return None if found is None or found.problems else found


def _privacy_of(content: Mapping[str, Any]) -> Privacy:
    """Returns the mode of a manifest; raises a `ValueError` for another kind of file."""
    privacy = Privacy(content["privacy"]["mode"], frozenset(content["privacy"]["redacted"]))
    real = {name for record in content["records"] for name in record["real_features"]}
    named = {record["source"] for record in content["records"]}
    if privacy.mode not in PRIVACY_MODES or real != set(content["real_features"]):
        raise ValueError
    if not all(isinstance(name, str) for name in {*real, *named}):
        raise ValueError
    return privacy


def renew_manifest(
    export_dir: str, before: Manifest | None, *, kept: Sequence[int] | None = None
) -> None:
    """Adapts a manifest to a change of the model or of the warmup file that this package made.

    Args:
        export_dir: the changed SavedModel, with the manifest from before.
        before: what `read_manifest` returned before the change. Where that was `None`, or had
            problems, nothing is changed.
        kept: indices of the records that are left. Defaults to `None`: all.

    Raises:
        PublishError: a file cannot be read or written.
    """
    with explained(export_dir, "read the manifest of"):
        content = None if before is None or before.problems else _read(export_dir)
    if content is None:
        return
    if kept is not None:
        content["records"] = [content["records"][index] for index in kept]
        real = {name for entry in content["records"] for name in entry["real_features"]}
        content["real_features"] = sorted(real)
    _write(export_dir, content)


def require_allowed(export_dir: str) -> None:
    """Refuses a warmup file that may hold more real values than the environment allows.

    Args:
        export_dir: a SavedModel whose warmup file is going to be published again.

    Raises:
        OptionsError: the environment asks for a mode that the manifest does not confirm.
    """
    least = least_privacy()
    with explained(export_dir, "read the warmup file of"):
        if least == REAL or not exists(warmup_path(export_dir)):
            return
    found = current_manifest(export_dir)
    is_covered = found is not None and (
        found.privacy.mode == "synthetic"
        or (found.privacy.mode == least.mode and all(map(found.vouches_for, least.features)))
    )
    if not is_covered:
        raise OptionsError(
            f"The warmup file of {export_dir!r} may hold real values, which {PRIVACY_VARIABLE} in "
            f"the environment does not allow: run keras-warmup redact {export_dir} first."
        )


def _problems_of(directory: str, content: Mapping[str, Any]) -> list[str]:
    path = warmup_path(directory)
    if not exists(path):
        return [f"{MANIFEST_PATH} describes a warmup file that is gone. Add one again."]
    problems = []
    if content["warmup_file"]["sha256"] != _hash_of(path):
        problems.append(
            f"The warmup file is not the one that {MANIFEST_PATH} describes: something else wrote "
            "one of them. Run keras-warmup add or redact."
        )
    elif len(content["records"]) != sum(1 for _ in scan_records(path)):
        problems.append(
            f"{MANIFEST_PATH} does not list as many records as the warmup file holds: it was "
            "changed. Run keras-warmup add or redact."
        )
    then, now = content["model"], _hashes_of_model(directory)
    changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if changed:
        problems.append(
            f"The warmup file was made for another model: {', '.join(changed)} changed since. A "
            "save or export into a path that was used before leaves the old assets.extra there. "
            "Remove it, or run keras-warmup add."
        )
    return problems


def _hashes_of_model(directory: str) -> dict[str, str]:
    """Returns name -> SHA-256 of the files that make the model what it is."""
    names = list(_MODEL_FILES)
    assets = join(directory, "assets")
    for where, _, files in tf.io.gfile.walk(assets) if exists(assets) else ():
        names += [join(where, file).removeprefix(f"{directory}/") for file in files]
    hashes = {name: _hash_of(join(directory, name)) for name in names}
    return {name: digest for name, digest in hashes.items() if digest is not None}


def _hash_of(path: str) -> str | None:
    """Returns the SHA-256 of a file in hexadecimal; `None` if it does not exist."""
    if not exists(path):
        return None
    require_file(path)
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read(directory: str) -> dict[str, Any] | None:
    """Returns the content of a manifest, empty where it is damaged; `None` if it does not exist."""
    path = join(directory, MANIFEST_PATH)
    if not exists(path):
        return None
    if why_not_a_file(path) is not None or tf.io.gfile.stat(path).length > _MAX_BYTES:
        return {}
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    is_known = isinstance(content, dict) and content.get("schema_version") == SCHEMA_VERSION
    return content if is_known else {}


def _write(directory: str, content: dict[str, Any], *, flush: bool = True) -> None:
    path = join(directory, MANIFEST_PATH)
    with explained(path, "write"):
        hash_of_file = _hash_of(warmup_path(directory))
        if hash_of_file is None:
            if exists(path):
                tf.io.gfile.remove(path)
            return
        content = {
            **content,
            "model": _hashes_of_model(directory),
            "warmup_file": {"sha256": hash_of_file},
        }
        workspace = Workspace(path)
        try:
            with tf.io.gfile.GFile(workspace.build, "wb") as file:
                file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
            replace_file(workspace.build, path, flush=flush)
        finally:
            workspace.close()
