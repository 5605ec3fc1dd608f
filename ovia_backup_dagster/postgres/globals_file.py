"""Parses the roles in a saved globals file as data; its text is never executed on a server whose roles matter.

``pg_dumpall --globals-only`` writes few kinds of statements, and a strict grammar parses each. Any other statement is
reported as not understood. The modules named ``roles`` create the roles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from ovia_backup_dagster.postgres.archive import encoding, in_utf8
from ovia_backup_dagster.postgres.data_stream import decode_text, statements
from ovia_backup_dagster.postgres.quoting import sql_identifier

#: The attributes of a role for which nothing is specified.
_DEFAULT = frozenset({"INHERIT"})
_FLAGS = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")
#: Attributes that reach beyond a role's own objects: the file may be forged, so it alone does not grant them.
PRIVILEGED = ("SUPERUSER", "CREATEROLE", "REPLICATION", "BYPASSRLS")
#: Names as pg_dumpall writes them: keywords (``current_user``, ``all``), upper case and unusual characters are quoted.
_NAME = rb'("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
_NAME_OR_PUBLIC = rb'("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*|PUBLIC)'
_PSEUDO_ROLES = frozenset({"all", "current_role", "current_user", "none", "public", "session_user"})
_LITERAL = rb"(?: ?E'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*')"
_ROLE = re.compile(rb"(CREATE|ALTER) ROLE " + _NAME + rb"(?: WITH)?((?: [^;]*)?);\s*\Z")
_OPTION = re.compile(
    rb" (?:(?P<no>NO)?(?P<flag>" + "|".join(_FLAGS).encode() + rb")(?= |\Z)|CONNECTION LIMIT (?P<limit>-?[0-9]+)"
    rb"|VALID UNTIL (?P<until>" + _LITERAL + rb")|(?:ENCRYPTED )?(?P<password>PASSWORD) (?:NULL|" + _LITERAL + rb"))"
)
_SETTING = re.compile(
    rb"ALTER ROLE " + _NAME + rb" SET ([A-Za-z_][\w.$]*|\"(?:[^\"]|\"\")+\") TO (.+?);\s*\Z", re.DOTALL
)
_COMMENT = re.compile(rb"COMMENT ON ROLE " + _NAME + rb" IS (" + _LITERAL + rb");\s*\Z")
_MEMBER = re.compile(
    rb"GRANT " + _NAME + rb" TO " + _NAME + rb"(?: WITH ((?:(?:ADMIN|INHERIT|SET) (?:OPTION|TRUE|FALSE)(?:, )?)+))?"
    rb"(?: GRANTED BY " + _NAME + rb")?;\s*\Z"
)
_PARAMETER = re.compile(
    rb"GRANT (ALL|SET|ALTER SYSTEM|(?:SET,ALTER SYSTEM)) ON PARAMETER "
    + _NAME
    + rb" TO "
    + _NAME_OR_PUBLIC
    + rb"( WITH GRANT OPTION)?;\s*\Z"
)
#: Privileges on configuration parameters, and security labels.
_OTHER = re.compile(rb"(?:GRANT|REVOKE) [A-Z, ]+ ON PARAMETER |SECURITY LABEL FOR .* ON ROLE ")
_OF_TABLESPACE = re.compile(rb"(?:CREATE|ALTER|COMMENT ON|(?:GRANT|REVOKE) [A-Z ,]+ ON) TABLESPACE ")
#: Session settings. They set the grantor of the privileges that follow, which does not matter.
_OF_SESSION = re.compile(rb"SET \w+ = |(?:RE)?SET SESSION AUTHORIZATION")
#: Parameters that give a session no power over others: the language of its messages, the statistics about it.
_HARMLESS = frozenset({"lc_messages", "compute_query_id", "track_functions", "track_io_timing", "track_wal_io_timing"})
PUBLIC = "PUBLIC"


@dataclass(slots=True)
class Role:
    """A role as it was saved.

    Attributes:
        quoted: its name as the file writes it.
        flags: its attributes: ``SUPERUSER``, ``LOGIN`` and so on.
        limit: the maximum number of concurrent connections; -1 for none.
        until: when its password expires, as an SQL literal; empty for never.
        password: whether the file contains a password.
        settings: parameter -> value, both as SQL.
        comment: as an SQL literal; empty for none.
    """

    quoted: bytes
    flags: frozenset[str] = _DEFAULT
    limit: int = -1
    until: bytes = b""
    password: bool = False
    settings: dict[bytes, bytes] = field(default_factory=dict)
    comment: bytes = b""


@dataclass(frozen=True, slots=True)
class Membership:
    """The options of a role's membership in another; the grantor does not matter."""

    admin: bool = False
    inherit: bool | None = None
    set: bool = True

    def __or__(self, other: Membership) -> Membership:
        return Membership(self.admin or other.admin, self.inherit or other.inherit, self.set or other.set)


