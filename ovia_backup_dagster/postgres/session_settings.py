"""PostgreSQL's settings in every session of ours, and of each client program: one table.

What a server, a database or a role is set to is in effect in our sessions, too, unless a client says otherwise. So for
each setting that matters it is decided here, with the reason, what it is in a session that reads (pg_dump, pg_dumpall,
the reading of a copy, our own questions) and in one that fills a copy (pg_restore with its jobs, vacuumdb). What is in
neither list is the server's in the first, and the source's in the second.

Nothing here asks a server. How the source's settings get into a copy is the business of ``proof.source_settings``.

Sources: PostgreSQL 13 to 18, ``setup_connection`` in pg_dump.c, ``_doSetFixedOutputState`` in pg_backup_archiver.c,
vacuumdb.c, ruleutils.c, the types' output functions; tried setting by setting against 16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class While(Enum):
    """What a setting is while a copy is filled."""

    #: What the source says. Rows, CHECKs, generated columns and views may depend on it.
    SOURCES = auto()
    #: What the server of the copy says: the source's would stop the restore, or says nothing about what is in it.
    SERVERS = auto()
    #: One value, whatever anyone says.
    PINNED = auto()
    #: What the archive was written with, as far as that is known; else the source's.
    ARCHIVES = auto()


@dataclass(frozen=True, slots=True)
class SettingRule:
    """What becomes of a setting.

    Attributes:
        why: the reason, for people.
        reading: its value in every session that reads; ``None`` for the server's.
        filling: what it is while a copy is filled.
        pinned: the value, where that is ``PINNED``.
        decides: whether values may depend on it, so that a manifest records what it was, wherever it was set.
    """

    why: str
    reading: str | None = None
    filling: While = While.SOURCES
    pinned: str = ""
    decides: bool = False


def _text(value: str, why: str) -> SettingRule:
    """Pinned where text is written; rows may have obeyed the source's."""
    return SettingRule(why, reading=value, decides=True)


def _pinned(value: str, why: str, *, reading: bool = False) -> SettingRule:
    return SettingRule(why, reading=value if reading else None, filling=While.PINNED, pinned=value)


def _servers(why: str, *, reading: str | None = None) -> SettingRule:
    return SettingRule(why, reading=reading, filling=While.SERVERS)


_BY_PG_RESTORE = "the archive says it itself, and pg_restore sets it"
_ENDS = "it would end a session that works, or waits for another one that works"
_TRANSACTIONS = "it is a transaction's; pg_dump, and what fills a copy, begin their own"
_LIBRARIES = "it loads code: the files are another server's, and an archive may not choose what a server runs"
_HIDES = "it hides damage, or takes away what protects a server"
_LOG = "what a server logs is its own business, and rows may stand in it"
_WATCH = "a restore is watched by it"
_NETWORK = "it is about the network between that server and its clients"
_MEMORY = "it is about how much of a server's memory, processes or disk a session takes; no value depends on it"
_WAL = "it is about the safety and the speed of that server's disk"

