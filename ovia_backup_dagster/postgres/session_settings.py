"""The table of PostgreSQL's settings for our own sessions and those of client programs.

The settings of a server, a database or a role are in effect in our sessions, too, unless the client overrides them. So
this table decides for each setting that matters, and states why, which value it has in sessions that read (pg_dump,
pg_dumpall, the reading of a copy, our own queries) and in sessions that fill a copy (pg_restore with its jobs,
vacuumdb). A setting that is not listed has the server's value in the former and the source's in the latter.

This module asks no server. ``proof.source_settings`` transfers the source's settings to a copy.

Sources: PostgreSQL 13 to 18, ``setup_connection`` in pg_dump.c, ``_doSetFixedOutputState`` in pg_backup_archiver.c,
vacuumdb.c, ruleutils.c, the types' output functions; each setting was tested against PostgreSQL 16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class While(Enum):
    """The origin of a setting's value while a copy is filled."""

    #: The source's value. Rows, CHECKs, generated columns and views may depend on it.
    SOURCES = auto()
    #: The value of the copy's server: the source's would stop the restore, or no data depends on it.
    SERVERS = auto()
    #: A fixed value, whatever source and server have.
    PINNED = auto()
    #: The value that the archive was written with, if known; else the source's.
    ARCHIVES = auto()


@dataclass(frozen=True, slots=True)
class SettingRule:
    """How sessions treat a setting.

    Attributes:
        why: the reason, for people.
        reading: its value in every session that reads; ``None`` for the server's.
        filling: the origin of its value while a copy is filled.
        pinned: the fixed value, if ``filling`` is ``PINNED``.
        decides: whether data may depend on it, so that a manifest records its value, wherever it was set.
    """

    why: str
    reading: str | None = None
    filling: While = While.SOURCES
    pinned: str = ""
    decides: bool = False


def _text(value: str, why: str) -> SettingRule:
    """A setting pinned in sessions that read; while a copy is filled, rows may depend on the source's value."""
    return SettingRule(why, reading=value, decides=True)


def _pinned(value: str, why: str, *, reading: bool = False) -> SettingRule:
    return SettingRule(why, reading=value if reading else None, filling=While.PINNED, pinned=value)


def _servers(why: str, *, reading: str | None = None) -> SettingRule:
    return SettingRule(why, reading=reading, filling=While.SERVERS)


_BY_PG_RESTORE = "the archive contains its value, and pg_restore sets it"
_ENDS = "it would end a session that is working, or that waits for another one that is working"
_TRANSACTIONS = "it applies to one transaction; pg_dump and the programs that fill a copy begin their own"
_LIBRARIES = "it loads code: the files are those of another server, and an archive must not choose what a server runs"
_HIDES = "it hides damage, or removes a protection of the server"
_LOG = "it decides what the server logs, which may contain rows; the server's administrator decides that"
_WATCH = "the progress of a restore is watched through it"
_NETWORK = "it concerns the network between that server and its clients"
_MEMORY = "it limits the memory, processes or disk that a session takes on a server; no data depends on it"
_WAL = "it concerns the safety and speed of that server's disk"

