"""Checks this host: settings, schedule, client programs, alert channels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.doctor.report import Area, Observation, fail, failed, ok, warn
from ovia_backup_dagster.health.head_line import with_log_head
from ovia_backup_dagster.postgres import versions as releases
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.settings.model import PREFIXES, Settings, variable_names
from ovia_backup_dagster.system import BackupSystem

_PROGRAMS = ("pg_dump", "pg_restore", "pg_dumpall")


def settings(system: BackupSystem) -> Iterator[Observation]:
    """The environment variables, the time zone and the schedule."""
    chosen = system.settings
    for problem in chosen.problems:
        yield fail(Area.SETTINGS, problem, "set the variable and start again (docs/configuration.md lists them)")
    if not chosen.problems:
        yield ok(
            Area.SETTINGS, f"all values can be used; database {chosen.postgres_db}, backups in {chosen.backup_dir}"
        )
    for name, other in chosen.unread.items():
        text = f"{name} is set, but not read: {other} is set, too, and comes first"
        yield warn(Area.SETTINGS, text, "unset one of them")
    yield from _unknown_variables()
    if not chosen.problems:  # with problems, no run makes backups, and a default replaces the wrong value here
        yield from _schedule(chosen)


def _unknown_variables() -> Iterator[Observation]:
    known = variable_names()
    for name in sorted(os.environ):
        # POSTGRES_* may be meant for the server's image: report only names that resemble one of ours.
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name not in known and (name.startswith("BACKUP_") or (name.startswith(PREFIXES) and close)):
            meant = f"; did you mean {close[0]}?" if close else ""
            yield warn(Area.SETTINGS, f"{name} is set, but nothing reads it{meant}", f"unset {name}")


def _schedule(chosen: Settings) -> Iterator[Observation]:
    when = f"backups by {chosen.backup_schedule!r} in {chosen.backup_timezone}"
    moved = _hour_that_moves(chosen)
    if moved:
        fix = "choose an hour that every day has, such as BACKUP_SCHEDULE='0 3 * * *' with BACKUP_TIMEZONE=UTC"
        yield warn(Area.SETTINGS, f"{when}: {moved}", fix)
    else:
        yield ok(Area.SETTINGS, when)


def _hour_that_moves(chosen: Settings) -> str:
    """The day within the next year on which the schedule's hour does not exist, as text; empty if there is none."""
    fields = chosen.backup_schedule.split()
    if len(fields) != 5 or not (fields[0].isdigit() and fields[1].isdigit()):
        return ""
    zone = ZoneInfo(chosen.backup_timezone)
    today = datetime.now(zone).replace(hour=int(fields[1]), minute=int(fields[0]), second=0, microsecond=0)
    for days in range(366):
        wall = (today + timedelta(days=days)).replace(fold=0)
        if wall.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != wall.replace(tzinfo=None):
            return f"on {wall:%Y-%m-%d} the clocks skip that hour"
    return ""


def programs(system: BackupSystem) -> Iterator[Observation]:
    """Whether pg_dump and its siblings are installed, of one version, not known as vulnerable, and able to compress."""
    found: dict[str, str] = {}
    for name in _PROGRAMS:
        try:
            found[name] = system.programs.version(name)
        except BackupError as error:
            yield failed(Area.PROGRAMS, error)
    if len(found) < len(_PROGRAMS):
        return
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name} {version}" for name, version in found.items())
        yield warn(Area.PROGRAMS, f"different versions: {each}", "install all from one package, or set PG_BIN_DIR")
    else:
        yield ok(Area.PROGRAMS, f"{', '.join(found)} {found['pg_dump']}")
    yield from _vulnerabilities(found.values())
    yield _compression(system.programs, system.settings.backup_compression)


