"""The tables of fields in docs/volume.md, from the models of the files: ``python -m tools.volume``.

The meaning of a field is only in the ``Attributes`` of its model's docstring.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime

from ovia_backup_dagster.core.layout import DRILLS, OFFSITE, RESTORES, STATEMENTS
from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.offsite.remote_record import RemoteRecord
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.signing.statement import SignedStatement
from tools.pages import DOCS, cell, with_part

PAGE = DOCS / "volume.md"
#: Meanings of fields that are obvious in the code, so that no docstring has them; the page's readers have no code.
_OBVIOUS = {
    "DatabaseFacts": {
        "name": "the database.",
        "owner": "the role that owns it.",
        "encoding": "as in `pg_database`.",
        "collate": "as in `pg_database`.",
        "ctype": "as in `pg_database`.",
        "locale_provider": "as in `pg_database`.",
    },
    "Manifest": {"database": "the source, when the dump began."},
    "Verification": {"judgements": "all so far, newest last.", "witness": "the last good reading of the archive."},
    "Finding": {"check": "the check's name.", "text": "what was found, in words."},
    "Witness": {"large_objects": "how many, and their hash."},
    "Drills": {"drills": "all drills of this backup so far, newest last."},
    "Evidence": {"made_by": "name and version of this program."},
    "CheckResult": {"check": "the check's name.", "result": "what came of it.", "text": "what was found, in words."},
    "CopiedTable": {
        "name": "the table.",
        "rows": "how many the copy holds.",
        "size_bytes": "of the table in the copy.",
    },
    "Order": {"mode": "what kind of restore.", "made_by": "name and version of this program."},
}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", datetime: "time", Any: "any"}


def roots() -> dict[str, type[Sidecar]]:
    """Kind of file -> its model."""
    beside = {f"<file>{kind.suffix}": kind.model for kind in reversed(SIDECAR_KINDS) if kind.model is not None}
    folders: dict[str, type[Sidecar]] = {
        f"{DRILLS}/<drill>.json": Evidence,
        f"{RESTORES}/<restore>.json": Record,
        f"{STATEMENTS}/<database>/<number>.json": SignedStatement,
        f"{OFFSITE}/<database>/<remote>.json": RemoteRecord,
    }
    return {**beside, **folders}


def rendered(page: str) -> str:
    """The page for the present models."""
    told: set[type[Sidecar]] = set()
    parts = [part for file, model in roots().items() for part in _tables(model, told, file)]
    return with_part(page, "fields", "\n" + "\n".join(parts) + "\n")


def _tables(model: type[Sidecar], told: set[type[Sidecar]], file: str = "") -> Iterator[str]:
    if model in told:
        return
    told.add(model)
    meanings = _meanings(model)
    yield f"### `{file}`\n" if file else f"#### {model.__name__}\n"
    yield "| field | value | meaning |\n|---|---|---|"
    yield from (
        f"| `{name}` | {_kind(field.annotation)} | {cell(meanings.get(name, ''))} |"
        for name, field in model.model_fields.items()
    )
    yield ""
    for field in model.model_fields.values():
        for nested in _models(field.annotation):
            yield from _tables(nested, told)


def _meanings(model: type[Sidecar]) -> dict[str, str]:
    """Field -> its meaning in the docstring of the model, or of the class that declares the field."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        doc = inspect.cleandoc(owner.__dict__.get("__doc__") or "")
        attributes = doc.partition("Attributes:\n")[2]
        for names, text in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), text)
    found |= {name: text for name, text in _OBVIOUS.get(model.__name__, {}).items() if name not in found}
    if "version" in model.model_fields:
        found.setdefault("version", "of this file's format.")
    for name in model.model_fields:
        for text in list(found.values()):
            # "`tier` its folder", in the text of another field.
            if name not in found and (said := re.search(rf"``{name}`` ([^;.]+)", text)):
                found[name] = said[1]
    return found


def _markdown(text: str) -> str:
    """A docstring's text as a cell, with JSON's null for Python's None."""
    return cell(re.sub(r"``(.*?)``", r"`\1`", text.replace("``None``", "``null``")).replace("<", "&lt;"))


def _models(annotation: Any) -> Iterator[type[Sidecar]]:
    if inspect.isclass(annotation) and not get_args(annotation):
        if issubclass(annotation, Sidecar):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _models(part)


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _kind(part) for part in parts)
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"object of {_kind(parts[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation) if len(annotation) <= 6 else "text"
    if inspect.isclass(annotation) and issubclass(annotation, Sidecar):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if annotation is AwareDatetime:
        return "time"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")
