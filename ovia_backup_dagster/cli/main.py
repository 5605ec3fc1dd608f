"""``ovia-backup``: the same core without Dagster, for the day when Dagster is down, and for cron and monitoring.

A command parses, calls one operation, and prints. Data goes to standard output, what happens meanwhile to
standard error. Exit codes: 0 done; 1 the operation failed, or what was checked is bad; 2 usage; ``status``
follows the monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

Imports stand inside the commands: ``--help`` must answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.errors import BackupError

if TYPE_CHECKING:
    from ovia_backup_dagster.core.catalog import Backup
    from ovia_backup_dagster.core.takeover import Owner
    from ovia_backup_dagster.doctor.report import Line
    from ovia_backup_dagster.drill.evidence import Evidence
    from ovia_backup_dagster.restoration.plan import Plan as RestorePlan
    from ovia_backup_dagster.restoration.record import Record
    from ovia_backup_dagster.restoration.runner import Restorations
    from ovia_backup_dagster.retention.plan import Plan
    from ovia_backup_dagster.system import BackupSystem

UNKNOWN = 3
_RESTORES = ("restore", "undo-restore")
#: Whether it was done, put back or not begun depends on when it was ended.
_AFTER_A_RESTORE = "what came of it: ovia-backup restore --history; what is unfinished: ovia-backup status"


class _Terminated(SystemExit):
    """Somebody ended the process by a signal."""


class _Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        _mend_streams()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackupError as error:
            click.echo(f"ovia-backup: {error}", err=True)
            _keep_whole(error)
            ctx.exit(1)
        except KeyboardInterrupt:
            left = _AFTER_A_RESTORE if ctx.invoked_subcommand in _RESTORES else "nothing unfinished is left"
            click.echo(f"ovia-backup: ended by Ctrl-C; {left}", err=True)
            ctx.exit(128 + signal.SIGINT)
        except _Terminated as end:
            if ctx.invoked_subcommand in _RESTORES:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    click.echo(f"ovia-backup: ended by a signal; {_AFTER_A_RESTORE}", err=True)
            ctx.exit(int(str(end.code)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            # Standard output is a full disk, or a terminal that is gone. Monitoring must not read it as "critical".
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with contextlib.suppress(OSError):
                click.echo(f"ovia-backup: cannot print: {error.strerror}", err=True)
            ctx.exit(UNKNOWN if ctx.invoked_subcommand == "status" else 1)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
backup_argument = click.argument("backup", default="latest")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ovia-backup")
def main() -> None:
    """Back up a PostgreSQL database, and prove the backups.

    The settings come from the environment: POSTGRES_HOST, POSTGRES_DB, BACKUP_DIR and the others that the
    README lists. BACKUP is a backup's name, a path, or `latest`.
    """
    # Ended politely, or with its terminal, a command ends its pg_dump and removes or puts back what is unfinished.
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _terminated)


@main.command()
@json_option
def dump(as_json: bool) -> None:
    """Make a backup now."""
    from ovia_backup_dagster.core.shell import shell_word

    backup = _system().dumper.dump(log=_log)
    if as_json:
        _print_json(_as_dict(backup, datetime.now(UTC)))
    else:
        click.echo(backup.path)
        _log(f"not verified yet. Next: ovia-backup verify {shell_word(str(backup))}")


@main.command()
@backup_argument
@click.option("--unproven", is_flag=True, help="Instead: all that have no verdict yet, such as the old script's.")
@json_option
def verify(backup: str, unproven: bool, as_json: bool) -> None:
    """Read all of a backup and say whether it is good. Exit code 1: it is bad."""
    from ovia_backup_dagster.core.catalog import State

    system = _system()
    if unproven:
        outcomes = system.verifier.verify_unproven(log=_log)
        if as_json:
            _print_json([_as_dict(outcome.backup, datetime.now(UTC)) for outcome in outcomes])
        else:
            click.echo(f"{sum(o.judgement.good for o in outcomes)} of {len(outcomes)} are proven")
        sys.exit(0 if all(o.judgement.good for o in outcomes) else 1)
    verified = system.verifier.verify(system.catalog.find(backup, datetime.now(UTC)), log=_log)
    judgement, witness = verified.judgement, verified.witness
    if as_json:
        rows = witness.rows_by_table() if witness else {}
        verdict = {"state": State.PROVEN if judgement.good else State.BAD, "rows": sum(rows.values()), "tables": rows}
        _print_json(_as_dict(verified.backup, datetime.now(UTC)) | verdict)
    elif judgement.good and witness:
        before = verified.previous.witness.rows_by_table() if verified.previous and verified.previous.witness else {}
        _print_tables(witness.rows_by_table(), before)
        click.echo(f"{verified.backup} is proven: {witness.rows:,} rows in {len(witness.rows_by_table())} tables")
    else:
        click.echo(f"{verified.backup} is bad")
    if not as_json:
        for text in (*judgement.reasons, *(f"odd: {text}" for text in judgement.oddities)):
            click.echo(f"  {_safe(text)}")
    if problem := judgement.problem(str(verified.backup)):
        _log(f"Next: {problem.fix}")
        sys.exit(1)


@main.command()
@click.argument("backup")
@json_option
def accept(backup: str, as_json: bool) -> None:
    """Say that a backup of another cluster, or without the tables there were, is what was meant.

    It is judged again; later dumps of that cluster are good without a word. Exit code 1: it is bad all the same.
    """
    system, now = _system(), datetime.now(UTC)
    chosen = system.catalog.find(backup, now, anywhere=False)
    verified = system.verifier.accept(chosen, by=_who(), log=_log)
    accepted, judgement = verified.backup.acceptance, verified.judgement
    if as_json:
        _print_json(_as_dict(verified.backup, datetime.now(UTC)))
    else:
        click.echo(f"{verified.backup} is {'proven' if judgement.good else 'bad'}")
        for text in accepted.found if accepted else ("there was nothing to accept",):
            click.echo(f"  {'accepted: ' if accepted else ''}{_safe(text)}")
        for text in judgement.reasons:
            click.echo(f"  {_safe(text)}")
    if problem := judgement.problem(str(verified.backup)):
        _log(f"Next: {problem.fix}")
        sys.exit(1)


@main.command(name="list")
@json_option
def list_backups(as_json: bool) -> None:
    """List the backups, newest first."""
    from ovia_backup_dagster.core.human_text import duration, human_bytes
    from ovia_backup_dagster.retention.prune import preview

    system, now = _system(), datetime.now(UTC)
    backups = system.catalog.backups()
    reasons = {d.candidate.key: d for d in preview(backups, system.policy, now).decisions}
    if as_json:
        _print_json([_as_dict(backup, now) for backup in backups])
        return
    if not backups:
        click.echo(f"no backup of database {system.catalog.database} in {system.catalog.root}")
        _log("Next: ovia-backup dump")
        return
    rows = []
    for backup in backups:
        decision = reasons.get(f"{backup.tier}/{backup}")
        plan = ("keep: " if decision.keep else "remove: ") + decision.reason if decision else ""
        witness = backup.witness
        age = duration(now - backup.started_at)
        count = f"{witness.rows:,}" if witness else ""
        state = backup.state(now).value + (", drilled" if backup.drilled else "")
        state += ", manifest unreadable" if _manifest_problem(backup) else ""
        rows.append((backup.path.name, age, human_bytes(backup.size_bytes), count, state, plan))
    _print_table(("backup", "age", "size", "rows", "state", "retention"), rows, right=(1, 2, 3))


@main.command()
@json_option
def status(as_json: bool) -> None:
    """Say whether the newest backup is fresh and good, as a monitoring plugin does."""
    from ovia_backup_dagster.core.catalog import State
    from ovia_backup_dagster.core.deadline import LOOK_SECONDS, within
    from ovia_backup_dagster.core.locking import lock_holder
    from ovia_backup_dagster.health.freshness import Level, freshness

    try:
        system, now = _system(), datetime.now(UTC)
        catalog = system.catalog
        found, proven, drills, restores, holder = within(
            LOOK_SECONDS,
            catalog.root,
            lambda: (
                freshness(catalog.newest_first(), system.max_age, now),
                catalog.newest(now, State.PROVEN),
                system.drills.standing(system.drill_max_age, now),
                system.restores.standing(),
                lock_holder(catalog.root),
            ),
        )
        at_work = [who for who in (holder, restores.at_work) if who]
    except BackupError as error:
        click.echo(f"BACKUP UNKNOWN - {error}")
        sys.exit(UNKNOWN)
    if found.level not in (Level.FRESH, Level.UNPROVEN):
        code, word = 2, "CRITICAL"
    elif not found.proven or found.rejected or drills.trouble or restores.trouble:
        code, word = 1, "WARNING"
    else:
        code, word = 0, "OK"
    if as_json:
        newest = _as_dict(found.newest, now) if found.newest else None
        last = proven.path.name if proven else None
        extra = {"newest": newest, "last_proven": last, "lock_held_by": "; ".join(at_work) or None, "text": found.text}
        extra["unfinished_restore"] = str(restores.trouble) if restores.trouble else None
        extra["drills"] = {
            "text": drills.text(now),
            "trouble": str(drills.trouble) if drills.trouble else None,
            "last_passed": drills.last_passed.started_at.isoformat() if drills.last_passed else None,
            "recovery_seconds": drills.last_passed.recovery_seconds if drills.last_passed else None,
        }
        _print_json({"status": word, "level": found.level.value, **extra})
        sys.exit(code)
    performance = ""
    if found.newest and found.age:
        limit = int(found.max_age.total_seconds())
        performance = f" | age={int(found.age.total_seconds())}s;;{limit} size={found.newest.size_bytes}B"
    told = drills.trouble.what if drills.trouble else drills.text(now)
    click.echo(f"BACKUP {word} - {_safe(found.text)}; {_safe(told)}{performance}")
    if found.newest and (trouble := _manifest_problem(found.newest)):
        click.echo(f"{found.newest}: {_safe(trouble)}")
    if drills.trouble:
        click.echo(f"drill: {_safe(drills.trouble.reason)}")
        click.echo(f"Next: {_safe(drills.trouble.fix)}")
    if found.trouble or not found.proven or found.rejected:
        click.echo(f"last proven backup: {proven or 'none'}")
        for backup in found.rejected:
            click.echo(f"bad: {_safe(f'{backup}: {backup.problem.why}' if backup.problem else str(backup))}")
        if found.trouble:
            click.echo(f"likely cause: {_safe(found.trouble.reason)}")
        fix = "ovia-backup dump" if found.rejected else "ovia-backup verify latest"
        click.echo(f"Next: {_safe(found.trouble.fix) if found.trouble else fix}")
    if restores.trouble:
        click.echo(f"restore: {_safe(restores.trouble.account)}")
        click.echo(f"Next: {_safe(restores.trouble.fix)}")
    for holder in at_work:
        click.echo(f"now at work: {_safe(holder)}")
    sys.exit(code)


@main.command()
@backup_argument
@json_option
def promote(backup: str, as_json: bool) -> None:
    """Let a proven daily backup also stand in weekly/, if its week has none yet."""
    from ovia_backup_dagster.core.catalog import State
    from ovia_backup_dagster.retention import prune as housekeeping

    system, now = _system(), datetime.now(UTC)
    chosen = system.catalog.find(backup, now)
    promoted = housekeeping.promote(system.catalog, chosen, system.policy, now, _waiting)
    if as_json:
        weekly = promoted.weekly.path.name if promoted.weekly else None
        _print_json({"promoted": promoted.weekly is not None, "weekly": weekly, "reason": promoted.reason})
    else:
        click.echo(f"promoted to {promoted.weekly.path}" if promoted.weekly else "not promoted")
        click.echo(f"  {promoted.reason}")
    # As it is now: somebody may have proven it while this one waited.
    if promoted.weekly is None and system.catalog.refresh(chosen).state(now) is not State.PROVEN:
        sys.exit(1)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed, and why.")
@click.option("--release", metavar="BACKUP", help="Say that the loss of rows a backup is held for was meant.")
@json_option
def prune(dry_run: bool, release: str | None, as_json: bool) -> None:
    """Remove the backups that the retention policy does not keep."""
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.retention import prune as housekeeping

    system, now = _system(), datetime.now(UTC)
    if release and dry_run:
        raise click.UsageError("--release changes something; --dry-run does not")
    if release:
        housekeeping.release(system.catalog, system.catalog.find(release, now), now)
        _log(f"{release} is held no longer")
    if dry_run:
        plan, removed = housekeeping.preview(system.catalog.backups(), system.policy, now), None
    else:
        pruned = housekeeping.prune(system.catalog, system.policy, now, _waiting)
        plan, removed = pruned.plan, pruned
    if as_json:
        _print_json({"held": plan.held or None, "dry_run": dry_run, "decisions": _plan_as_dicts(plan)})
        return
    for decision in plan.removals:
        if removed is not None and decision.candidate.key in removed.in_use:
            continue
        click.echo(f"{'would remove' if dry_run else 'removed'} {decision.candidate.key}: {decision.reason}")
    kept = len(plan.decisions) - len(plan.removals)
    if removed is None:
        click.echo(f"{len(plan.removals)} to remove, {kept} to keep" + (f"; {plan.held}" if plan.held else ""))
    else:
        for key in removed.in_use:
            click.echo(f"{key} is being restored; the next pruning removes it")
        click.echo(f"{len(removed.removed)} removed ({human_bytes(removed.freed_bytes)}), {kept} kept")


class _OwnerType(click.ParamType[Any]):
    name = "UID:GID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ovia_backup_dagster.core.takeover import Owner

        # Numbers: the names are known in our image, not in the one that this may run in.
        match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", str(value))
        numbers = [int(part) for part in match.groups()] if match else []
        if not numbers or max(numbers) >= 2**32 - 1:  # the last one means "as it is"
            self.fail(f"{value!r} is not two numbers, such as 10001:10001", param, ctx)
        return Owner(*numbers)


@main.command()
@click.option("--to", "owner", type=_OwnerType(), required=True, help="The user of this system, such as 10001:10001.")
@click.option("--finish", is_flag=True, help="The old service is removed: bring back what it removed meanwhile.")
@json_option
def hand_over(owner: Owner, finish: bool, as_json: bool) -> None:
    """Take the volume over from the old backup script; as root. Until --finish, it can remove no dump for good."""
    from ovia_backup_dagster.core import takeover
    from ovia_backup_dagster.settings.model import Settings

    settings = Settings.load()
    settings.require_volume()
    act = takeover.finish if finish else takeover.begin
    wait = settings.backup_lock_wait_minutes * 60
    done = act(settings.backup_dir, owner, datetime.now(UTC), wait, _waiting)
    if as_json:
        answer = {"owner": str(owner), "changed": done.changed, "unchanged": done.unchanged}
        answer |= {"left_alone": done.left_alone, "came_back": done.came_back}
        if done.protection:
            answer |= {"protected": done.protection.names, "newly_protected": done.protection.added}
        _print_json(answer)
        return
    click.echo(f"{settings.backup_dir} belongs to {owner}: {len(done.changed)} changed, {done.unchanged} were right")
    for name in done.left_alone:
        click.echo(f"left alone, not ours: {_safe(name)}")
    for name in done.came_back:
        click.echo(f"came back: {_safe(name)}")
    if done.protection:
        count, new = len(done.protection.names), len(done.protection.added)
        click.echo(f"protected from the old script: {count} dumps, {new} of them now")
        _log(f"when the old service is removed, as root: ovia-backup hand-over --finish --to {owner}")
    elif finish:
        click.echo(f"the hand-over is over; {len(done.came_back)} dumps came back")
    else:
        click.echo("no hand-over is under way: every dump is ours already")


@main.command()
@backup_argument
@click.option(
    "--where", type=click.Choice(["auto", "throwaway", "database"]), help="Where to restore to.  [DRILL_WHERE]"
)
@click.option("--jobs", type=click.IntRange(2, 64), help="How much is restored at a time.  [DRILL_JOBS]")
@click.option("--keep", is_flag=True, help="Leave the copy for a look, until the next drill.")
@click.option(
    "--trust-archive",
    is_flag=True,
    help="With --where database: restore even where a superuser would run functions of others on the source's cluster.",
)
@click.option("--history", is_flag=True, help="Instead: the drills so far, newest first.")
@click.option("--remove-copy", is_flag=True, help="Instead: remove a copy that was kept, or left by a killed drill.")
@json_option
def drill(
    backup: str,
    where: str | None,
    jobs: int | None,
    keep: bool,
    trust_archive: bool,
    history: bool,
    remove_copy: bool,
    as_json: bool,
) -> None:
    """Restore a backup into a copy, prove the copy, and write the evidence down. Exit code 1: it is not proven."""
    system = _system()
    if history:
        _print_history(list(system.drills.newest_first()), as_json)
        return
    if remove_copy:
        for name in system.driller.remove_copies(system.drill_choice(where=where or "")):
            click.echo(f"removed {name}")
        return
    driller = system.driller
    choice = system.drill_choice(where=where or "", jobs=jobs or 0, keep=keep, trust_archive=trust_archive)
    evidence = driller.drill(driller.find(backup), choice, launched_by=_who(), log=_log)
    if as_json:
        click.echo(evidence.to_json(), nl=False)
    else:
        _print_drill(evidence, driller.drills.path)
    if evidence.trouble:
        _log(f"Next: {evidence.trouble.fix}")
        sys.exit(1)


class _Instead(click.Option):
    """A flag that asks for something else than what its command is for.

    Args:
        takes: the other options that mean something together with it, by their variables' names.
    """

    def __init__(self, declarations: Sequence[str], *, takes: Collection[str], **attributes: Any) -> None:
        super().__init__(declarations, is_flag=True, **attributes)
        self.takes = takes


class _Exclusive(click.Command):
    """Refuses what would be ignored: whoever wrote ``--plan`` must not be served with a deed."""

    def invoke(self, ctx: click.Context) -> Any:
        given = [p for p in self.params if ctx.get_parameter_source(p.name or "") is ParameterSource.COMMANDLINE]
        for instead in given:
            for other in given:
                if isinstance(instead, _Instead) and other is not instead and other.name not in instead.takes:
                    name = other.opts[0] if isinstance(other, click.Option) else other.human_readable_name
                    raise click.UsageError(f"{name} means nothing together with {instead.opts[0]}", ctx)
        return super().invoke(ctx)


class _ReplicasType(click.ParamType[Any]):
    name = "SERVICE=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"([^=]+)=([0-9]{1,4})", str(value))
        if not match:
            self.fail(f"{value!r} is not a service and a number, such as ovia_ovia-api=1", param, ctx)
        return match[1], int(match[2])


without_services_option = click.option(
    "--without-services",
    is_flag=True,
    help="Neither stop, migrate, start nor ask services: a person does, as when Docker does not answer.",
)


@main.command(cls=_Exclusive)
@click.argument("backup", required=False)
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would be done.")
@click.option("--yes-destroy", "confirmation", metavar="NAME", help="The database's name: go on without asking.")
@click.option(
    "--mode",
    type=click.Choice(["swap", "drop", "new"]),
    default="swap",
    show_default=True,
    help="swap: beside the live database, proven, then in its place; can be undone. drop: for a server too small for "
    "two; cannot be. new: into a database of its own.",
)
@click.option("--into", metavar="NAME", default="", help="With --mode new: the database to make.")
@click.option("--jobs", type=click.IntRange(1, 64), help="How much is restored at a time.  [RESTORE_JOBS]")
@click.option(
    "--stop-services",
    type=click.Choice(["at-swap", "first"]),
    default="at-swap",
    show_default=True,
    help="When the services of SWARM_APP_SERVICES are stopped.",
)
@click.option("--scale", "scale", type=_ReplicasType(), multiple=True, help="Replicas of a service in the end.")
@click.option("--new-host", is_flag=True, help="The server is not the one that was backed up.")
@click.option(
    "--create-roles",
    is_flag=True,
    help="Make the roles that the server lacks, as they were saved, but without passwords and power over others.",
)
@click.option(
    "--create-privileged-role",
    "privileged_roles",
    metavar="NAME",
    multiple=True,
    help="Make this one of them with all that it had: SUPERUSER, REPLICATION, BYPASSRLS, memberships.",
)
@click.option("--even-if-damaged", is_flag=True, help="With --mode new: restore what can be, and say what was lost.")
@click.option("--auto-undo", is_flag=True, help="Swap back if the migration fails or HEALTH_URL stays red.")
@without_services_option
@click.option(
    "--resume",
    cls=_Instead,
    takes=["as_json", "without_services"],
    help="Instead: finish a restore whose process was killed.",
)
@click.option(
    "--abort",
    cls=_Instead,
    takes=["as_json", "confirmation", "without_services"],
    help="Instead: put back what such a restore had begun.",
)
@click.option("--history", cls=_Instead, takes=["as_json"], help="Instead: the restores so far, newest first.")
@json_option
def restore(
    backup: str | None,
    only_plan: bool,
    confirmation: str | None,
    mode: str,
    into: str,
    jobs: int | None,
    stop_services: str,
    scale: tuple[tuple[str, int], ...],
    new_host: bool,
    create_roles: bool,
    privileged_roles: tuple[str, ...],
    even_if_damaged: bool,
    auto_undo: bool,
    without_services: bool,
    resume: bool,
    abort: bool,
    history: bool,
    as_json: bool,
) -> None:
    """Bring a backup back: plan, confirm, prove, swap. Exit code 1: it failed, and what could be was put back."""
    from ovia_backup_dagster.restoration.order import Mode, StopServices
    from ovia_backup_dagster.restoration.request import Wishes

    system = _system()
    restorations = system.restorations.without_services() if without_services else system.restorations
    if history:
        _print_restores(list(restorations.folder.newest_first()), as_json)
        return
    if resume or abort:
        record = restorations.resume(_log) if resume else restorations.abort(_log, confirmation or "")
        _print_restore(record, restorations, as_json, putting_back=abort)
        return
    if backup is None:
        # The newest may hold the very harm that it is to undo: nobody restores it by leaving out a word.
        raise click.UsageError("which backup? Name one of: ovia-backup list; `latest` is the newest that is not bad")
    wishes = Wishes(
        backup=backup,
        mode=Mode(mode),
        into=into,
        jobs=system.restore_jobs(jobs or 0),
        stop_services=StopServices(stop_services),
        replicas=dict(scale),
        new_host=new_host,
        create_roles=create_roles,
        privileged_roles=privileged_roles,
        even_if_damaged=even_if_damaged,
        auto_undo=auto_undo,
    )
    _carry_out(
        restorations,
        restorations.planner.plan(wishes, _who(), None, datetime.now(UTC)),
        confirmation,
        only_plan,
        as_json,
    )


@main.command(cls=_Exclusive)
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would be done.")
@click.option(
    "--yes-destroy",
    "confirmation",
    metavar="NAME",
    help="The live database's name, or, with --forget, the kept one's: go on without asking.",
)
@without_services_option
@click.option("--kept", metavar="NAME", default="", help="Which kept database.  [default: the newest]")
@click.option(
    "--list",
    "listing",
    cls=_Instead,
    takes=["as_json"],
    help="Instead: the databases that restores have kept, newest first.",
)
@click.option(
    "--forget",
    cls=_Instead,
    takes=["confirmation", "kept"],
    help="Instead: drop a kept database, which must be named if there are several. There is no way back to it then.",
)
@json_option
def undo_restore(
    only_plan: bool,
    confirmation: str | None,
    without_services: bool,
    kept: str,
    listing: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Swap back to the database that was live before the last restore; again, to swap forth."""
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.restoration.plan import replaced

    system = _system()
    restorations = system.restorations.without_services() if without_services else system.restorations
    if listing:
        found = restorations.kept()
        if as_json:
            _print_json(
                [
                    {
                        "name": each.name,
                        "named_at": each.at.isoformat(),
                        "replaced_at": at.isoformat() if at else None,
                        "size_bytes": each.size_bytes,
                    }
                    for each, at in found
                ]
            )
            return
        for each, at in found:
            click.echo(f"{_safe(each.name)}  {human_bytes(each.size_bytes or 0)}  {replaced(each, at)}")
        if not found:
            click.echo("no database is kept")
        return
    if forget:
        name = restorations.to_forget(kept or confirmation or "").name
        for left in restorations.forget(name, _confirmed(name, confirmation)):
            click.echo(f"left to do: {_safe(left)}")
        click.echo("dropped")
        return
    plan = restorations.planner.plan_undo(_who(), None, datetime.now(UTC), kept_name=kept)
    _carry_out(restorations, plan, confirmation, only_plan, as_json)


