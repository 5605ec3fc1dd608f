"""Puts the source's settings in effect in a copy while it is filled.

Rows were written under those settings: a CHECK may read a date in the database's own time zone, a generated column may
write a float with so many digits, a materialized view may search in a language. ``postgres.session_settings`` lists
the settings that count; ``restoration.database_settings`` and ``target`` give the database its own settings in the end.

The settings are set for the role that restores, in the copy alone. So they outrank the settings of the server and of
the role, every session has them, also those of pg_restore and vacuumdb, and dropping the copy removes them. The session
that wrote the rows is not known any more, so a setting is taken from the first of these that has it:

1. the owner's settings in this database (``ALTER ROLE … IN DATABASE``);
2. the owner's settings everywhere (from the saved roles);
3. the database's settings;
4. settings of other roles in this database, if all roles that have the setting agree: first the roles that own an
   object in it; then any role, for settings that have no other source, such as an application's own;
5. the settings in effect for the role that dumps: the server's configuration, or the role's own (from the manifest).

The first three are in PostgreSQL's own order, for a session of the owner. An archive may be forged: settings that load
code or give rights are never taken from it, and a value is always passed as a literal.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import BadBackupError, VolumeError
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres import globals_file as saved_globals
from ovia_backup_dagster.postgres.data_stream import statements
from ovia_backup_dagster.postgres.session import HIDDEN, connect
from ovia_backup_dagster.postgres.session_settings import (
    DECIDING,
    RULES,
    UNLOGGED,
    WRITABLE,
    While,
    pg_options,
    read_options,
    rule,
    unended,
)
from ovia_backup_dagster.proof.target import Copy

_NAME = rb'"(?:[^"]|"")*"|[^\s;"]+'
_SET = re.compile(
    rb"ALTER (?:DATABASE (?:" + _NAME + rb")|ROLE (" + _NAME + rb") IN DATABASE (?:" + _NAME + rb"))"
    rb" SET (" + _NAME + rb") TO (.*);",
    re.DOTALL,
)
_OWNER = re.compile(rb"ALTER DATABASE (?:" + _NAME + rb") OWNER TO (" + _NAME + rb");")
_LITERAL = re.compile(r"E'((?:[^'\\]|''|\\\\)*)'|'((?:[^']|'')*)'", re.DOTALL)
_SOUND = re.compile(r"[^\W\d][\w$.]{0,199}")
_ALTER = sql.SQL("ALTER ROLE SESSION_USER IN DATABASE {} SET {} TO {}")
_RESET = sql.SQL("ALTER ROLE SESSION_USER IN DATABASE {} RESET ALL")
_KNOWN = "SELECT lower(name) AS name, context FROM pg_settings"
_TRY = "SELECT set_config(%s, %s, false)"
#: A server refuses a connection whose options exceed 10,000 bytes.
_MOST_OPTIONS = 6000
#: SQLSTATE -> why a setting is not possible. The server's own message repeats the value.
_REASONS = {
    "22023": "the server does not take its value",
    "42501": "the role that restores may not set it",
    "42602": "the server does not know it",
    "42704": "the server does not know it",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the source.

    Attributes:
        name: as the source writes it.
        value: may be a secret.
        said: whether it was set for this database or its owner; otherwise it was only in effect there.
    """

    name: str
    value: str
    said: bool = True


@dataclass(frozen=True, slots=True)
class InEffect:
    """The settings that are in effect while a copy is filled.

    Attributes:
        options: ``PGOPTIONS`` of the sessions that fill it, besides the settings of the role.
        names: the source's settings that are in effect.
        notes: explicit settings that could not be put in effect, and why; without values.
        quietly: the same for settings that were only in effect at the source.
    """

    options: str = f"{unended()} {WRITABLE}"
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    quietly: tuple[str, ...] = ()


def settings_of_backup(backup: Backup, script: bytes, listing: str) -> list[Setting]:
    """Like :func:`wanted`, from a backup's files. Altered saved roles are left out: another check reports them.

    Args:
        backup: with its sidecars.
        script: the SQL that makes the archive's database.
        listing: the archive's contents list.
    """
    saved = None
    with contextlib.suppress(BadBackupError, VolumeError):
        saved = backup.saved_roles()
    return wanted(script, backup.manifest, saved, archives.entries(listing))


