"""Compares a backup's needs with a server's offers to a role, before anything is created.

Pure functions. ``archive_requirements`` reads the needs of an archive, ``server_offers`` queries the server.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.core.errors import BackupError, ExtensionMissingError, RestoreRefusedError
from ovia_backup_dagster.core.human_text import some

_SHOWN = 5
#: pg_dump also locks catalogs, besides the tables.
_LOCKS_BESIDES = 50
#: A server's shared memory has some room beyond the configured lock table: on an idle server, one pg_dump got between
#: 1.7 and 2.3 times as many locks (PostgreSQL 16, measured).
_BORROWED = 2
#: Sessions besides those of pg_restore, such as the watchdog's, the progress report's and those that query.
_SESSIONS_BESIDES = 4


@dataclass(frozen=True, slots=True)
class Definition:
    """An object that is created from options.

    Attributes:
        name: as SQL takes it.
        options: name -> value, both without quotes.
    """

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Locale:
    """How a database sorts and classifies text.

    Attributes:
        provider: ``libc`` or ``icu``.
        collate, ctype: the C library's locales.
        icu: the ICU locale; empty without ICU.
    """

    provider: str = "libc"
    collate: str = "C"
    ctype: str = "C"
    icu: str = ""


@dataclass(frozen=True, slots=True)
class Needs:
    """The needs of an archive: things that a server may lack, or that a role may not be allowed to create.

    Attributes:
        backup: the backup's name, for people.
        extensions: name -> version in the source; empty if unknown.
        superuser_only: kind -> names of the objects that only a superuser may create.
        settings: parameter -> a function that sets it.
        owners: the roles that own the archive's objects.
        placed: (role, owner of the schema), for objects that a role owns in another role's schema.
        libraries: of functions in C, as their definitions name them.
        dictionaries, collations: the definitions of text search dictionaries and of collations.
        system_collations: those of ``pg_catalog`` that columns and indexes use.
        locale: the database's; ``None`` if unknown.
        relations: the number of tables, partitions and sequences: a dump holds a lock on each.
        versions: collation -> version in the source, if the source recorded one.
    """

    backup: str
    extensions: Mapping[str, str] = field(default_factory=dict)
    superuser_only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    owners: Collection[str] = ()
    placed: Collection[tuple[str, str]] = ()
    libraries: Collection[str] = ()
    dictionaries: Sequence[Definition] = ()
    collations: Sequence[Definition] = ()
    system_collations: Collection[str] = ()
    locale: Locale | None = None
    relations: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension as a server offers it.

    Attributes:
        default: the version that CREATE EXTENSION installs.
        versions: all available versions.
        superuser: whether only a superuser may create it.
    """

    default: str
    versions: Collection[str]
    superuser: bool


@dataclass(frozen=True, slots=True)
class Sessions:
    """How many sessions a server accepts.

    Attributes:
        of_role: the role's limit; ``None`` for none.
        of_server: the server's limit, without the sessions that are reserved for superusers.
        free: how many of these are free now.
    """

    of_role: int | None
    of_server: int
    free: int


@dataclass(frozen=True, slots=True)
class Offers:
    """Which of a backup's needs a server meets, and what the restoring role may do there.

    Attributes:
        place: the server, for people.
        role: the restoring role.
        superuser: whether the restoring role is a superuser.
        a_superuser: the name of a superuser of the server.
        extensions: name -> the extension.
        settings: needed parameters that the role may not set.
        strangers: owners that the role is not a member of -> whether they are superusers.
        closed: entries of ``placed`` that the role may not create.
        libraries: needed libraries that are missing, as far as the role may see.
        dictionaries, collations: name of a needed object -> the server's error when it is created.
        system_collations: needed system collations that are missing.
        locale: the server's error for the database's locale; empty if it has the locale, or cannot be asked.
        locks: the number of locks that the server's lock table is sized for.
        lock_slots: the number of transactions that ``max_locks_per_transaction`` is multiplied by.
        sessions: how many sessions the server accepts.
        versions: collation -> version here, for collations whose version the source recorded.
    """

    place: str
    role: str
    superuser: bool
    a_superuser: str
    extensions: Mapping[str, Extension] = field(default_factory=dict)
    settings: Collection[str] = ()
    strangers: Mapping[str, bool] = field(default_factory=dict)
    closed: Collection[tuple[str, str]] = ()
    libraries: Collection[str] = ()
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    collations: Mapping[str, str] = field(default_factory=dict)
    system_collations: Collection[str] = ()
    locale: str = ""
    locks: int | None = None
    lock_slots: int = 0
    sessions: Sessions | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def unmet(needs: Needs, offers: Offers, jobs: int) -> tuple[list[BackupError], list[str]]:
    """Obstacles to a restore, and warnings.

    Args:
        needs: the backup's needs.
        offers: the server's offers to the restoring role.
        jobs: how many entries are restored at a time.
    """
    found: list[BackupError] = []
    warnings: list[str] = []
    _extensions(needs, offers, found, warnings)
    _rights(needs, offers, found)
    _files(needs, offers, found)
    _locks(needs, offers, found, warnings)
    _sessions(offers, jobs, found, warnings)
    warnings += versions_differ(needs.versions, offers.versions, offers.place)
    return found, warnings


