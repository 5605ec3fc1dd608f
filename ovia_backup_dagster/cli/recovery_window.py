"""``ovia-backup recovery-window``: from when to when any instant can be recovered, and why not elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import volume_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.receiver_status import ReceiverStatus
    from ovia_backup_dagster.pitr.recovery_catalog import Base, Hole, RecoveryCatalog, Stretch
    from ovia_backup_dagster.pitr.recovery_windows import ClusterState
    from ovia_backup_dagster.pitr.room_forecast import RoomForecast
    from ovia_backup_dagster.system import BackupSystem

_ANSWERS = {True: "yes", False: "bad", None: "no"}


@click.command("recovery-window")
@json_option
def recovery_window_command(as_json: bool) -> None:
    """Say from when to when any instant can be recovered, with which base backups, and where there are holes.

    Read from the volume alone; times are UTC. The cluster that WAL was received from last comes first. Exit code 1:
    nothing of it can be recovered.
    """
    from ovia_backup_dagster.pitr.receiver_status import read_status
    from ovia_backup_dagster.pitr.recovery_windows import read_states

    system, now = volume_from_environment(), datetime.now(UTC)
    root = system.settings.backup_dir
    states = read_states(root)
    if not states:
        click.echo("ovia-backup: no WAL was ever received on this volume. Next: ovia-backup wal receive", err=True)
        sys.exit(FAILED)
    status = read_status(root)
    if as_json:
        print_json([_as_dict(state, _room(system, state, now), _its(status, state), now) for state in states])
    else:
        for state in states:
            for line in _lines(state, _room(system, state, now), _its(status, state), now):
                click.echo(printable(line))
            _print_bases(state.catalog)
    sys.exit(0 if states[0].catalog.stretches else FAILED)


def _its(status: ReceiverStatus | None, state: ClusterState) -> ReceiverStatus | None:
    """The receiver's report, if it is about this cluster."""
    return status if status and status.system_identifier == state.archive.system_identifier else None


def _room(system: BackupSystem, state: ClusterState, now: datetime) -> RoomForecast:
    from ovia_backup_dagster.core.files import as_volume_error
    from ovia_backup_dagster.pitr.room_forecast import forecast_room
    from ovia_backup_dagster.pitr.standing_reader import wal_bytes_per_day

    with as_volume_error(f"cannot inspect {state.archive.folder}"):
        free = shutil.disk_usage(state.archive.folder).free
    return forecast_room(
        state.catalog,
        window=system.pitr.window,
        base_period=system.pitr.base_period,
        wal_bytes_per_day=wal_bytes_per_day(state.archived.values(), now),
        stored_bytes=state.archived_bytes + sum(base.size_bytes for base in state.catalog.bases),
        free_bytes=free,
    )


def _lines(state: ClusterState, room: RoomForecast, status: ReceiverStatus | None, now: datetime) -> Iterator[str]:
    from ovia_backup_dagster.core.human_text import human_bytes, seconds

    catalog, facts = state.catalog, state.archive.facts
    yield f"cluster {facts.system_identifier}, PostgreSQL {facts.major}, timeline {catalog.newest.number}"
    yield from (_stretch_line(stretch, catalog) for stretch in catalog.stretches)
    if not any(stretch.timeline == catalog.newest.number for stretch in catalog.stretches):
        yield f"  nothing can be recovered: {catalog.why_no_window()}. Next: ovia-backup base-backup"
    yield from (_hole_line(hole, state) for hole in catalog.holes)
    yield from (f"  base backup {each.folder.name} cannot be used: {each.why}" for each in state.incomplete)
    if status is not None and (rpo := status.rpo_seconds(now)) is not None:
        worst = status.worst_rpo_seconds
        most = f"; the most in the last day: {seconds(worst)}" if worst is not None else ""
        yield f"  changes that would be lost with the server now: the last {seconds(rpo)}{most}"
    growth = f", {human_bytes(room.wal_bytes_per_day)} a day" if room.wal_bytes_per_day else ""
    yield f"  WAL: {len(state.archived):,} segments, {human_bytes(state.archived_bytes)}{growth}"
    yield _room_line(room)


def _stretch_line(stretch: Stretch, catalog: RecoveryCatalog) -> str:
    from ovia_backup_dagster.core.human_text import duration
    from ovia_backup_dagster.pitr.recovery_catalog import shown_time

    begin = f"{shown_time(stretch.from_time)} ({stretch.from_lsn})"
    end = f"{shown_time(stretch.to_time)} ({stretch.to_lsn})"
    span = duration(stretch.to_time - stretch.from_time)
    abandoned = "" if stretch.timeline == catalog.newest.number else f" on timeline {stretch.timeline}"
    return f"  any instant from {begin} to {end}{abandoned}, {span}: {stretch.why_it_ends}"