@dataclass(frozen=True, slots=True)
class ParameterGrant:
    """What a role may do with a configuration parameter.

    Attributes:
        grantee: a role's name, or :data:`PUBLIC`.
        privileges: ``SET``, ``ALTER SYSTEM``, or both.
        parameter: as the file writes it.
        grantable: whether ``WITH GRANT OPTION`` is set.
    """

    grantee: str
    privileges: tuple[str, ...]
    parameter: bytes
    grantable: bool = False

    @property
    def harmless(self) -> bool:
        """Whether the grant gives no power over others."""
        return self.privileges == ("SET",) and not self.grantable and name_of(self.parameter) in _HARMLESS

    @property
    def statement(self) -> str:
        """The GRANT statement."""
        to = PUBLIC if self.grantee == PUBLIC else sql_identifier(self.grantee)
        option = " WITH GRANT OPTION" if self.grantable else ""
        return f"GRANT {', '.join(self.privileges)} ON PARAMETER {decode_text(self.parameter)} TO {to}{option}"


@dataclass(slots=True)
class Globals:
    """The contents of a globals file.

    Attributes:
        roles: by name.
        members: (group, member) -> the options of the membership.
        parameters: the roles' privileges on the server's configuration parameters.
        others: privileges on parameters and security labels, as statements.
        not_understood: the first words of statements that pg_dumpall does not write.
    """

    roles: dict[str, Role] = field(default_factory=dict)
    members: dict[tuple[str, str], Membership] = field(default_factory=dict)
    parameters: list[ParameterGrant] = field(default_factory=list)
    others: set[bytes] = field(default_factory=set)
    not_understood: list[str] = field(default_factory=list)


def parse_globals(script: bytes) -> Globals:
    """Parse a globals file, converted to UTF-8. A statement that cannot be parsed does not affect the roles."""
    found = Globals()
    for statement in statements(in_utf8(script, encoding(script))):
        if _OF_TABLESPACE.match(statement) or _OF_SESSION.match(statement):
            continue
        if not _read(found, statement):
            found.not_understood.append(" ".join(decode_text(statement).split()[:3]))
    return found


def _read(found: Globals, statement: bytes) -> bool:
    if match := _SETTING.match(statement):
        role = found.roles.get(name_of(match[1]))
        if role is not None:
            role.settings[match[2]] = match[3]
        return role is not None
    if match := _COMMENT.match(statement):
        role = found.roles.get(name_of(match[1]))
        if role is not None:
            role.comment = match[2]
        return role is not None
    if match := _MEMBER.match(statement):
        key = name_of(match[1]), name_of(match[2])
        options = dict(option.split() for option in decode_text(match[3] or b"").split(", ") if option)
        given = {name: value != "FALSE" for name, value in options.items()}
        how = Membership(given.get("ADMIN", False), given.get("INHERIT"), given.get("SET", True))
        found.members[key] = found.members[key] | how if key in found.members else how
        return True
    if match := _ROLE.match(statement):
        return _role(found, match[1] == b"CREATE", match[2], match[3])
    if match := _PARAMETER.match(statement):
        privileges = ("SET", "ALTER SYSTEM") if match[1] == b"ALL" else tuple(decode_text(match[1]).split(","))
        grantee = PUBLIC if match[3] == b"PUBLIC" else name_of(match[3])
        found.parameters.append(ParameterGrant(grantee, privileges, match[2], bool(match[4])))
    if _OTHER.match(statement):
        found.others.add(b" ".join(statement.split()))
        return True
    return False


def _role(found: Globals, made: bool, quoted: bytes, options: bytes) -> bool:
    name = name_of(quoted)
    if decode_text(quoted) in _PSEUDO_ROLES or (made is (name in found.roles)):
        return False
    role = Role(quoted) if made else found.roles[name]
    flags, limit, until, password = set(role.flags), role.limit, role.until, role.password
    at, end = 0, len(options.rstrip())
    while at < end:
        option = _OPTION.match(options, at)
        if option is None:
            return False  # a statement counts only if all of it is understood
        if option["flag"]:
            (flags.discard if option["no"] else flags.add)(decode_text(option["flag"]))
        limit = int(option["limit"]) if option["limit"] else limit
        until = option["until"] or until
        password = password or bool(option["password"])
        at = option.end()
    role.flags, role.limit, role.until, role.password = frozenset(flags), limit, until, password
    found.roles[name] = role
    return True