@main.command()
@click.option("--test-alert", is_flag=True, help="Also send a message to every channel of BACKUP_NOTIFY_URLS.")
@click.option(
    "--code-server", "port", metavar="PORT", type=int, help="Instead: a health check of the code server on a port."
)
@json_option
def doctor(test_alert: bool, port: int | None, as_json: bool) -> None:
    """Look at everything a backup depends on, and say how to mend it. Exit code 1: something will fail."""
    from ovia_backup_dagster.doctor import code_server, dagster_instance, environment_area, examination
    from ovia_backup_dagster.doctor.report import Area, Level, as_dict, summary, worst
    from ovia_backup_dagster.doctor.time_limit import Part, within
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    system = BackupSystem(Settings.load())
    if port is not None:
        server, log = f"the code server on port {port}", "see its log; then restart it"
        looks = [lambda: examination.code_server(system), lambda: code_server.health(port)]
        found = within([Part(Area.DAGSTER, look, server, log) for look in looks])
    else:
        environment = dict(os.environ)
        home, urls = "check $DAGSTER_HOME/dagster.yaml", "check BACKUP_NOTIFY_URLS and the network"
        more = [Part(Area.DAGSTER, lambda: dagster_instance.examine(environment), "Dagster's instance", home)]
        if test_alert:
            more.append(Part(Area.ALERTS, lambda: environment_area.test_alert(system), "a channel of the alerts", urls))
        found = examination.everything(system, *more)
    lines = []
    for line in found:  # told at once: one that hangs is seen
        lines.append(line)
        if not as_json:
            _print_line(line)
    if as_json:
        _print_json([as_dict(line) for line in lines])
    else:
        _print_statements(lines)
        click.echo(f"\n{summary(lines)}")
    sys.exit(worst(lines) is Level.FAIL)