#: Setting -> its rule. Names are in lower case, as the server compares them.
RULES: Mapping[str, SettingRule] = {
    # ---- settings that change what pg_dump, or the server for it, writes
    "timezone": _text("UTC", "pg_dump writes timestamptz in this zone, in rows, defaults and partition bounds"),
    "datestyle": _text("ISO", "pg_dump sets it, but pg_dumpall (VALID UNTIL) and our own queries do not"),
    "intervalstyle": _text("postgres", "pg_dump sets it, but our own queries do not"),
    "bytea_output": _text("hex", "pg_dump writes bytea in this format"),
    "extra_float_digits": _text("3", "pg_dump sets it, but our own queries do not"),
    "standard_conforming_strings": _text("on", "with off, pg_dump doubles the backslashes in its literals"),
    "quote_all_identifiers": _text("off", "with on, the server quotes every name that pg_dump queries"),
    "xmlbinary": _text("base64", "it is the format of bytea in XML that a query generates"),
    "transform_null_equals": _text("off", "with on, the server changes the meaning of x = NULL, in our queries, too"),
    "backslash_quote": _text("safe_encoding", "it changes how the server parses literals, in our queries, too"),
    "lc_monetary": SettingRule(
        "pg_dump writes money in this locale, and a restore must read rows as they were written. So a CHECK on the "
        "text of money is evaluated in it, too, and not in the source's locale",
        reading="C",
        filling=While.ARCHIVES,
    ),
    "array_nulls": _pinned("on", "with off, NULL in an array, as pg_dump writes it, is read as text", reading=True),
    "synchronize_seqscans": _pinned("off", "with on, the order in which rows are read varies", reading=True),
    "exit_on_error": _pinned("off", "with on, an expected and handled error would end the session", reading=True),
    "gin_fuzzy_search_limit": SettingRule("with a limit, a search returns partial results", reading="0", decides=True),
    "escape_string_warning": _servers("it only causes warnings, and pg_dump's warnings are kept", reading="on"),
    "client_min_messages": _servers("it only decides which messages are sent; pg_restore sets it", reading="notice"),
    # ---- settings that data depends on, but that do not change what is written
    "default_text_search_config": SettingRule("to_tsvector and to_tsquery depend on it", decides=True),
    "lc_numeric": SettingRule("to_char and to_number depend on it", decides=True),
    "lc_time": SettingRule("to_char depends on it", decides=True),
    "timezone_abbreviations": SettingRule("it defines abbreviations such as IST in timestamps", decides=True),
    "plpgsql.variable_conflict": SettingRule("functions depend on it", decides=True),
    # ---- settings that the archive contains
    "search_path": _servers(
        f"{_BY_PG_RESTORE}: to an empty path, so that no function of another schema is called by mistake"
    ),
    "client_encoding": _servers(_BY_PG_RESTORE),
    "check_function_bodies": _servers(f"{_BY_PG_RESTORE}: to off, because functions precede the objects they use"),
    "xmloption": _servers(f"{_BY_PG_RESTORE}: to content, which accepts any XML"),
    "row_security": _servers(f"{_BY_PG_RESTORE}, as does pg_dump: to off, so that hidden rows cause an error"),
    # ---- settings that would stop a restore
    "default_transaction_read_only": _pinned("off", "nothing could be written"),
    "default_transaction_isolation": _pinned("read committed", "concurrent jobs would fail to serialize"),
    "default_transaction_deferrable": _pinned("off", _TRANSACTIONS),
    "transaction_read_only": _servers(_TRANSACTIONS),
    "transaction_isolation": _servers(_TRANSACTIONS),
    "transaction_deferrable": _servers(_TRANSACTIONS),
    "session_replication_role": _pinned("origin", "with replica, no foreign key is checked and no trigger fires"),
    "role": _servers("the restoring role restores with its own privileges and no others"),
    "session_authorization": _servers("the restoring role restores with its own privileges and no others"),
    "statement_timeout": _pinned("0", _ENDS),
    "lock_timeout": _pinned("0", _ENDS),
    "idle_in_transaction_session_timeout": _pinned("0", _ENDS),
    "idle_session_timeout": _pinned("0", f"{_ENDS}: a job of pg_restore waits for the others"),
    "transaction_timeout": _pinned("0", _ENDS),
    "deadlock_timeout": _servers("it decides how soon a deadlock is detected"),
    "icu_validation_level": _pinned("warning", "the source's collations must be created even if ICU rejects them"),
    "restrict_nonsystem_relation_kind": _pinned("", "a materialized view of a view could not be refreshed"),
    "temp_file_limit": _servers("an index or a view that sorts more than this could not be built"),
    "vacuum_cost_delay": _pinned("0", "ANALYZE would sleep more than it works"),
    "default_tablespace": _pinned("", "a copy is stored in its database's own tablespace"),
    "temp_tablespaces": _servers("the source's tablespaces exist only on its own server"),
    # ---- settings that run code or remove a protection
    "jit_dump_bitcode": _servers("it writes files"),
    "allow_system_table_mods": _servers(_HIDES),
    "allow_in_place_tablespaces": _servers(_HIDES),
    "ignore_checksum_failure": _servers(_HIDES),
    "zero_damaged_pages": _servers(_HIDES),
    "lo_compat_privileges": _servers(_HIDES),
    "debug_discard_caches": _servers("it makes a server a hundred times slower"),
    # ---- settings that concern only the server
    "application_name": _servers("it identifies our sessions on the server"),
    "lc_messages": _servers("people here, and this program, read the messages"),
    "stats_fetch_consistency": _servers(_WATCH),
    "client_connection_check_interval": _servers(_NETWORK),
    "wal_sender_timeout": _servers(_NETWORK),
    "synchronous_commit": _pinned("off", "the next synchronous commit flushes all earlier ones to disk, too"),
    "maintenance_work_mem": _servers("the jobs of RESTORE_JOBS share it; no data depends on it"),
    "work_mem": _servers(_MEMORY),
    "hash_mem_multiplier": _servers(_MEMORY),
    "temp_buffers": _servers(_MEMORY),
    "logical_decoding_work_mem": _servers(_MEMORY),
    "debug_parallel_query": _servers(_MEMORY),
    "force_parallel_mode": _servers(_MEMORY),
}