def name_of(quoted: bytes) -> str:
    """A role's name, without the quotes that SQL needs."""
    name = decode_text(quoted)
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def role_differences(saved: Globals, made: Globals, superuser: str) -> tuple[list[str], list[str]]:
    """The differences between the saved roles and those that were created from them.

    A lost or gained privilege is bad: an application cannot work, or a role may do what it must not. A difference that
    only changes how a role works (a setting, a comment, a limit) is odd.

    Args:
        saved: the roles in the file.
        made: the roles on the server into which the file was replayed.
        superuser: that server's bootstrap superuser, which existed before.

    Returns:
        The bad differences, and the odd ones.
    """
    bad: list[str] = []
    odd: list[str] = []
    for name in sorted({*saved.roles, *made.roles} - {superuser}):
        before, after = saved.roles.get(name), made.roles.get(name)
        if before is None or after is None:
            bad.append(f"role {name} was {'created, but not saved' if before is None else 'saved, but not created'}")
            continue
        lost, gained = (before.flags - after.flags, after.flags - before.flags)
        bad += [f"role {name} no longer has {_listed(lost)}"] if lost else []
        bad += [f"role {name} has gained {_listed(gained)}"] if gained else []
        odd += [f"role {name} has a different {what}" for what in _variations(before, after)]
    for group, member in sorted({*saved.members, *made.members}):
        was, now = _effective(saved, group, member), _effective(made, group, member)
        if was != now:
            how = "not a member of" if now is None else "now a member of" if was is None else "with other options in"
            bad.append(f"role {member} is {how} {group}")
    for statement in sorted(saved.others ^ made.others):
        text = " ".join(decode_text(statement).split()[:5])
        (odd if statement.startswith(b"SECURITY") else bad).append(f"{text} ... is on one side only")
    if saved.not_understood:
        example = saved.not_understood[0]
        odd.append(f"{len(saved.not_understood)} statements are not about roles, or not understood, such as: {example}")
    return bad, odd


def _effective(whole: Globals, group: str, member: str) -> Membership | None:
    """The membership with its default resolved: without an INHERIT option, the member's INHERIT attribute applies."""
    found = whole.members.get((group, member))
    if found is None or found.inherit is not None:
        return found
    role = whole.roles.get(member)
    return replace(found, inherit=role is None or "INHERIT" in role.flags)


def _variations(before: Role, after: Role) -> Iterator[str]:
    names = sorted({*before.settings, *after.settings})
    changed = [decode_text(name) for name in names if before.settings.get(name) != after.settings.get(name)]
    if changed:
        yield f"setting: {', '.join(changed)}"
    if before.comment != after.comment:
        yield "comment"
    if before.limit != after.limit:
        yield "limit of connections"
    if _instant(before.until) != _instant(after.until):
        yield "end of its password"


def _instant(until: bytes) -> object:
    """The instant independent of its time zone: older programs saved it in the server's time zone."""
    try:
        return datetime.fromisoformat(decode_text(until).strip("'"))
    except ValueError:
        return until


def _listed(flags: Collection[str]) -> str:
    return ", ".join(flag for flag in _FLAGS if flag in flags)


@dataclass(frozen=True, slots=True)
class Making:
    """How to create one role on a server that has other roles.

    Attributes:
        name: the role's name.
        role: the role as it was saved.
        trusted: whether a person named the role: then it gets everything but a password.
        flags: the attributes that it gets.
        groups: the roles of which it becomes a member, with the options.
        parameters: the privileges on configuration parameters that it gets.
        left_out: the statements that would grant what it does not get.
    """

    name: str
    role: Role
    trusted: bool
    flags: frozenset[str]
    groups: Mapping[str, Membership]
    parameters: tuple[ParameterGrant, ...]
    left_out: tuple[str, ...]


def making(saved: Globals, names: Collection[str], privileged: Collection[str]) -> list[Making]:
    """Decide how to create roles so that a forged file gives no role power over others: a pure function.

    A role that no person named gets no attribute of :data:`PRIVILEGED` and no privilege on a parameter that affects
    others. It becomes a member only of roles that are created with it and that no person named, either. Membership in
    roles that the server has already, such as predefined roles, is not granted.

    Args:
        saved: the contents of the file.
        names: the roles to create.
        privileged: the roles among them that a person named.
    """
    found = []
    for name in names:
        role, trusted = saved.roles[name], name in privileged
        groups = {group: how for (group, member), how in saved.members.items() if member == name}
        kept = {g: how for g, how in groups.items() if trusted or (g in names and g not in privileged)}
        without = [] if trusted else [flag for flag in PRIVILEGED if flag in role.flags]
        me = sql_identifier(name)
        left_out = [f"ALTER ROLE {me} {' '.join(without)}"] if without else []
        left_out += [f"GRANT {sql_identifier(group)} TO {me}" for group in groups if group not in kept]
        granted = [grant for grant in saved.parameters if grant.grantee == name]
        given = tuple(grant for grant in granted if trusted or grant.harmless)
        left_out += [grant.statement for grant in granted if grant not in given]
        found.append(Making(name, role, trusted, role.flags - set(without), kept, given, tuple(left_out)))
    return found