@main.command()
@click.option("--serve", is_flag=True, help="Open the Dagster UI on it, with schedule and sensor, until Ctrl-C.")
@click.option("--port", default=3000, show_default=True, help="Of the UI.")
@click.option("--remove", is_flag=True, help="Instead: stop its server, and remove all that it made.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the sample database; 1 has 300,000 rows.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".demo"),
    show_default=True,
    help="Where backups and history go.",
)
def demo(serve: bool, port: int, remove: bool, scale: float, folder: Path) -> None:
    """Back up a real PostgreSQL 16 with sample data, through Dagster. Needs no settings."""
    from ovia_backup_dagster.demo.demonstration import Demo

    here = Demo(folder.absolute(), scale)
    if remove:
        here.remove()
        return
    if serve:
        sys.exit(here.serve(port, _log))
    here.back_up(_log)
    click.echo()
    click.echo(f"What now stands in {here.backups}:")
    _print_table(("backup", "size", "rows", "state", "beside it"), here.table(), right=(1, 2))
    click.echo()
    if drilled := here.drill():
        rows, took = f"{drilled.rows:,} rows", _seconds(drilled.recovery_seconds)
        page = here.backups / "drills" / f"{drilled.filename}.md"
        click.echo(f"Restored and compared: {rows}; recovery time to expect: {took}. The evidence:  {page}")
    click.echo("The Dagster UI on it, with this history, schedule and sensor running:  make dev")