def _extensions(needs: Needs, offers: Offers, found: list[BackupError], warnings: list[str]) -> None:
    if lacking := sorted(needs.extensions.keys() - offers.extensions.keys()):
        found.append(
            ExtensionMissingError(
                f"the server at {offers.place} lacks extensions that {needs.backup} needs: {', '.join(lacking)}",
                why="their packages are not installed there, or their files are gone",
                fix="install their packages on that server; then try again",
            )
        )
    there = {name: each for name, each in offers.extensions.items() if name in needs.extensions}
    closed = sorted(name for name, each in there.items() if each.superuser)
    if closed and not offers.superuser:
        found.append(_only_a_superuser(offers, needs, "extension", closed, "not marked as trusted there"))
    for name, each in sorted(there.items()):
        version = needs.extensions[name]
        if version and version != each.default:
            besides = "" if version in each.versions else f", and there is no {version}"
            warnings.append(
                f"extension {name} was {version} in the source: {offers.place} makes {each.default}{besides}"
            )


def _rights(needs: Needs, offers: Offers, found: list[BackupError]) -> None:
    if offers.superuser:
        return
    for kind, names in needs.superuser_only.items():
        found.append(_only_a_superuser(offers, needs, kind, names))
    me = _identifier(offers.role)
    found += [
        RestoreRefusedError(
            f"role {offers.role} may not create function {needs.settings[parameter]}, which sets {parameter}",
            why="only a superuser sets it, or a role that was granted it",
            fix=f"as a superuser: GRANT SET ON PARAMETER {parameter} TO {me}; or {_let(offers)}",
        )
        for parameter in sorted(offers.settings)
    ]
    powerful = sorted(name for name, is_superuser in offers.strangers.items() if is_superuser)
    if powerful:
        found.append(
            RestoreRefusedError(
                f"role {offers.role} may not give what is in {needs.backup} to its owner {some(powerful)}",
                why="that is a superuser, whose member no other role should be",
                fix=_let(offers),
            )
        )
    if others := sorted(name for name, is_superuser in offers.strangers.items() if not is_superuser):
        owners = ", ".join(map(_identifier, others[:_SHOWN]))
        # Never print a truncated statement.
        rest = f"; then those of the {len(others) - _SHOWN:,} more, whom the plan names next; or {_let(offers)}"
        rest = rest if len(others) > _SHOWN else ""
        found.append(
            RestoreRefusedError(
                f"role {offers.role} may not give what is in {needs.backup} to its owner {some(others)}",
                why="it is not a member of that role, with INHERIT and SET",
                fix=f"as a superuser: GRANT {owners} TO {me} WITH INHERIT TRUE, SET TRUE{rest}",
            )
        )
    if offers.closed:
        shown = some([f"{role} in a schema of {owner}" for role, owner in sorted(offers.closed)])
        found.append(
            RestoreRefusedError(
                f"role {offers.role} may not place what is in {needs.backup}: it belongs to {shown}",
                why="an owner needs CREATE on the schema, and privileges are restored last; a superuser needs none",
                fix=_let(offers),
            )
        )


def _files(needs: Needs, offers: Offers, found: list[BackupError]) -> None:
    """Needs that require files on the server's disk."""

    def lacks(what: str, why: str, fix: str) -> None:
        found.append(RestoreRefusedError(f"the server at {offers.place} lacks {what}", why=why, fix=fix))

    if offers.locale:
        lacks(
            f"the locale of the database that {needs.backup} was made from",
            offers.locale,
            "install it there, as root: localedef -i de_DE -f UTF-8 de_DE.UTF-8, by its own name; restart the server; "
            "then try again",
        )
    for name, said in offers.collations.items():
        lacks(f"what collation {name} needs", said, "install the locale there, or PostgreSQL with ICU; then try again")
    if offers.system_collations:
        names = ", ".join(sorted(offers.system_collations))
        lacks(
            f"collations that columns or indexes use: {names}",
            "they come from locales of the operating system that are not installed there",
            "install these locales there; then, as a superuser in database template0: "
            "SELECT pg_import_system_collations('pg_catalog')",
        )
    for name, said in offers.dictionaries.items():
        lacks(
            f"a file of the text search dictionary {name}",
            said,
            "copy it there from the source's server or its package: $(pg_config --sharedir)/tsearch_data",
        )
    if offers.libraries:
        lacks(
            f"libraries of functions in C: {some(sorted(offers.libraries))}",
            "the package that brought them to the source is not installed there",
            "install it on that server; then try again",
        )


