"""What a person wrote after ``--to``: a time, a position, a transaction, a restore point, or ``before-last-drop``.

Pure: ``now`` and the time zone are arguments. What can mean two things is refused, with both. Which commit a target is,
and whether it can be recovered, is for ``target_resolution``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import Enum
from zoneinfo import ZoneInfo

from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.wal_position import Lsn

BEFORE_LAST_DROP = "before-last-drop"
_LSN = re.compile(r"(?P<said>lsn[: ]\s*)?(?P<lsn>[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})", re.IGNORECASE)
_XID = re.compile(r"xid[: ]\s*(?P<xid>[0-9]{1,10})", re.IGNORECASE)
_NAME = re.compile(r"name:\s*(?P<name>.+)", re.IGNORECASE)
#: A day and a month, which are also two hex numbers.
_DAY = re.compile(r"[0-9]{1,2}/[0-9]{1,2}")
_AGO = re.compile(r"((?:[0-9]+(?:\.[0-9]+)? ?[a-z]+,? )+)ago", re.IGNORECASE)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+)", re.IGNORECASE)
_TIME = re.compile(
    r"(?:(?P<day>\d{4}-\d\d-\d\d|today|yesterday)[T ]\s*)?"
    r"(?P<time>\d{1,2}:\d\d(?::\d\d(?:[.,]\d{1,6})?)?)"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?|[A-Za-z]+(?:/[A-Za-z_+-]+)+)?",
    re.IGNORECASE,
)
#: A name may not look like a time, a number or a position.
_UNLIKE_NAME = re.compile(r"[0-9+-].*|.*\d:\d.*", re.DOTALL)
_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("week", "weeks"), 7 * 86400),
}
_FORMS = "2026-11-30 10:00:01, 10:00:01, '5 minutes ago', 0/3000060, xid:1234, name:NAME or before-last-drop"


class TargetKind(Enum):
    """How the target is given."""

    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"
    BEFORE_LAST_DROP = BEFORE_LAST_DROP


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """A target as it was asked for.

    Attributes:
        kind: which of the next four counts.
        text: as it was written.
        time: what was committed until then is kept (UTC).
        lsn: what was committed up to this position is kept.
        xid: the last transaction that is kept.
        name: the restore point up to which is kept.
        notes: how the text was understood, where it leaves something open.
    """

    kind: TargetKind
    text: str
    time: datetime | None = None
    lsn: Lsn | None = None
    xid: int | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()


def parse_target(text: str, now: datetime, timezone: tzinfo = UTC) -> RecoveryTarget:
    """Read what follows ``--to``.

    Args:
        text: a time with or without date, zone and fraction; ``5 minutes ago``; ``0/3000060``; ``xid:1234``;
            ``name:NAME``, or just the name of a restore point; ``before-last-drop``.
        now: the present (aware).
        timezone: of times without a zone.

    Raises:
        RecoveryTargetError: it is none of these, can mean two things, or is in the future.
    """
    text = " ".join(text.split())
    if text.lower() == BEFORE_LAST_DROP:
        return RecoveryTarget(TargetKind.BEFORE_LAST_DROP, text)
    if match := _NAME.fullmatch(text):
        return RecoveryTarget(TargetKind.NAME, text, name=match["name"])
    if match := _XID.fullmatch(text):
        return RecoveryTarget(TargetKind.XID, text, xid=int(match["xid"]))
    if match := _LSN.fullmatch(text):
        if not match["said"] and _DAY.fullmatch(text):
            raise _refused(
                text, "it can be a day or a position in the WAL", f"write lsn:{text}, or 2026-11-30 10:00:01"
            )
        return RecoveryTarget(TargetKind.LSN, text, lsn=Lsn.parse(match["lsn"]))
    if match := _AGO.fullmatch(text):
        return RecoveryTarget(TargetKind.TIME, text, time=_not_in_future(text, _ago(text, match[1], now), now))
    if match := _TIME.fullmatch(text):
        return _at_time(text, match, now, timezone)
    if text.isdigit():
        raise _refused(text, "a number can be a transaction or a day", f"write xid:{text}, or 2026-11-30 10:00:01")
    if re.fullmatch(r"\d{4}-\d\d-\d\d|today|yesterday", text, re.IGNORECASE):
        raise _refused(text, "a day is not an instant", f"add the time: '{text} 10:00:01'")
    if not text or _UNLIKE_NAME.fullmatch(text):
        raise _refused(text, "it is neither a time, a position, a transaction nor a name", f"write one of: {_FORMS}")
    return RecoveryTarget(TargetKind.NAME, text, name=text)


def _ago(text: str, parts: str, now: datetime) -> datetime:
    total = 0.0
    for number, unit in _PART.findall(parts):
        if unit.lower() not in _SECONDS:
            raise _refused(text, f"{unit!r} is not a unit of time", "use seconds, minutes, hours, days or weeks")
        total += float(number) * _SECONDS[unit.lower()]
    try:
        return now - timedelta(seconds=total)
    except OverflowError:
        raise _refused(text, "that is before the year 1", "give a later time") from None


def _at_time(text: str, match: re.Match[str], now: datetime, timezone: tzinfo) -> RecoveryTarget:
    zone = _zone(text, match["zone"], timezone)
    today = now.astimezone(zone).date()
    try:
        hour, minute, second = f"{match['time']}:0".replace(",", ".").split(":")[:3]
        clock = _clock(int(hour), int(minute), second)
        day = _day(match["day"], today)
    except ValueError as error:
        raise _refused(text, f"such a time does not exist: {error}", "write 2026-11-30 10:00:01") from None
    notes: list[str] = []
    if day is None:
        day = today
        if _exact(text, datetime.combine(today, clock), zone) > now:
            day -= timedelta(days=1)
        which = "today" if day == today else "yesterday"
        notes.append(f"{match['time']} without a day: {which}, {day.isoformat()}")
    if not match["zone"]:
        notes.append(f"no zone was given: {zone}")
    at = _not_in_future(text, _exact(text, datetime.combine(day, clock), zone), now)
    return RecoveryTarget(TargetKind.TIME, text, time=at, notes=tuple(notes))


def _clock(hour: int, minute: int, second: str) -> time:
    whole, _, fraction = second.partition(".")
    return time(hour, minute, int(whole), int(fraction.ljust(6, "0")))


def _day(word: str | None, today: date) -> date | None:
    if word is None:
        return None
    words = {"today": today, "yesterday": today - timedelta(days=1)}
    return words.get(word.lower()) or date.fromisoformat(word)


def _zone(text: str, word: str | None, default: tzinfo) -> tzinfo:
    if not word:
        return default
    if word.upper() in ("Z", "UTC", "GMT"):
        return UTC
    try:
        if word[0] in "+-":
            offset = word if len(word) > 3 else f"{word}:00"
            return datetime.fromisoformat(f"2000-01-01T00:00{offset}").tzinfo or UTC
        return ZoneInfo(word)
    except (KeyError, ValueError, OSError):
        why = f"{word!r} is not a time zone"
        raise _refused(text, why, "write the offset, such as +01:00, or a zone such as Europe/Berlin") from None


def _exact(text: str, local: datetime, zone: tzinfo) -> datetime:
    """The instant of a local time (UTC).

    Raises:
        RecoveryTargetError: at a change of the clock, this time exists twice, or not at all.
    """
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return first
    if first < second:
        why = f"in {zone}, this time exists twice: {_utc(first)} and {_utc(second)}"
    else:
        why = f"in {zone}, this time does not exist, because clocks were put forward: {_utc(second)} or {_utc(first)}"
    raise _refused(text, why, f"give one of them, such as '{_utc(min(first, second))}'")


def _not_in_future(text: str, at: datetime, now: datetime) -> datetime:
    if at > now:
        raise _refused(text, f"{_utc(at)} is in the future: it is {_utc(now)}", "give a time that has passed")
    return at.astimezone(UTC)


def _utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _refused(text: str, why: str, fix: str) -> RecoveryTargetError:
    return RecoveryTargetError(f"{text!r} does not name one instant", why=why, fix=fix)