def _who() -> str:
    return f"{getpass.getuser()} on {socket.gethostname()}"


def _carry_out(
    restorations: Restorations, plan: RestorePlan, confirmation: str | None, only_plan: bool, as_json: bool
) -> None:
    """Show a plan, ask for the database's name, and do it."""
    from ovia_backup_dagster.restoration.plan import as_dict

    if only_plan and as_json:
        _print_json(as_dict(plan))
        plan.refuse()
        return
    for line in plan.lines():
        click.echo(_safe(line), err=as_json)
    plan.refuse()
    if only_plan:
        return
    _print_restore(restorations.run(plan, _confirmed(plan.destroys, confirmation), _log), restorations, as_json)


def _confirmed(name: str, given: str | None) -> str:
    """What a person says when asked to repeat the name of what is at stake; without a terminal, what was given."""
    if given is None and name and sys.stdin.isatty():
        try:
            given = str(click.prompt(f"To go on, type the name of the database ({_safe(name)})", err=True))
        except click.Abort:  # Ctrl-C, or the end of the input
            click.echo("\novia-backup: nothing was done", err=True)
            sys.exit(1)
    return given or ""


def _print_restore(record: Record, restorations: Restorations, as_json: bool, *, putting_back: bool = False) -> None:
    from ovia_backup_dagster.core.naming import before_at
    from ovia_backup_dagster.postgres.quoting import shell_word

    order = record.order
    if as_json:
        click.echo(record.to_json(), nl=False)
    else:
        colours = {"passed": "green", "odd": "yellow", "failed": "red", "not made": "yellow"}
        for line in record.proven.lines if record.proven else ():
            click.secho(f"{line.result.value:<9}", nl=False, fg=colours[line.result.value])
            click.echo(f"{line.check.value:<38}{_safe(line.text)}")
        if record.proven and record.proven.tables:
            _print_table(("table", "rows"), [(t.name, f"{t.rows:,}") for t in record.proven.tables], right=(1,))
        for text in record.proven.lost if record.proven else ():
            click.echo(f"lost: {_safe(text)}")
        for note in record.notes:
            click.echo(f"note: {_safe(note)}")
        if record.outcome == "done" and order.mode.value == "undo":
            click.echo(f"{_safe(order.database)} is what was {_safe(order.incoming)}")
        elif record.outcome == "done":
            click.echo(f"{_safe(order.becomes)} is restored")
        elif record.outcome == "put back":
            click.echo("everything is as it was before")
        if record.interruption_seconds is not None:
            click.echo(f"interruption: {record.interruption_seconds * 1000:.0f} ms")
        if record.kept and before_at(record.kept, order.database) is None:
            pass  # somebody has given it another name, which a note says
        elif record.kept and record.outcome == "put back":
            again = f"to make it live again: ovia-backup undo-restore --kept {shell_word(record.kept)}"
            click.echo(f"{record.what_is_kept} stays as {_safe(record.kept)}; {again}")
        elif record.kept:
            kept = f"{record.what_is_kept} is kept: {_safe(record.kept)}"
            click.echo(f"{kept}; to go back to it: ovia-backup undo-restore --kept {shell_word(record.kept)}")
        click.echo(f"record: {restorations.folder.path / order.filename}.md")
    put_back = putting_back and record.outcome == "put back"
    if record.error and put_back and record.error not in record.notes:
        _log(f"what had failed before: {record.error}")  # and no longer matters
    elif record.error:
        _log(f"Error: {record.error}")
        if record.fix:
            _log(f"Next: {record.fix}")
        if not put_back:
            sys.exit(1)


