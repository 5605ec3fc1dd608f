"""Reads an archive's requirements for the target server: extensions, owners, files, superuser rights.

The rights that PostgreSQL's CREATE commands require are taken from their sources (``src/backend/commands``, PostgreSQL
16). ``server_offers`` queries a server's offers, and ``requirements`` compares. Nothing in the archive is executed:
statements are recognized by the form in which pg_dump writes them; a statement of an unknown form adds no requirement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.postgres import archive
from ovia_backup_dagster.postgres.data_stream import decode_text, statements
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.quoting import without_literals
from ovia_backup_dagster.restoration.requirements import Definition, Locale, Needs

#: Tables, which pg_dump locks, and sequences, which it reads: it holds a lock on each until its transaction ends.
_RELATION = re.compile(r"(?:TABLE (?!DATA |ATTACH )|SEQUENCE (?!SET |OWNED BY ))")
_PART = r'(?:"(?:[^"]|"")*"|[^\s".,;()\']+)'
_NAME = rf"(?:{_PART}\.)?{_PART}"
_LITERAL = r"E?'(?:[^']|'')*'"
_OPTION = re.compile(rf"\s*({_PART}) = ({_LITERAL}|{_NAME})\s*(?:,|\Z)")
_EXTENSION = re.compile(rf"CREATE EXTENSION IF NOT EXISTS ({_PART})")
_ROUTINE = re.compile(rf"CREATE (FUNCTION|PROCEDURE) ({_NAME})\(")
_LANGUAGE = re.compile(rf"^    LANGUAGE ({_PART})(.*)$", re.MULTILINE)
_SETS = re.compile(rf"^    SET ({_NAME}) TO ", re.MULTILINE)
_LIBRARY = re.compile(r"^    AS '((?:[^']|'')*)', '", re.MULTILINE)
#: Languages of PostgreSQL itself and its distribution; any other language comes with its extension.
_UNTRUSTED = frozenset({"c", "internal", "plperlu", "plpython2u", "plpython3u", "plpythonu", "pltclu"})
_OWNER = re.compile(
    rf"ALTER (?P<kind>[A-Z ]+?) (?P<name>{_NAME})(?: ?\(.*\)| USING \S+)? OWNER TO (?P<role>{_PART});", re.DOTALL
)
_OF_SCHEMA = re.compile(rf"ALTER SCHEMA ({_PART}) OWNER TO ({_PART});")
_DEFAULTS_OF = re.compile(rf"ALTER DEFAULT PRIVILEGES FOR ROLE ({_PART}) ")
_DICTIONARY = re.compile(rf"CREATE TEXT SEARCH DICTIONARY ({_NAME}) \((.*)\);\s*\Z", re.DOTALL)
_COLLATION = re.compile(rf"CREATE COLLATION ({_NAME}) \((.*)\);\s*\Z", re.DOTALL)
_USES_COLLATION = re.compile(r"CREATE (?:\w+ )*(?:TABLE|INDEX|VIEW|DOMAIN|TYPE) ")
_COLLATE = re.compile(rf" COLLATE pg_catalog\.({_PART})")
_CAST = re.compile(r"CREATE CAST \((.+) AS (.+)\) WITH(OUT)? ", re.DOTALL)
#: The beginning of a statement that only a superuser may run -> what it creates, and where its name is.
_SUPERUSER_ONLY = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in {
        "access method": rf"CREATE ACCESS METHOD ({_PART})",
        "aggregate with the internal type": rf"CREATE AGGREGATE ({_NAME})\(.*\n    M?STYPE = internal\b",
        "event trigger": rf"CREATE EVENT TRIGGER ({_PART})",
        "foreign data wrapper": rf"CREATE FOREIGN DATA WRAPPER ({_PART})",
        "language": rf"CREATE (?:TRUSTED )?PROCEDURAL LANGUAGE ({_PART}) HANDLER",
        "operator class": rf"CREATE OPERATOR CLASS ({_NAME})",
        "operator family": rf"CREATE OPERATOR FAMILY ({_NAME})",
        "publication FOR ALL TABLES": rf"CREATE PUBLICATION ({_PART}) FOR ALL TABLES",
        "publication of a schema": rf"ALTER PUBLICATION ({_PART}) ADD TABLES IN SCHEMA",
        "text search parser": rf"CREATE TEXT SEARCH PARSER ({_NAME})",
        "text search template": rf"CREATE TEXT SEARCH TEMPLATE ({_NAME})",
        "base type": rf"CREATE TYPE ({_NAME}) \(\s",
        "privileges granted by roles other than the owner, such as": (
            rf"SET SESSION AUTHORIZATION (?!DEFAULT)({_PART});"
        ),
    }.items()
)
#: A quick filter by how these statements begin: function bodies may be long.
_MAY_BE_SUPERUSERS = re.compile(r"CREATE (?!FUNCTION |TABLE |INDEX )|ALTER PUBLICATION |SET SESSION ")
_CREATE_DATABASE = re.compile(r"CREATE DATABASE ")
_LOCALE_OPTION = re.compile(rf" (LOCALE|LC_COLLATE|LC_CTYPE|LOCALE_PROVIDER|ICU_LOCALE) = ({_LITERAL}|\w+)")


def requirements_of(programs: Programs, backup: Backup) -> Needs:
    """Read a backup's needs from its contents list and its schema; no data is read.

    Raises:
        BackupError: the archive cannot be read.
    """
    listing = archive.contents_list(programs, backup.path)
    schema = archive.schema_text(programs, backup.path)
    facts = backup.manifest.database if backup.manifest else None
    read = _Reading()
    read.schema(schema)
    versions = facts.extensions if facts else {}
    return Needs(
        backup=str(backup),
        extensions={name: versions.get(name, "") for name in read.extensions},
        superuser_only={kind: tuple(names) for kind, names in sorted(read.superuser_only.items())},
        settings=read.settings,
        owners=frozenset(read.owners),
        placed=frozenset(read.placed()),
        libraries=frozenset(read.libraries),
        dictionaries=tuple(read.dictionaries),
        collations=tuple(read.collations),
        system_collations=frozenset(read.system_collations),
        locale=locale_of(archive.database_text(programs, backup.path)),
        relations=sum(1 for entry in archive.entries(listing) if _RELATION.match(entry)),
        versions=facts.collation_versions if facts else {},
    )


def locale_of(script: bytes) -> Locale | None:
    """The locale of an archive's database.

    Args:
        script: the SQL that creates the database, as ``archive.database_text`` prints it.
    """
    for statement in map(decode_text, statements(script)):
        if _CREATE_DATABASE.match(statement):
            found = {match[1]: unquoted(match[2]) for match in _LOCALE_OPTION.finditer(statement)}
            both = found.get("LOCALE", "C")
            return Locale(
                provider=found.get("LOCALE_PROVIDER", "libc"),
                collate=found.get("LC_COLLATE", both),
                ctype=found.get("LC_CTYPE", both),
                icu=found.get("ICU_LOCALE", ""),
            )
    return None


@dataclass
class _Reading:
    """Collects the requirements of a schema's statements, one after the other."""

    extensions: list[str] = field(default_factory=list)
    superuser_only: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)
    libraries: set[str] = field(default_factory=set)
    dictionaries: list[Definition] = field(default_factory=list)
    collations: list[Definition] = field(default_factory=list)
    system_collations: set[str] = field(default_factory=set)
    _in_schemas: set[tuple[str, str]] = field(default_factory=set)
    _schemas: dict[str, str] = field(default_factory=dict)

    def schema(self, script: bytes) -> None:
        for statement in map(decode_text, statements(script)):
            if statement.startswith("CREATE "):
                self._created(statement)
            elif statement.startswith("ALTER "):
                self._altered(statement)
            if _MAY_BE_SUPERUSERS.match(statement):
                self._by_superuser(statement)

    def placed(self) -> Iterator[tuple[str, str]]:
        """(role, owner of the schema). The owner of ``public`` is the owner of the database."""
        owners = {"public": "pg_database_owner", **self._schemas}
        for role, schema in self._in_schemas:
            owner = owners.get(schema, role)
            if owner != role:
                yield role, owner

    def _created(self, statement: str) -> None:
        if extension := _EXTENSION.match(statement):
            self.extensions.append(unquoted(extension[1]))
        elif routine := _ROUTINE.match(statement):
            self._routine(routine[2], statement)
        elif dictionary := _DICTIONARY.match(statement):
            self.dictionaries.append(_definition(dictionary))
        elif collation := _COLLATION.match(statement):
            self.collations.append(_definition(collation))
        elif cast := _CAST.match(statement):
            source, target, without = cast.groups()
            # A role that owns neither type must be a superuser. Built-in types have no schema in the text.
            if without or not ("." in source or "." in target):
                self._only("cast", f"{source} AS {target}")
        elif _USES_COLLATION.match(statement):
            self.system_collations |= {unquoted(match) for match in _COLLATE.findall(without_literals(statement))}

    def _routine(self, name: str, statement: str) -> None:
        head = without_literals(statement)
        language = _LANGUAGE.search(head)
        if language is None:
            return
        known, how = unquoted(language[1]), language[2]
        if known in _UNTRUSTED:
            self._only(f"function in the language {known}", name)
        elif " LEAKPROOF" in how:
            self._only("LEAKPROOF function", name)
        elif " SUPPORT " in how:
            self._only("function with a SUPPORT function", name)
        if known == "c" and (library := _LIBRARY.search(statement)):
            self.libraries.add(library[1].replace("''", "'"))
        for parameter in _SETS.findall(head):
            self.settings.setdefault(unquoted(parameter), name)

    def _altered(self, statement: str) -> None:
        if schema := _OF_SCHEMA.match(statement):
            self._schemas[unquoted(schema[1])] = unquoted(schema[2])
        if owned := _OWNER.match(statement):
            role = unquoted(owned["role"])
            self.owners.add(role)
            schema_name, dot, _ = _split(owned["name"])
            if dot and owned["kind"] not in ("SCHEMA", "EVENT TRIGGER", "LARGE OBJECT"):
                self._in_schemas.add((role, schema_name))
        elif defaults := _DEFAULTS_OF.match(statement):
            self.owners.add(unquoted(defaults[1]))

    def _by_superuser(self, statement: str) -> None:
        for kind, pattern in _SUPERUSER_ONLY:
            if found := pattern.match(statement):
                self._only(kind, found[1])

    def _only(self, kind: str, name: str) -> None:
        names = self.superuser_only.setdefault(kind, [])
        if name not in names:
            names.append(name)


def unquoted(text: str) -> str:
    """A name or a literal without its quotes."""
    if text.startswith('"'):
        return text[1:-1].replace('""', '"')
    if text.startswith("E'"):
        return text[2:-1].replace("''", "'").replace("\\\\", "\\")
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return text


def _split(name: str) -> tuple[str, str, str]:
    """``schema.name`` -> schema, the dot, name; without a schema, empty ones first."""
    found = re.fullmatch(rf"({_PART})\.({_PART})", name)
    return (unquoted(found[1]), ".", unquoted(found[2])) if found else ("", "", unquoted(name))


def _definition(found: re.Match[str]) -> Definition:
    return Definition(found[1], {unquoted(name): unquoted(value) for name, value in _OPTION.findall(found[2])})