#: Setting -> what becomes of it. Names as the server compares them, in lower case.
RULES: Mapping[str, SettingRule] = {
    # ---- what pg_dump, or the server for it, writes differently
    "timezone": _text("UTC", "pg_dump writes timestamptz in it, in rows, defaults and bounds of partitions"),
    "datestyle": _text("ISO", "pg_dump sets it, pg_dumpall (VALID UNTIL) and our own questions do not"),
    "intervalstyle": _text("postgres", "pg_dump sets it; our own questions do not"),
    "bytea_output": _text("hex", "pg_dump writes bytea in it"),
    "extra_float_digits": _text("3", "pg_dump sets it; our own questions do not"),
    "standard_conforming_strings": _text("on", "pg_dump doubles the backslashes of its literals without it"),
    "quote_all_identifiers": _text("off", "the server quotes each name that pg_dump asks it for, and pg_dump lets it"),
    "xmlbinary": _text("base64", "bytea in XML that a server makes while it is asked"),
    "transform_null_equals": _text("off", "a server reads x = NULL differently, in our questions, too"),
    "backslash_quote": _text("safe_encoding", "a server reads literals differently, in our questions, too"),
    "lc_monetary": SettingRule(
        "pg_dump writes money in it, and rows are read back as they were written. So a CHECK on the text of money is "
        "checked in it, too, and not in the source's",
        reading="C",
        filling=While.ARCHIVES,
    ),
    "array_nulls": _pinned("on", "without it NULL in an array, as pg_dump writes it, is read as a text", reading=True),
    "synchronize_seqscans": _pinned("off", "with it, rows are read in an order that changes", reading=True),
    "exit_on_error": _pinned("off", "an error that is expected, and dealt with, would end the session", reading=True),
    "gin_fuzzy_search_limit": SettingRule("with it, a search finds a part of what there is", reading="0", decides=True),
    "escape_string_warning": _servers("it only warns, and pg_dump's warnings are kept", reading="on"),
    "client_min_messages": _servers("it only decides what is told; and pg_restore sets it", reading="notice"),
    # ---- what decides on values, and is not written
    "default_text_search_config": SettingRule("to_tsvector and to_tsquery obey it", decides=True),
    "lc_numeric": SettingRule("to_char and to_number obey it", decides=True),
    "lc_time": SettingRule("to_char obeys it", decides=True),
    "timezone_abbreviations": SettingRule("what IST is, when a time is read", decides=True),
    "plpgsql.variable_conflict": SettingRule("functions obey it", decides=True),
    # ---- what the archive sets itself
    "search_path": _servers(
        f"{_BY_PG_RESTORE}: to nothing, so that no function of another schema is called by mistake"
    ),
    "client_encoding": _servers(_BY_PG_RESTORE),
    "check_function_bodies": _servers(f"{_BY_PG_RESTORE}: to off, as functions come before what they name"),
    "xmloption": _servers(f"{_BY_PG_RESTORE}: to content, which any XML is"),
    "row_security": _servers(f"{_BY_PG_RESTORE}, and pg_dump: to off, so that a row left out is an error"),
    # ---- what would stop a restore
    "default_transaction_read_only": _pinned("off", "nothing could be written"),
    "default_transaction_isolation": _pinned("read committed", "several jobs at a time would refuse each other"),
    "default_transaction_deferrable": _pinned("off", _TRANSACTIONS),
    "transaction_read_only": _servers(_TRANSACTIONS),
    "transaction_isolation": _servers(_TRANSACTIONS),
    "transaction_deferrable": _servers(_TRANSACTIONS),
    "session_replication_role": _pinned("origin", "as replica, no foreign key is checked and no trigger fires"),
    "role": _servers("a restore is made by the role that restores, with its rights and no others"),
    "session_authorization": _servers("a restore is made by the role that restores, with its rights and no others"),
    "statement_timeout": _pinned("0", _ENDS),
    "lock_timeout": _pinned("0", _ENDS),
    "idle_in_transaction_session_timeout": _pinned("0", _ENDS),
    "idle_session_timeout": _pinned("0", f"{_ENDS}: a job of pg_restore waits for the others"),
    "transaction_timeout": _pinned("0", _ENDS),
    "deadlock_timeout": _servers("it decides how soon a deadlock is seen"),
    "icu_validation_level": _pinned("warning", "a collation that the source has is made, whatever ICU says of it"),
    "restrict_nonsystem_relation_kind": _pinned("", "a materialized view of a view could not be refreshed"),
    "temp_file_limit": _servers("an index, or a view, that sorts more than this could not be made"),
    "vacuum_cost_delay": _pinned("0", "ANALYZE would sleep more than it works"),
    "default_tablespace": _pinned("", "a copy stands in its database's own tablespace"),
    "temp_tablespaces": _servers("the source's tablespaces are another server's"),
    # ---- what runs code, or takes protection away
    "jit_dump_bitcode": _servers("it writes files"),
    "allow_system_table_mods": _servers(_HIDES),
    "allow_in_place_tablespaces": _servers(_HIDES),
    "ignore_checksum_failure": _servers(_HIDES),
    "zero_damaged_pages": _servers(_HIDES),
    "lo_compat_privileges": _servers(_HIDES),
    "debug_discard_caches": _servers("it makes a server a hundred times slower"),
    # ---- what is that server's own
    "application_name": _servers("by it our sessions are known to the server"),
    "lc_messages": _servers("messages are read by people here, and by this program"),
    "stats_fetch_consistency": _servers(_WATCH),
    "client_connection_check_interval": _servers(_NETWORK),
    "wal_sender_timeout": _servers(_NETWORK),
    "synchronous_commit": _pinned("off", "whatever is committed afterwards puts all of it on the disk, too"),
    "maintenance_work_mem": _servers("RESTORE_JOBS shares what there is among the jobs; no value depends on it"),
    "work_mem": _servers(_MEMORY),
    "hash_mem_multiplier": _servers(_MEMORY),
    "temp_buffers": _servers(_MEMORY),
    "logical_decoding_work_mem": _servers(_MEMORY),
    "debug_parallel_query": _servers(_MEMORY),
    "force_parallel_mode": _servers(_MEMORY),
}