def _print_restores(records: Sequence[Record], as_json: bool) -> None:
    if as_json:
        _print_json([json.loads(record.to_json()) for record in records])
        return
    if not records:
        click.echo("no restore yet")
        return
    rows = [
        (
            f"{record.order.started_at:%Y-%m-%d %H:%M}",
            record.order.mode.value,
            record.order.backup or record.order.incoming,
            record.outcome,
            f"{record.proven.rows:,}" if record.proven else "",
            record.kept,
            record.order.launched_by,
            record.error,
        )
        for record in records
    ]
    head = ("begun (UTC)", "mode", "of", "outcome", "rows", "kept", "launched by", "failed")
    _print_table(head, rows, right=(4,))


def _system() -> BackupSystem:
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    settings = Settings.load()
    settings.require()
    return BackupSystem(settings)


def _mend_streams() -> None:
    """What stands for a stream that is closed (``>&-``) goes nowhere; and no name is too strange to be printed."""
    # In order: each gets the lowest number that is free. A lock or a dump that got it would be written to.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminated(number: int, _: object) -> NoReturn:
    # That a terminal is gone is said twice, by the shell and by the kernel; the second must not end the way back.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise _Terminated(128 + number)


def _keep_whole(error: BackupError) -> None:
    """Where a message is too long for a terminal, all of it goes into a file of this user's."""
    if not error.whole:
        return
    with contextlib.suppress(OSError):
        number, path = tempfile.mkstemp(prefix="ovia-backup-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(error.whole + "\n")
        click.echo(f"ovia-backup: the whole message is in {path}", err=True)


def _log(text: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S} {_safe(text)}", err=True)


def _waiting(holder: str) -> None:
    _log(f"waiting for {holder}")


def _safe(text: str) -> str:
    """Names come from databases and file systems: no control characters of theirs reach the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _print_line(line: Line) -> None:
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    click.secho(f"{line.level:<5}", nl=False, fg=colours[line.level])
    click.echo(f"{line.area:<9} {_safe(line.text)}")
    if line.fix:
        click.echo(f"{'':<15}{_safe(line.fix)}")


def _print_statements(lines: Sequence[Line]) -> None:
    """All SQL once more, ready to paste, each statement once."""
    statements: dict[str, dict[str, None]] = {}
    for line in lines:
        statements.setdefault(line.fix, {}).update(dict.fromkeys(line.sql))
    for fix, sql in statements.items():
        if sql:
            click.echo(f"\nTo paste, {_safe(fix)}")
            for statement in sql:
                click.echo(f"  {_safe(statement)}")


def _print_json(data: object) -> None:
    click.echo(json.dumps(data, indent=1, default=str))


def _manifest_problem(backup: Backup) -> str | None:
    """Why a backup's manifest says nothing, if it has one."""
    try:
        return backup.manifest_trouble or None
    except BackupError as error:
        return error.account


def _as_dict(backup: Backup, now: datetime) -> dict[str, Any]:
    judgement, witness = backup.judgement, backup.witness
    problem = _manifest_problem(backup)
    manifest = None if problem else backup.manifest
    return {
        "name": backup.path.name,
        "path": str(backup.path),
        "database": backup.name.database,
        "tier": backup.tier.value,
        "started_at": backup.started_at.isoformat(),
        "age_seconds": int((now - backup.started_at).total_seconds()),
        "size_bytes": backup.size_bytes,
        "state": backup.state(now).value,
        "drilled": backup.drilled,
        "verified_at": judgement.at.isoformat() if judgement else None,
        "findings": [finding.text for finding in judgement.findings] if judgement else [],
        "problem": backup.problem.why if backup.problem else None,
        "manifest_problem": problem,
        "accepted_by": backup.acceptance.by if backup.acceptance else None,
        "promoted_from": backup.promotion.promoted_from if backup.promotion else None,
        "rows": witness.rows if witness else None,
        "sha256": manifest.sha256 if manifest else None,
        "compression": manifest.compression if manifest else None,
        "run_id": manifest.run_id if manifest else None,
    }


def _plan_as_dicts(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "backup": d.candidate.key,
            "state": d.candidate.state.value,
            "keep": d.keep,
            "reason": d.reason,
        }
        for d in plan.decisions
    ]


