"""``ovia-backup status``: the condition of the backups, in the form of a monitoring plugin, as alerts report it.

``health.condition`` judges the condition. This command does not query Dagster.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.cli.exit_codes import UNKNOWN
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import backup_as_dict, manifest_problem, print_json, printable
from ovia_backup_dagster.core.errors import BackupError

if TYPE_CHECKING:
    from ovia_backup_dagster.health.condition import Answer, Condition
    from ovia_backup_dagster.health.freshness import Freshness
    from ovia_backup_dagster.offsite.remote_standing import RemoteStanding
    from ovia_backup_dagster.pitr.standing import PitrStanding


@click.command("status")
@json_option
def status_command(as_json: bool) -> None:
    """Report whether the backups are fresh, good and restorable, in the form of a monitoring plugin.

    Exit codes: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    from ovia_backup_dagster.health.condition import assess
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    now = datetime.now(UTC)
    try:
        system = BackupSystem(Settings.load())
        state = assess(system.watched, now, settings=system.settings_error)
    except BackupError as error:
        click.echo(f"BACKUP UNKNOWN - {error}")
        sys.exit(UNKNOWN)
    if as_json:
        print_json(_as_dict(state, now))
    else:
        _print_status(state)
    sys.exit(state.level.exit_code)


def _print_status(state: Condition) -> None:
    from ovia_backup_dagster.health.condition import Question

    word, found = state.level.upper(), state.found
    if found is None:  # only the reason is known
        click.echo(f"BACKUP {word} - {printable('; '.join(str(answer.trouble) for answer in state.told))}")
    else:
        # The first line has the answers that are wrong, and always the one about drills.
        said = [answer for answer in state.answers if answer in state.wrong or answer.question is Question.PROVEN]
        text = "; ".join(dict.fromkeys((found.text, *(answer.what for answer in said))))
        performance = ""
        if found.newest and found.age is not None:
            limit = int(found.max_age.total_seconds())
            performance = f" | age={int(found.age.total_seconds())}s;;{limit} size={found.newest.size_bytes}B"
            if state.pitr and state.pitr.rpo_seconds is not None:
                performance += f" rpo={int(state.pitr.rpo_seconds)}s"
        click.echo(f"BACKUP {word} - {printable(text)}{performance}")
        if found.newest and (trouble := manifest_problem(found.newest)):
            click.echo(f"{found.newest}: {printable(trouble)}")
        if state.wrong or not found.verified:
            click.echo(f"last verified backup: {state.newest_verified or 'none'}")
            click.echo(f"last proven backup: {state.newest_proven or 'none'}")
        if state.pitr:
            click.echo(f"point in time: {printable(state.pitr.text)}")
        for answer in state.wrong:
            subject = "likely cause" if answer.question is Question.FRESH else answer.question.subject
            for line in _reasons(answer, found):
                click.echo(f"{subject}: {printable(line)}")
            if answer.fix:
                click.echo(f"Next: {printable(answer.fix)}")
    for holder in state.at_work:
        click.echo(f"now at work: {printable(holder)}")


def _reasons(answer: Answer, found: Freshness) -> list[str]:
    """Details that the first line does not have; for bad backups, the reason for each."""
    if answer.question.value == "backups_undamaged":
        return [f"{backup}: {backup.problem.why}" if backup.problem else str(backup) for backup in found.rejected]
    return [answer.why or answer.what]


def _as_dict(state: Condition, now: datetime) -> dict[str, Any]:
    found, drills, restores = state.found, state.drills, state.restores
    passed = drills.last_passed if drills else None
    verified, proven = state.newest_verified, state.newest_proven
    return {
        "status": state.level.upper(),
        "freshness": found.level.value if found else None,
        "newest": backup_as_dict(found.newest, now) if found and found.newest else None,
        "newest_verified": verified.path.name if verified else None,
        "newest_proven": proven.path.name if proven else None,
        "lock_held_by": "; ".join(state.at_work) or None,
        "text": found.text if found else state.trouble,
        "unfinished_restore": str(restores.trouble) if restores and restores.trouble else None,
        "drills": {
            "text": drills.text(now) if drills else None,
            "trouble": str(drills.trouble) if drills and drills.trouble else None,
            "last_passed": passed.started_at.isoformat() if passed else None,
            "recovery_seconds": passed.recovery_seconds if passed else None,
        },
        "remotes": [_remote_as_dict(remote) for remote in state.remotes],
        "answers": [
            {"question": a.question.value, "level": a.level.value, "text": a.text, "next": a.fix or None}
            for a in state.answers
        ],
        **_pitr(state),
        # The words of 0.1.0, for one release: its "proven" means verified.
        "level": found.level.former if found else None,
        "last_proven": verified.path.name if verified else None,
    }


def _remote_as_dict(remote: RemoteStanding) -> dict[str, Any]:
    record, read_back = remote.record, remote.record.read_back
    return {
        "name": remote.name,
        "trouble": str(remote.trouble) if remote.trouble else None,
        "copies": len(record.copies),
        "copies_bytes": record.copies_bytes,
        "newest": record.newest.isoformat() if record.newest else None,
        "copied_at": record.copied_at.isoformat() if record.copied_at else None,
        "verified_at": record.verified_at.isoformat() if record.verified_at else None,
        "read_back_at": read_back.at.isoformat() if read_back else None,
        "free_bytes": record.free_bytes,
    }


def _pitr(state: Condition) -> dict[str, Any]:
    """Only where point-in-time recovery is on; ``None`` if it could not be read."""
    from ovia_backup_dagster.health.condition import Question

    if not any(answer.question is Question.PITR for answer in state.answers):
        return {}
    return {"pitr": _pitr_as_dict(state.pitr) if state.pitr else None}


def _pitr_as_dict(pitr: PitrStanding) -> dict[str, Any]:
    newest, verified, window, open_holes = pitr.newest, pitr.verified, pitr.window, pitr.open_holes
    return {
        "text": pitr.text,
        "troubles": [str(error) for error in pitr.troubles],
        "system_identifier": pitr.facts.system_identifier,
        "window_from": window.from_time.isoformat() if window else None,
        "window_to": window.to_time.isoformat() if window else None,
        "rpo_seconds": pitr.rpo_seconds,
        "worst_rpo_seconds": pitr.worst_rpo_seconds,
        "newest_base": newest.name if newest else None,
        "newest_verified_base": verified.name if verified else None,
        "drilled_at": pitr.drilled_at.isoformat() if pitr.drilled_at else None,
        "holes": [
            {
                "since": hole.since.isoformat() if hole.since else None,
                "until": hole.until.isoformat() if hole.until else None,
                "timeline": hole.timeline,
                "is_history": hole not in open_holes,
            }
            for hole in pitr.holes
        ],
        "wal_bytes_per_day": round(pitr.facts.wal_bytes_per_day),
        "free_bytes": pitr.facts.free_bytes,
    }