def _hole_line(hole: Hole, state: ClusterState) -> str:
    from ovia_backup_dagster.pitr.recovery_catalog import shown_time

    after = "the beginning" if hole.after is None else state.archive.name(hole.after)
    times = [shown_time(time) for time in (hole.since, hole.until) if time is not None]
    when = f" ({' to '.join(times)})" if times else ""
    return f"  hole: WAL is missing between {after} and {state.archive.name(hole.before)}{when}"


def _room_line(room: RoomForecast) -> str:
    from ovia_backup_dagster.core.human_text import duration, human_bytes

    now = f"{human_bytes(room.stored_bytes)} are stored, {human_bytes(room.free_bytes)} free"
    if room.needed_bytes is None:
        return f"  room: {now}; what a window of {duration(room.window)} needs is unknown yet"
    verdict = "" if room.fits else ": TOO LITTLE; enlarge the volume, or lower RECOVERY_WINDOW_DAYS"
    return f"  room: a window of {duration(room.window)} needs up to {human_bytes(room.needed_bytes)}; {now}{verdict}"


def _print_bases(catalog: RecoveryCatalog) -> None:
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.pitr.recovery_catalog import shown_time

    if not catalog.bases:
        return
    rows = []
    for base in sorted(catalog.bases, key=lambda each: each.name, reverse=True):
        window = catalog.windows_of(base)[0]
        reaches = f"{shown_time(window.to_time)} ({window.to_lsn})" if window.usable else window.why_it_ends
        drilled = shown_time(base.drilled_at) if base.drilled_at else "no"
        facts = (base.name, str(base.timeline), shown_time(base.finished_at), human_bytes(base.size_bytes))
        rows.append((*facts, _ANSWERS[base.verified], drilled, reaches))
    head = ("base backup", "timeline", "ended", "size", "verified", "drilled", "reaches")
    print_table(head, rows, right=(1, 3))


def _as_dict(state: ClusterState, room: RoomForecast, status: ReceiverStatus | None, now: datetime) -> dict[str, Any]:
    catalog, name = state.catalog, state.archive.name
    return {
        "system_identifier": state.archive.system_identifier,
        "major": state.archive.facts.major,
        "timeline": catalog.newest.number,
        "windows": [_stretch_as_dict(stretch) for stretch in catalog.stretches],
        "why_no_window": None if catalog.stretches else catalog.why_no_window(),
        "holes": [
            {
                "after": name(hole.after) if hole.after is not None else None,
                "before": name(hole.before),
                "timeline": hole.timeline,
                "since": _iso(hole.since),
                "until": _iso(hole.until),
            }
            for hole in catalog.holes
        ],
        "base_backups": [_base_as_dict(base, catalog) for base in catalog.bases],
        "incomplete_base_backups": [{"name": each.folder.name, "why": each.why} for each in state.incomplete],
        "rpo_seconds": status.rpo_seconds(now) if status is not None else None,
        "worst_rpo_seconds": status.worst_rpo_seconds if status is not None else None,
        "segments": len(state.archived),
        "wal_bytes": state.archived_bytes,
        "wal_bytes_per_day": room.wal_bytes_per_day,
        "stored_bytes": room.stored_bytes,
        "needed_bytes": room.needed_bytes,
        "free_bytes": room.free_bytes,
        "fits": room.fits,
    }


def _stretch_as_dict(stretch: Stretch) -> dict[str, Any]:
    return {
        "timeline": stretch.timeline,
        "from": _iso(stretch.from_time),
        "to": _iso(stretch.to_time),
        "from_lsn": str(stretch.from_lsn),
        "to_lsn": str(stretch.to_lsn),
        "base_backups": list(stretch.bases),
        "complete": stretch.complete,
        "why_it_ends": stretch.why_it_ends,
    }


def _base_as_dict(base: Base, catalog: RecoveryCatalog) -> dict[str, Any]:
    window = catalog.windows_of(base)[0]
    return {
        "name": base.name,
        "timeline": base.timeline,
        "start_lsn": str(base.start),
        "end_lsn": str(base.end),
        "started_at": _iso(base.started_at),
        "finished_at": _iso(base.finished_at),
        "size_bytes": base.size_bytes,
        "verified": base.verified,
        "drilled_at": _iso(base.drilled_at),
        "usable": window.usable,
        "to": _iso(window.to_time) if window.usable else None,
        "to_lsn": str(window.to_lsn) if window.usable else None,
        "why_it_ends": window.why_it_ends,
    }


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None
