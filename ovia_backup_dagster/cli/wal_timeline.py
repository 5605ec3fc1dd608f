"""``ovia-backup wal timeline``: what happened when, so that people choose an instant to recover to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TextIO

import click

from ovia_backup_dagster.cli.invocation import volume_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.archive import ClusterArchive
    from ovia_backup_dagster.pitr.relation_names import RelationNames
    from ovia_backup_dagster.pitr.wal_position import Lsn
    from ovia_backup_dagster.pitr.wal_timeline import TimelineView, WalTransaction
    from ovia_backup_dagster.system import BackupSystem

_LAST_MINUTES, _AROUND_MINUTES = 60, 10


@click.command("timeline")
@click.option(
    "--around", metavar="TIME", help="Show what happened before and after it; without a zone, it is in BACKUP_TIMEZONE."
)
@click.option(
    "--minutes",
    type=click.IntRange(1, 7 * 24 * 60),
    help=f"How many: back from now ({_LAST_MINUTES}), or with --around in both directions ({_AROUND_MINUTES}).",
)
@json_option
@click.option("--svg", type=click.File("w", encoding="utf-8", atomic=True), help="Draw it into this file.")
def timeline_command(around: str | None, minutes: int | None, as_json: bool, svg: TextIO | None) -> None:
    """List what happened: commits a minute, and tables dropped, truncated, changed, or with many rows deleted.

    Read from the received WAL; the server is asked for the names of tables only, and need not answer. Times are UTC.
    """
    from ovia_backup_dagster.pitr.wal_records import WalReader
    from ovia_backup_dagster.pitr.wal_timeline import view_timeline

    system, now = volume_from_environment(), datetime.now(UTC)
    archive = _archive(system)
    names = _names(system, archive)
    view = view_timeline(
        WalReader(archive, system.programs, scratch=archive.folder),
        database=names.databases.get(system.settings.postgres_db),
        names=names,
        around=_instant(around, now, system) if around is not None else None,
        span=timedelta(minutes=minutes or (_LAST_MINUTES if around is None else _AROUND_MINUTES)),
        now=now,
    )
    title = f"{system.settings.postgres_db}, cluster {archive.system_identifier}, timeline {view.timeline_id}"
    if svg is not None:
        from ovia_backup_dagster.pitr.timeline_chart import svg_of

        svg.write(svg_of(view.told, view.since, view.until, f"Commits a minute: {title}"))
    if as_json:
        print_json({"database": system.settings.postgres_db, "cluster": archive.system_identifier, **_as_dict(view)})
        return
    click.echo(printable(f"{title}: {view.since:%Y-%m-%d %H:%M:%S} to {view.until:%Y-%m-%d %H:%M:%S} UTC"))
    _print(view)
    if any(each.loses_rows for each in view.told.transactions):
        log("Next: a restore to the instant before the last of these losses: --to before-last-drop")


def _archive(system: BackupSystem) -> ClusterArchive:
    """The archive of the cluster whose WAL was received last."""
    from ovia_backup_dagster.core.pitr_errors import WalGapError
    from ovia_backup_dagster.pitr.archive import cluster_archives
    from ovia_backup_dagster.pitr.wal_range import last_received

    archive = last_received(cluster_archives(system.settings.backup_dir))
    if archive is None:
        raise WalGapError(
            "there is nothing to show", why="no WAL was ever received on this volume", fix="ovia-backup wal receive"
        )
    return archive


def _names(system: BackupSystem, archive: ClusterArchive) -> RelationNames:
    """The recorded names of tables, and those that the server has now, if it answers."""
    from ovia_backup_dagster.core.errors import BackupError
    from ovia_backup_dagster.pitr.relation_names import RelationNames, read_relation_names, recorded_names
    from ovia_backup_dagster.postgres.session import connect, system_identifier

    names = RelationNames.of(recorded_names(archive))
    if system.settings.postgres_host is not None:
        try:
            with connect(system.connection) as session:
                if system_identifier(session) in (None, archive.system_identifier):
                    names = names.and_those_of(read_relation_names(session, datetime.now(UTC)))
        except BackupError as error:
            log(f"names of tables are those that were recorded: {error.account}")
    return names


def _instant(text: str, now: datetime, system: BackupSystem) -> datetime:
    from ovia_backup_dagster.pitr.recovery_target import parse_target

    target = parse_target(text, now, system.timezone)
    if target.time is None:
        raise click.UsageError(f"--around takes a time, such as '2026-11-30 10:00', not {text!r}")
    for note in target.notes:
        log(note)
    return target.time


def _print(view: TimelineView) -> None:
    lines: dict[datetime, list[tuple[Lsn, str, bool]]] = {minute.start: [] for minute in view.told.minutes}
    for each in view.told.transactions:
        lines.setdefault(_minute(each.time), []).append((each.lsn, _line(each), each.loses_rows))
    for point in view.told.restore_points:
        if point.after is not None:
            text = f"  after {_clock(point.after)}  {point.lsn!s:<12}  restore point {point.name}"
            lines.setdefault(_minute(point.after), []).append((point.lsn, text, False))
    click.echo(f"{'minute (UTC)':<16}  {'commits':>8}  {'others':>8}  {'beacons':>8}")
    counts = {minute.start: minute for minute in view.told.minutes}
    for start in sorted(lines):
        if (minute := counts.get(start)) is not None:
            click.echo(f"{start:%Y-%m-%d %H:%M}  {minute.commits:>8,}  {minute.others:>8,}  {minute.beacons:>8,}")
        for _, text, loses in sorted(lines[start]):
            click.secho(printable(text), fg="red" if loses else None)
    if not lines:
        click.echo("no commits")


def _line(each: WalTransaction) -> str:
    began = "" if each.complete else ", began before"
    return (
        f"  {_clock(each.time)}  {each.lsn!s:<12}  xid {each.xid:<10}  {each.text}  ({each.records:,} records{began})"
    )


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"


def _as_dict(view: TimelineView) -> dict[str, Any]:
    return {
        "timeline": view.timeline_id,
        "since": view.since.isoformat(),
        "until": view.until.isoformat(),
        "minutes": [
            {
                "start": each.start.isoformat(),
                "commits": each.commits,
                "others": each.others,
                "beacons": each.beacons,
            }
            for each in view.told.minutes
        ],
        "transactions": [
            {
                "time": each.time.isoformat(),
                "lsn": str(each.lsn),
                "xid": each.xid,
                "records": each.records,
                "loses_rows": each.loses_rows,
                "complete": each.complete,
                "changes": [
                    {
                        "kind": change.kind.value,
                        "table": change.table,
                        "named": change.named,
                        "deleted": change.deleted,
                        "inserted": change.inserted,
                        "detail": change.detail,
                    }
                    for change in each.changes
                ],
            }
            for each in view.told.transactions
        ],
        "restore_points": [
            {
                "name": each.name,
                "lsn": str(each.lsn),
                "after": each.after.isoformat() if each.after is not None else None,
            }
            for each in view.told.restore_points
        ],
    }