#: Families of settings, by name; the rules above take precedence.
FAMILIES: tuple[tuple[re.Pattern[str], SettingRule], ...] = (
    (re.compile(r"\w*(?:librar|preload)\w*|\w+_path|\w+\.(?:on_\w*init|\w*start_proc)"), _servers(_LIBRARIES)),
    (re.compile(r"\w+\.\w*(?:librar|preload)\w*"), _servers(_LIBRARIES)),
    (re.compile(r"log_\w+|debug_(?:print_\w+|pretty_print)|trace_\w+|backtrace_functions"), _servers(_LOG)),
    (re.compile(r"track_\w+|update_process_title|compute_query_id"), _servers(_WATCH)),
    (re.compile(r"tcp_\w+"), _servers(_NETWORK)),
    (re.compile(r"max_parallel_\w+|vacuum_\w+"), _servers(_MEMORY)),
    (re.compile(r"wal_\w+|commit_\w+"), _servers(_WAL)),
)
_OTHERS = SettingRule("a function in the source may read it")

#: Timeouts that end a session, with the first major version that has them: a server refuses a session with an unknown
#: option. pg_dump and pg_restore switch most of them off, but only after a few queries.
_TIMEOUTS = {
    "statement_timeout": 0,
    "lock_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 14,
    "transaction_timeout": 17,
}
#: Settings that pg_dump does not set, although its text depends on them: a dump made without this system used the
#: source's values.
UNSET = ("timezone", "bytea_output", "lc_monetary", "standard_conforming_strings", "quote_all_identifiers")
_WRITABLE = ("default_transaction_read_only", "default_transaction_isolation", "default_transaction_deferrable")
_OPTION = re.compile(r"-c (\w+)=((?:\\.|[^\s\\])*)", re.DOTALL)

#: For statements that contain a secret, because servers may log statements. Only a superuser may switch that off.
UNLOGGED = "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1"


def rule(name: str) -> SettingRule:
    """The rule for a setting."""
    name = name.lower()
    if name in RULES:
        return RULES[name]
    return next((found for family, found in FAMILIES if family.fullmatch(name)), _OTHERS)


def pg_options(settings: Mapping[str, str]) -> str:
    """Settings in the syntax of ``PGOPTIONS``."""
    escaped = (re.sub(r"([\s\\])", r"\\\1", value) for value in settings.values())
    return " ".join(f"-c {name}={value}" for name, value in zip(settings, escaped, strict=True))


def read_options(options: str) -> dict[str, str]:
    """The settings in a value of ``PGOPTIONS``, with names in lower case."""
    return {name.lower(): re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL) for name, value in _OPTION.findall(options)}


#: For sessions that read: all settings that affect how values and SQL are written. Recorded with each dump.
SESSION_OPTIONS = pg_options({name: each.reading for name, each in RULES.items() if each.reading is not None})
#: For sessions that write, whatever the settings of the role or the server.
WRITABLE = pg_options({name: RULES[name].pinned for name in _WRITABLE})
#: Recorded with each dump, with the values that the dumping role has.
DECIDING = tuple(name for name, each in RULES.items() if each.decides)


def unended(server_version_num: int = 0, *, since: int = 0) -> str:
    """``PGOPTIONS`` for a session that no timeout ends.

    Args:
        server_version_num: the server's, e.g. 160015; 0 if it is unknown, for the timeouts that every server has.
        since: only timeouts that exist since this major version or a later one.
    """
    major = server_version_num // 10000
    return pg_options({name: "0" for name, first in _TIMEOUTS.items() if since <= first <= major})


def as_recorded(options: str) -> str:
    """The options that a manifest records for its dump, limited to those that affect how values are written.

    The manifest may be forged, and sessions are opened with these options: none may load a library or change the role.
    """
    read = read_options(options)
    return pg_options({name: value for name, value in read.items() if rule(name).reading is not None})