def _print_tables(rows: dict[str, int], before: dict[str, int]) -> None:
    from ovia_backup_dagster.core.human_text import signed

    lines = []
    for name in sorted(rows):
        change = signed(rows[name] - before[name]) if name in before else ("new" if before else "")
        lines.append((name, f"{rows[name]:,}", change))
    _print_table(("table", "rows", "change"), lines, right=(1, 2))


def _print_drill(evidence: Evidence, folder: Path) -> None:
    colours = {"passed": "green", "odd": "yellow", "failed": "red", "not made": "yellow"}
    for line in evidence.lines:
        click.secho(f"{line.result.value:<9}", nl=False, fg=colours[line.result.value])
        click.echo(f"{line.check.value:<38}{_safe(line.text)}")
    if evidence.error:
        click.echo(_safe(evidence.error))
    if evidence.passed:
        rows = f"{evidence.rows:,} rows in {len(evidence.tables):,} tables"
        took = _seconds(evidence.recovery_seconds)
        click.echo(f"{evidence.backup} restores: {rows}; recovery time to expect: {took}")
    else:
        click.echo(f"it is not proven that {evidence.backup} restores")
    click.echo(f"evidence: {folder / evidence.filename}.md")
    if evidence.kept:
        click.echo(f"the copy is kept until the next drill: {_safe(evidence.kept)}")