def _locks(needs: Needs, offers: Offers, found: list[BackupError], warnings: list[str]) -> None:
    if offers.locks is None:
        return
    text = too_many_locks(needs.relations, offers.locks, offers.lock_slots)
    if text is None:
        return
    what, fix = f"{offers.place} has too small a lock table to read {needs.backup} back", text.fix
    if text.surely:
        found.append(RestoreRefusedError(f"the server at {what}", why=text.why, fix=fix))
    else:
        warnings.append(f"the server at {what}, if others need theirs: {text.why}; {fix}")


@dataclass(frozen=True, slots=True)
class Locks:
    """A dump needs more locks than the server's lock table is sized for.

    Attributes:
        surely: whether it fails even if nothing else runs.
        why, fix: in words.
    """

    surely: bool
    why: str
    fix: str


def too_many_locks(relations: int, locks: int, slots: int) -> Locks | None:
    """Whether a dump of so many tables and sequences, which holds a lock on each, fits a server's lock table.

    The table has ``max_locks_per_transaction`` entries for each possible transaction.

    Args:
        relations: the number of tables, partitions and sequences.
        locks: the number of entries in the lock table.
        slots: the number of possible transactions.
    """
    needed = relations + _LOCKS_BESIDES
    if needed <= locks or not slots:
        return None
    wanted = max(64, -(-2 * needed // slots))
    return Locks(
        surely=needed > _BORROWED * locks,
        why=f"a dump holds a lock on each of {relations:,} tables and sequences, and there is room for {locks:,} "
        "of all sessions",
        fix=f"as a superuser: ALTER SYSTEM SET max_locks_per_transaction = {wanted}; then restart the server",
    )


def _sessions(offers: Offers, jobs: int, found: list[BackupError], warnings: list[str]) -> None:
    """Check the session limits: pg_restore has one session, and one more for each job."""
    sessions, needed = offers.sessions, jobs + 1 + _SESSIONS_BESIDES
    if sessions is None:
        return
    fewer = "or restore with fewer jobs: RESTORE_JOBS"
    if sessions.of_role is not None and sessions.of_role < needed and not offers.superuser:
        found.append(
            RestoreRefusedError(
                f"role {offers.role} may have {sessions.of_role} sessions at a time",
                why=f"a restore with {jobs} jobs needs {needed}",
                fix=f"as a superuser: ALTER ROLE {_identifier(offers.role)} CONNECTION LIMIT -1; {fewer}",
            )
        )
    if sessions.of_server < needed:
        found.append(
            RestoreRefusedError(
                f"the server at {offers.place} allows {sessions.of_server} sessions at a time",
                why=f"a restore with {jobs} jobs needs {needed}",
                fix=f"raise max_connections there, and restart it; {fewer}",
            )
        )
    elif sessions.free < needed:
        warnings.append(
            f"the server at {offers.place} has {sessions.free} sessions free at the moment, and a restore with {jobs} "
            f"jobs needs {needed}: end idle ones, {fewer}"
        )


def versions_differ(source: Mapping[str, str], here: Mapping[str, str], place: str) -> list[str]:
    """A warning if text is sorted by another library version than in the source.

    A restore builds every index itself, so indexes are right. Rows under constraints and partition bounds may no longer
    fit.
    """
    different = sorted(name for name, version in source.items() if here.get(name, version) != version)
    if not different:
        return []
    pairs = some([f"{name} {source[name]}, here {here[name]}" for name in different])
    return [
        (
            f"text sorts by another version at {place} than in the source ({pairs}): indexes are correct, because a "
            "restore builds every index itself; rows may be outside a partition's range of text, or fail a CHECK"
        )
    ]


def _only_a_superuser(
    offers: Offers, needs: Needs, kind: str, names: Sequence[str], why: str = ""
) -> RestoreRefusedError:
    # The shown names are enough to find the others.
    return RestoreRefusedError(
        f"role {offers.role} may not create what {needs.backup} holds: {kind} {some(names)}",
        why=f"only a superuser may{f': it is {why}' if why else ''}",
        fix=_let(offers),
    )


def _let(offers: Offers) -> str:
    return (
        f"let a superuser restore, and be sure of the functions in the backup: RESTORE_POSTGRES_USER="
        f"{offers.a_superuser}"
    )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