def wanted(
    script: bytes, manifest: Manifest | None = None, globals_sql: bytes | None = None, entries: Collection[str] = ()
) -> list[Setting]:
    """The source's settings, each once; settings that others may depend on come first.

    Args:
        script: the SQL that creates the archive's database.
        manifest: the backup's manifest; the old script's dumps have none.
        globals_sql: the roles that were saved with the backup.
        entries: the archive's entries, each with its owner at the end.
    """
    facts = manifest.database if manifest else None
    owner, of_database, of_roles = _of_script(script)
    if facts is not None:
        owner = owner or facts.owner
        # If pg_restore cannot print the database's name, it does not print its settings either.
        kept = {role: dict(map(_parted, each)) for role, each in facts.settings.items()}
        of_database = _over(kept.pop("", {}), of_database)
        of_roles = {role: _over(kept.get(role, {}), of_roles.get(role, {})) for role in {*kept, *of_roles}}
    effective = facts.effective if facts else {}
    found = {name.lower(): Setting(name, value, said=False) for name, value in effective.items()}
    of_owner = _of_owner(globals_sql, owner) if globals_sql else {}
    strangers, owners = list[dict[str, str]](), list[dict[str, str]]()
    for role, settings in of_roles.items():
        if role != owner:
            own = any(entry.endswith(f" {role}") for entry in entries)
            (owners if own else strangers).append(settings)
    unknown = {name: value for name, value in _agreed(strangers).items() if name.lower() not in DECIDING}
    for layer in (unknown, _agreed(owners), of_database, of_owner, of_roles.get(owner, {})):
        found |= {name.lower(): Setting(name, value) for name, value in layer.items()}
    written = read_options(manifest.session_options) if manifest else {}
    taken = []
    for name, setting in found.items():
        filling = rule(name).filling
        if filling is While.ARCHIVES and name in written:
            continue
        # Servers accept no other names, and the name is shown to people.
        sound = _SOUND.fullmatch(name) and setting.value != HIDDEN
        if filling in (While.SOURCES, While.ARCHIVES) and sound:
            taken.append(setting)
    taken += [
        Setting(name, value, said=False)
        for name, value in written.items()
        if rule(name).filling is While.ARCHIVES and name in RULES
    ]
    return taken


def put_in_effect(copy: Copy, settings: Iterable[Setting]) -> InEffect:
    """Put the source's settings in effect in a new, empty copy, and those that let a restore run to its end.

    Args:
        copy: the database.
        settings: as :func:`wanted` returns them.

    Raises:
        ServerError: no connection, or it broke.
    """
    database = sql.Identifier(copy.connection.database)
    done: list[str] = []
    refused: list[tuple[Setting, str]] = []
    with connect(copy.server) as session:
        known = {row["name"]: row["context"] for row in session.execute(_KNOWN)}
        pins = {name: each.pinned for name, each in RULES.items() if each.filling is While.PINNED and name in known}
        _quietly(session, UNLOGGED)
        for setting in settings:
            try:
                session.execute(_ALTER.format(database, sql.Identifier(setting.name), sql.Literal(setting.value)))
                done.append(setting.name)
            except psycopg.Error as error:
                if session.broken:
                    raise
                refused.append((setting, error.sqlstate or ""))
        for name, value in pins.items():
            if known[name] != "user":  # as an option, the server would refuse it, and so the session, to other roles
                _quietly(session, _ALTER.format(database, sql.Identifier(name), sql.Literal(value)))
    options = pg_options({name: value for name, value in pins.items() if known[name] == "user"})
    if any(state == "42501" for _, state in refused):
        options, more, refused = _by_option(copy, options, refused)
        done += more
    return InEffect(
        options,
        tuple(done),
        tuple(_note(setting, state) for setting, state in refused if setting.said),
        tuple(_note(setting, state) for setting, state in refused if not setting.said),
    )


