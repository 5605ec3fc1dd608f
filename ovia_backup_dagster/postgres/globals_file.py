"""What a saved globals file says of roles, read as data: text of it is never run where roles matter.

``pg_dumpall --globals-only`` writes few kinds of statements, and each is read by a strict grammar. What is not one of
them is not understood, and is said to be so. Who makes the roles is ``roles``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from ovia_backup_dagster.postgres.archive import encoding, in_utf8
from ovia_backup_dagster.postgres.data_stream import decode_text, statements
from ovia_backup_dagster.postgres.quoting import sql_identifier

#: What a role has if nothing is said of it.
_DEFAULT = frozenset({"INHERIT"})
_FLAGS = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")
#: What reaches beyond a role's own objects: a role is not given it on the strength of a file that may be forged.
PRIVILEGED = ("SUPERUSER", "CREATEROLE", "REPLICATION", "BYPASSRLS")
#: As pg_dumpall writes names: keywords (``current_user``, ``all``), upper case and everything odd stand in quotes.
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
#: Who granted what follows is no matter, as with memberships.
_OF_SESSION = re.compile(rb"SET \w+ = |(?:RE)?SET SESSION AUTHORIZATION")
#: What a session can set without power over others: the language of its messages, what is counted of it.
_HARMLESS = frozenset({"lc_messages", "compute_query_id", "track_functions", "track_io_timing", "track_wal_io_timing"})
PUBLIC = "PUBLIC"


@dataclass(slots=True)
class Role:
    """A role as it was saved.

    Attributes:
        quoted: its name as the file writes it.
        flags: the attributes that it has, of ``SUPERUSER``, ``LOGIN`` and so on.
        limit: of connections at a time; -1 for none.
        until: how long its password holds, as a literal; empty: for ever.
        password: whether the file holds a password.
        settings: parameter -> value, as SQL takes both.
        comment: as a literal; empty for none.
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
    """With what options a role is a member of another; by whom it was granted does not matter."""

    admin: bool = False
    inherit: bool | None = None
    set: bool = True

    def __or__(self, other: Membership) -> Membership:
        return Membership(self.admin or other.admin, self.inherit or other.inherit, self.set or other.set)


@dataclass(frozen=True, slots=True)
class ParameterGrant:
    """What a role may do with a configuration parameter.

    Attributes:
        grantee: a role's name; :data:`PUBLIC` for everybody.
        privileges: of ``SET`` and ``ALTER SYSTEM``.
        parameter: as the file writes it.
        grantable: ``WITH GRANT OPTION``.
    """

    grantee: str
    privileges: tuple[str, ...]
    parameter: bytes
    grantable: bool = False

    @property
    def harmless(self) -> bool:
        """Whether it gives no power over others."""
        return self.privileges == ("SET",) and not self.grantable and name_of(self.parameter) in _HARMLESS

    @property
    def statement(self) -> str:
        """The statement that gives it."""
        to = PUBLIC if self.grantee == PUBLIC else sql_identifier(self.grantee)
        option = " WITH GRANT OPTION" if self.grantable else ""
        return f"GRANT {', '.join(self.privileges)} ON PARAMETER {decode_text(self.parameter)} TO {to}{option}"


@dataclass(slots=True)
class Globals:
    """What a globals file says.

    Attributes:
        roles: by name.
        members: (group, member) -> how.
        parameters: what roles may do with the server's settings.
        others: privileges on parameters and security labels, as statements.
        not_understood: statements that are none of pg_dumpall's, their first words.
    """

    roles: dict[str, Role] = field(default_factory=dict)
    members: dict[tuple[str, str], Membership] = field(default_factory=dict)
    parameters: list[ParameterGrant] = field(default_factory=list)
    others: set[bytes] = field(default_factory=set)
    not_understood: list[str] = field(default_factory=list)


def parse_globals(script: bytes) -> Globals:
    """Read a globals file, as UTF-8. A statement that is not understood adds nothing to what it says of roles."""
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
            return False  # all of it or nothing
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
    """What is not the same of the saved roles and of those that were made of them.

    A privilege that is lost or gained is bad: an application cannot work, or a role may do what it must not. What only
    changes how a role works (a setting, a comment, a limit) is odd.

    Args:
        saved: what the file says.
        made: what the server says that the file was replayed into.
        superuser: that server's bootstrap superuser, which was there before.

    Returns:
        What is bad, and what is odd.
    """
    bad: list[str] = []
    odd: list[str] = []
    for name in sorted({*saved.roles, *made.roles} - {superuser}):
        before, after = saved.roles.get(name), made.roles.get(name)
        if before is None or after is None:
            bad.append(f"role {name} was {'made, but not saved' if before is None else 'saved, but not made'}")
            continue
        lost, gained = (before.flags - after.flags, after.flags - before.flags)
        bad += [f"role {name} has not {_listed(lost)} any more"] if lost else []
        bad += [f"role {name} has gained {_listed(gained)}"] if gained else []
        odd += [f"role {name} has another {what}" for what in _variations(before, after)]
    for group, member in sorted({*saved.members, *made.members}):
        was, now = _effective(saved, group, member), _effective(made, group, member)
        if was != now:
            how = "not a member of" if now is None else "now a member of" if was is None else "with other options in"
            bad.append(f"role {member} is {how} {group}")
    for statement in sorted(saved.others ^ made.others):
        text = " ".join(decode_text(statement).split()[:5])
        (odd if statement.startswith(b"SECURITY") else bad).append(f"{text} ... stands on one side only")
    if saved.not_understood:
        example = saved.not_understood[0]
        odd.append(f"{len(saved.not_understood)} statements are not about roles, or not understood, such as: {example}")
    return bad, odd


def _effective(whole: Globals, group: str, member: str) -> Membership | None:
    """Where nothing is said, a membership is inherited if its member inherits."""
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
    """The same in every time zone: what older programs saved was written in the server's."""
    try:
        return datetime.fromisoformat(decode_text(until).strip("'"))
    except ValueError:
        return until


def _listed(flags: Collection[str]) -> str:
    return ", ".join(flag for flag in _FLAGS if flag in flags)


@dataclass(frozen=True, slots=True)
class Making:
    """How one role is made on a server that has others.

    Attributes:
        name: the role's.
        role: as it was saved.
        trusted: whether a person has named it: it gets everything but a password.
        flags: the attributes that it gets.
        groups: what it becomes a member of, and how.
        parameters: what it may do with the server's settings.
        left_out: the statements that give it what it does not get.
    """

    name: str
    role: Role
    trusted: bool
    flags: frozenset[str]
    groups: Mapping[str, Membership]
    parameters: tuple[ParameterGrant, ...]
    left_out: tuple[str, ...]


def making(saved: Globals, names: Collection[str], privileged: Collection[str]) -> list[Making]:
    """How roles are made so that a forged file gives no one power: a pure function.

    A role that is not named gets no attribute of :data:`PRIVILEGED`, may set no parameter of the server's that reaches
    others, and becomes a member only of roles that are made with it and are not named either. What the server has
    already, predefined roles among it, is not handed out.

    Args:
        saved: what the file says.
        names: the roles to make.
        privileged: those of them that a person has named.
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