def _seconds(count: float | None) -> str:
    return "" if count is None else f"{count:.1f} s"


def _print_history(drills: Sequence[Evidence], as_json: bool) -> None:
    from ovia_backup_dagster.core.human_text import human_bytes

    if as_json:
        _print_json([json.loads(evidence.to_json()) for evidence in drills])
        return
    if not drills:
        click.echo("no drill yet")
        _log("Next: ovia-backup drill")
        return
    rows = [
        (
            f"{evidence.started_at:%Y-%m-%d %H:%M}",
            evidence.backup,
            "passed" if evidence.passed else "failed",
            _seconds(evidence.recovery_seconds),
            f"{evidence.rows:,}",
            human_bytes(evidence.copy_bytes) if evidence.copy_bytes is not None else "",
            evidence.launched_by,
            "; ".join(evidence.failures) or (f"{len(evidence.oddities)} odd" if evidence.oddities else ""),
        )
        for evidence in drills
    ]
    head = ("drill (UTC)", "backup", "result", "recovery", "rows", "copy", "launched by", "found")
    _print_table(head, rows, right=(3, 4, 5))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number in right else "left", overflow="fold", no_wrap=number == 0)
    for row in rows:
        # Text, not str: a "[" in a name is no markup.
        table.add_row(*(Text(_safe(cell)) for cell in row))
    # In a pipe, lines as long as they need to be.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


if __name__ == "__main__":
    main()