def take_out(copy: Copy) -> None:
    """Remove the source's settings from a copy that is filled and proven; afterwards it has only its own settings.

    Raises:
        ServerError: no connection, or it broke.
    """
    # A role that may not reset the settings could not set them either.
    with connect(copy.server) as session, contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        session.execute(_RESET.format(sql.Identifier(copy.connection.database)))


def _by_option(
    copy: Copy, options: str, refused: list[tuple[Setting, str]]
) -> tuple[str, list[str], list[tuple[Setting, str]]]:
    """Pass settings that only a superuser may set for a role, such as an application's own, as session options."""
    done: list[str] = []
    left: list[tuple[Setting, str]] = []
    with connect(copy.connection) as session:
        for setting, state in refused:
            more = f"{options} {pg_options({setting.name: setting.value})}"
            if state == "42501" and len(more.encode()) <= _MOST_OPTIONS and _possible(session, setting):
                options = more
                done.append(setting.name)
            else:
                left.append((setting, state))
    return options, done, left


def _possible(session: psycopg.Connection[dict[str, Any]], setting: Setting) -> bool:
    try:
        session.execute(_TRY, [setting.name, setting.value])
    except psycopg.Error:
        if session.broken:
            raise
        return False
    return True


def _quietly(session: psycopg.Connection[dict[str, Any]], statement: str | sql.Composed) -> None:
    try:
        session.execute(statement.encode() if isinstance(statement, str) else statement)
    except psycopg.Error:
        if session.broken:
            raise


def _note(setting: Setting, state: str) -> str:
    why = _REASONS.get(state, f"SQLSTATE {state}")
    return f"the source's setting {setting.name} was not in effect while the copy was filled: {why}"


def _of_script(script: bytes) -> tuple[str, dict[str, str], dict[str, dict[str, str]]]:
    """The database's owner, its settings, and the settings of roles in it."""
    owner, of_database = "", dict[str, str]()
    of_roles: dict[str, dict[str, str]] = {}
    encoding = archives.encoding(script)
    for statement in map(bytes.strip, statements(script)):
        if match := _OWNER.fullmatch(statement):
            owner = saved_globals.name_of(match[1])
        elif match := _SET.fullmatch(statement):
            role = saved_globals.name_of(match[1]) if match[1] else ""
            layer = of_roles.setdefault(role, {}) if role else of_database
            layer |= _read(match[2], match[3], encoding)
    return owner, of_database, of_roles


def _of_owner(globals_sql: bytes, owner: str) -> dict[str, str]:
    encoding = archives.encoding(globals_sql)
    role = saved_globals.parse_globals(globals_sql).roles.get(owner)
    found: dict[str, str] = {}
    for name, value in role.settings.items() if role else ():
        found |= _read(name, value, encoding)
    return found


def _read(name: bytes, value: bytes, encoding: str) -> dict[str, str]:
    """A setting's value; empty if it is a list or has no valid encoding, because such settings change no values."""
    try:
        match = _LITERAL.fullmatch(value.strip().decode(_codec(encoding)))
    except UnicodeDecodeError:
        return {}
    if match is None:
        return {}
    text = match[1].replace("\\\\", "\\") if match[1] is not None else match[2]
    return {saved_globals.name_of(name): text.replace("''", "'")}


def _codec(encoding: str) -> str:
    name = encoding.lower().replace("win", "cp")
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def _parted(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, value


def _over(lower: Mapping[str, str], upper: Mapping[str, str]) -> dict[str, str]:
    """Both layers together; the upper one's value if both have the setting."""
    above = {name.lower() for name in upper}
    return {**{name: value for name, value in lower.items() if name.lower() not in above}, **upper}


def _agreed(layers: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The settings on which all roles that have them agree."""
    found: dict[str, set[tuple[str, str]]] = {}
    for name, value in _pairs(layers):
        found.setdefault(name.lower(), set()).add((name, value))
    return dict(next(iter(said)) for said in found.values() if len({value for _, value in said}) == 1)


def _pairs(layers: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for layer in layers:
        yield from layer.items()