def _vulnerabilities(versions: Iterable[str]) -> Iterator[Observation]:
    version = min(set(versions), key=lambda text: releases.parse_release(text) or (0, 0))
    parsed = releases.parse_release(version)
    known = releases.known_vulnerabilities(version)
    as_of = f"list of {releases.AS_OF}"
    if known and parsed:
        # A vulnerability that runs code makes a backup untrustworthy, so it is listed first.
        worst = sorted(known, key=lambda v: not v.executes)
        say = fail if worst[0].executes else warn
        newest = f"{parsed[0]}.{releases.newest_minor(parsed[0])}"
        count = "a known vulnerability" if len(known) == 1 else f"{len(known)} known vulnerabilities"
        listed = "; ".join(f"{v.cve}: {v.what}" for v in worst[:2]) + (f"; {len(known) - 2} more" if known[2:] else "")
        yield say(
            Area.PROGRAMS,
            f"version {version} has {count} ({listed}; {as_of})",
            f"install {newest} or newer: apt-get install --only-upgrade postgresql-client-{parsed[0]}; or build the "
            f"image again, from the newest postgres:{parsed[0]} by its digest (docs/runbook.md)",
        )
    elif parsed is None or not releases.newest_minor(parsed[0]):
        yield warn(Area.PROGRAMS, f"version {version} is not in the list of known vulnerabilities", "use a release")
    else:
        yield ok(Area.PROGRAMS, f"no vulnerability of version {version} is known ({as_of})")
    age = datetime.now(UTC).date() - releases.AS_OF
    if age > releases.MAX_AGE:
        text = f"the list of known vulnerabilities is {age.days} days old: PostgreSQL has released fixes since"
        fix = "use a newer ovia-backup-dagster; and compare with https://www.postgresql.org/support/security/"
        yield warn(Area.PROGRAMS, text, fix)


def _compression(programs: Programs, wanted: str) -> Observation:
    try:
        chosen = programs.choose_compression(wanted)
    except BackupError as error:
        return failed(Area.PROGRAMS, error)
    if chosen.startswith("gzip") and wanted == "auto":
        fix = "use client programs with zstd (the postgres:16 image has it): set PG_BIN_DIR"
        return warn(Area.PROGRAMS, f"{chosen}: one of the programs has no zstd; dumps take longer, and are larger", fix)
    return ok(Area.PROGRAMS, f"pg_dump writes and pg_restore reads {chosen}")


def alerts(system: BackupSystem) -> Iterator[Observation]:
    """Whether alerts can reach people."""
    try:
        notifier = system.notifier
    except BackupError as error:
        yield failed(Area.ALERTS, error)
        return
    if not notifier.urls:
        fix = "set BACKUP_NOTIFY_URLS, e.g. mailto://USER:PASSWORD@HOST or slack://TOKEN; then: ovia-backup doctor "
        yield warn(
            Area.ALERTS, "no one is notified when backups fail: BACKUP_NOTIFY_URLS is empty", fix + "--test-alert"
        )
        return
    for channel in notifier.unusable():
        fix = "see the README of Apprise for the URL's form; then: ovia-backup doctor --test-alert"
        yield fail(Area.ALERTS, f"channel {channel} is not a URL that Apprise understands", fix)
    if not notifier.unusable():
        yield ok(Area.ALERTS, f"{len(notifier.urls)} channels; try them: ovia-backup doctor --test-alert")


def test_alert(system: BackupSystem) -> Iterator[Observation]:
    """Send a message to every channel."""
    database = system.settings.postgres_db
    title = f"[{database}] a test of the backup alerts"
    body = with_log_head("Nothing is wrong. This is a test by ovia-backup doctor.", system)
    try:
        delivery = system.notifier.send(title, body, failure=False)
    except BackupError as error:
        yield failed(Area.ALERTS, error)
        return
    for channel in delivery.delivered:
        yield ok(Area.ALERTS, f"channel {channel} accepted a test message: check that it arrived")
    for channel in delivery.failed:
        yield fail(Area.ALERTS, f"channel {channel} did not accept a test message", "check its URL and the network")