#: Whole families, by name; what stands above comes first.
FAMILIES: tuple[tuple[re.Pattern[str], SettingRule], ...] = (
    (re.compile(r"\w*(?:librar|preload)\w*|\w+_path|\w+\.(?:on_\w*init|\w*start_proc)"), _servers(_LIBRARIES)),
    (re.compile(r"\w+\.\w*(?:librar|preload)\w*"), _servers(_LIBRARIES)),
    (re.compile(r"log_\w+|debug_(?:print_\w+|pretty_print)|trace_\w+|backtrace_functions"), _servers(_LOG)),
    (re.compile(r"track_\w+|update_process_title|compute_query_id"), _servers(_WATCH)),
    (re.compile(r"tcp_\w+"), _servers(_NETWORK)),
    (re.compile(r"max_parallel_\w+|vacuum_\w+"), _servers(_MEMORY)),
    (re.compile(r"wal_\w+|commit_\w+"), _servers(_WAL)),
)
_OTHERS = SettingRule("a function of the source's may ask for it")

#: Those that end a session, and the major version that knows them first: an option that a server does not know is one
#: it refuses a session for. pg_dump and pg_restore turn most of them off, after they have asked a few questions.
_TIMEOUTS = {
    "statement_timeout": 0,
    "lock_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 14,
    "transaction_timeout": 17,
}
#: What a plain pg_dump does not set, and its text depends on: a dump that was made without us has the source's.
UNSET = ("timezone", "bytea_output", "lc_monetary", "standard_conforming_strings", "quote_all_identifiers")
_WRITABLE = ("default_transaction_read_only", "default_transaction_isolation", "default_transaction_deferrable")
_OPTION = re.compile(r"-c (\w+)=((?:\\.|[^\s\\])*)", re.DOTALL)

#: The statements may hold a secret, and servers write statements to their log. Only a superuser may forbid it.
UNLOGGED = "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1"


def rule(name: str) -> SettingRule:
    """What becomes of a setting."""
    name = name.lower()
    if name in RULES:
        return RULES[name]
    return next((found for family, found in FAMILIES if family.fullmatch(name)), _OTHERS)


def pg_options(settings: Mapping[str, str]) -> str:
    """Settings as ``PGOPTIONS`` takes them."""
    escaped = (re.sub(r"([\s\\])", r"\\\1", value) for value in settings.values())
    return " ".join(f"-c {name}={value}" for name, value in zip(settings, escaped, strict=True))


def read_options(options: str) -> dict[str, str]:
    """The other way round; names in lower case."""
    return {name.lower(): re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL) for name, value in _OPTION.findall(options)}


#: For whatever reads: all that decides how values and SQL are written. Recorded with each dump.
SESSION_OPTIONS = pg_options({name: each.reading for name, each in RULES.items() if each.reading is not None})
#: For the sessions that write, whatever the role or the server is set to.
WRITABLE = pg_options({name: RULES[name].pinned for name in _WRITABLE})
#: Recorded with each dump, as the role that dumps has them.
DECIDING = tuple(name for name, each in RULES.items() if each.decides)


def unended(server_version_num: int = 0, *, since: int = 0) -> str:
    """``PGOPTIONS`` for a session that no timeout ends.

    Args:
        server_version_num: of the server, e.g. 160015; 0 where it is not known: those that every server has.
        since: without those that older majors have, too.
    """
    major = server_version_num // 10000
    return pg_options({name: "0" for name, first in _TIMEOUTS.items() if since <= first <= major})


def as_recorded(options: str) -> str:
    """What a manifest says that its dump ran with, without what says nothing about how values are written.

    It may be forged, and sessions are opened with it: none that loads a library, or becomes another role.
    """
    read = read_options(options)
    return pg_options({name: value for name, value in read.items() if rule(name).reading is not None})
