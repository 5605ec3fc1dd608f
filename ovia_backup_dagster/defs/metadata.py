"""Results as metadata for the UI. ``MetadataValue``s of results are made only here.

Dagster plots numbers over time, so their names and units (bytes and seconds) never change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.human_text import signed
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.markdown import bullets, code, plain
from ovia_backup_dagster.doctor.report import Observation, Severity, markdown, problems_markdown
from ovia_backup_dagster.drill import drill_report
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.health.freshness import Freshness
from ovia_backup_dagster.notifications.apprise_sender import Delivery
from ovia_backup_dagster.offsite.copying import Copied
from ovia_backup_dagster.offsite.remote_pruning import RemotePruned
from ovia_backup_dagster.offsite.remote_record import RemoteRecord
from ovia_backup_dagster.offsite.remote_verification import RemoteVerified
from ovia_backup_dagster.pitr.base_manifest import BaseVerdict
from ovia_backup_dagster.pitr.bases import BaseBackup
from ovia_backup_dagster.pitr.standing import PitrStanding
from ovia_backup_dagster.pitr.wal_pruning import PrunedArchive
from ovia_backup_dagster.postgres.verification import Verified
from ovia_backup_dagster.restoration import restore_report
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.retention.plan import RetentionPlan
from ovia_backup_dagster.retention.promote_and_prune import Promoted, Pruned

Metadata = dict[str, dg.MetadataValue]
_DAY = timedelta(days=1)


def of_dump(backup: Backup, manifest: Manifest) -> Metadata:
    """``daily_dump``: the file, and how it was made."""
    return {
        "backup": dg.MetadataValue.text(backup.path.name),
        "path": dg.MetadataValue.path(str(backup.path)),
        "size_bytes": dg.MetadataValue.int(backup.size_bytes),
        "seconds": dg.MetadataValue.float(manifest.seconds),
        "compression": dg.MetadataValue.text(manifest.compression),
        # In two parts: the UI does not wrap a word, and would cut it off.
        "sha256": dg.MetadataValue.text(f"{manifest.sha256[:32]} {manifest.sha256[32:]}"),
        "server_version": dg.MetadataValue.text(manifest.database.server_version),
        "client_version": dg.MetadataValue.text(manifest.client_version),
        "warnings": dg.MetadataValue.int(len(manifest.warnings)),
    }


def of_verification(verified: Verified, log_head: str) -> Metadata:
    """``dump_verification``: figures, and the rows of each table with the change since the previous dump.

    Args:
        verified: the backup and its judgement.
        log_head: the head of the signed log; empty if backups are not signed.
    """
    witness, judgement = verified.witness, verified.judgement
    assert witness is not None  # only a good dump is materialized
    before = verified.previous.witness if verified.previous else None
    metadata = {
        "backup": dg.MetadataValue.text(verified.backup.path.name),
        "tables": _table(witness.rows_by_table(), before.rows_by_table() if before else None),
        "rows": dg.MetadataValue.int(witness.rows),
        "size_bytes": dg.MetadataValue.int(verified.backup.size_bytes),
        "decoded_bytes": dg.MetadataValue.int(witness.decoded_bytes),
        "ratio": dg.MetadataValue.float(round(witness.decoded_bytes / verified.backup.size_bytes, 3)),
        "seconds": dg.MetadataValue.float(judgement.seconds),
        "large_objects": dg.MetadataValue.int(witness.large_objects.count),
        "compared_with": dg.MetadataValue.text(verified.previous.path.name if verified.previous else "nothing"),
    }
    if log_head:
        # In two parts, as the SHA-256 of a dump.
        parts = re.sub(r"\b([0-9a-f]{32})(?=[0-9a-f]{32}$)", r"\1 ", log_head)
        metadata["signed_log_head"] = dg.MetadataValue.text(parts)
    if judgement.oddities:
        metadata["odd"] = of_list(judgement.oddities)
    return metadata


def of_list(texts: Iterable[str]) -> dg.MetadataValue:
    """A bulleted list of texts."""
    return dg.MetadataValue.md(bullets(map(plain, texts)))


def of_promotion(promoted: Promoted) -> Metadata:
    """``weekly_promotion``: whether the dump was promoted, and why."""
    return {
        "promoted": dg.MetadataValue.bool(bool(promoted.made)),
        "reason": dg.MetadataValue.text(promoted.reason),
        "backup": dg.MetadataValue.text(", ".join(map(str, promoted.made.values())) or "none"),
    }


def of_pruning(pruned: Pruned) -> Metadata:
    """``retention_pruning``: the decision about each backup, with its reason."""
    return {
        "removed": dg.MetadataValue.int(len(pruned.removed)),
        "kept": dg.MetadataValue.int(len(pruned.plan.decisions) - len(pruned.plan.removals)),
        "freed_bytes": dg.MetadataValue.int(pruned.freed_bytes),
        "plan": of_plan(pruned.plan),
    }


def of_plan(plan: RetentionPlan) -> dg.MetadataValue:
    """A retention plan as a table."""
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord(
                {
                    "backup": decision.candidate.key,
                    "state": decision.candidate.state.value,
                    "decision": "keep" if decision.keep else "remove",
                    "reason": decision.reason,
                }
            )
            for decision in plan.decisions
        ],
        schema=dg.TableSchema([dg.TableColumn(name) for name in ("backup", "state", "decision", "reason")]),
    )


def of_copies(copied: Copied, record: RemoteRecord, now: datetime) -> Metadata:
    """``offsite_copy``: what was sent, and what is on the remote."""
    found: Metadata = {
        "sent": dg.MetadataValue.int(len(copied.sent)),
        "sent_bytes": dg.MetadataValue.int(copied.sent_bytes),
        "seconds": dg.MetadataValue.float(copied.elapsed_seconds),
        "copies": dg.MetadataValue.int(len(copied.copies)),
        "copies_bytes": dg.MetadataValue.int(copied.copies_bytes),
    }
    if copied.sent:
        found["archives"] = of_list(copied.sent)
    if record.newest is not None:
        found["newest_age_hours"] = dg.MetadataValue.float(_hours(now - record.newest))
    return found


def of_remote_pruning(pruned: RemotePruned) -> Metadata:
    """``offsite_pruning``: the decision about each copy, with its reason."""
    records = [
        {"backup": each.archive, "decision": "keep" if each.keep else "remove", "reason": each.reason}
        for each in pruned.decisions
    ]
    return {
        "removed": dg.MetadataValue.int(len(pruned.removed)),
        "locked": dg.MetadataValue.int(len(pruned.locked)),
        "kept": dg.MetadataValue.int(len(pruned.kept)),
        "freed_bytes": dg.MetadataValue.int(pruned.freed_bytes),
        "plan": dg.MetadataValue.table(
            records=[dg.TableRecord(record) for record in records],
            schema=dg.TableSchema([dg.TableColumn(name) for name in ("backup", "decision", "reason")]),
        ),
    }


def of_remote_verification(found: RemoteVerified) -> Metadata:
    """``offsite_verification``: what is on the remote, and what was read back."""
    shown: Metadata = {
        "copies": dg.MetadataValue.int(len(found.copies)),
        "copies_bytes": dg.MetadataValue.int(found.copies_bytes),
        "findings": dg.MetadataValue.int(len(found.findings)),
    }
    if found.read_back is not None:
        shown["read_back"] = dg.MetadataValue.text(found.read_back.backup)
        shown["decrypted"] = dg.MetadataValue.bool(found.read_back.decrypted)
    if found.free_bytes is not None:
        shown["free_bytes"] = dg.MetadataValue.int(found.free_bytes)
    if found.notes:
        shown["odd"] = of_list(found.notes)
    return shown


def of_freshness(found: Freshness) -> Metadata:
    """``backup_freshness_alert``: the freshness of the newest backup."""
    metadata: Metadata = {
        "level": dg.MetadataValue.text(found.level.value),
        "newest_backup": dg.MetadataValue.text(found.newest.path.name if found.newest else "none"),
        "verified": dg.MetadataValue.bool(found.verified),
        "max_age_hours": dg.MetadataValue.float(_hours(found.max_age)),
    }
    if found.age is not None:
        metadata["age_hours"] = dg.MetadataValue.float(_hours(found.age))
    return metadata


def of_pitr(pitr: PitrStanding) -> Metadata:
    """How point-in-time recovery stands: the window, its holes, and what would be lost."""
    found: Metadata = {
        "point_in_time": dg.MetadataValue.text(pitr.text),
        "holes": dg.MetadataValue.int(len(pitr.holes)),
        "wal_bytes_per_day": dg.MetadataValue.int(round(pitr.facts.wal_bytes_per_day)),
        "newest_base": dg.MetadataValue.text(pitr.newest.name if pitr.newest else "none"),
        "verified_base": dg.MetadataValue.text(pitr.verified.name if pitr.verified else "none"),
    }
    if pitr.rpo_seconds is not None:
        found["rpo_seconds"] = dg.MetadataValue.float(round(pitr.rpo_seconds, 1))
    if pitr.worst_rpo_seconds is not None:
        found["worst_rpo_seconds"] = dg.MetadataValue.float(pitr.worst_rpo_seconds)
    if pitr.window is not None:
        found["window_from"] = dg.MetadataValue.timestamp(pitr.window.from_time)
        found["window_to"] = dg.MetadataValue.timestamp(pitr.window.to_time)
        found["window_days"] = dg.MetadataValue.float(round((pitr.window.to_time - pitr.window.from_time) / _DAY, 3))
    if pitr.holes:
        found["missing_wal"] = of_list(pitr.described_holes)
    if pitr.drilled_at is not None:
        found["drilled_at"] = dg.MetadataValue.timestamp(pitr.drilled_at)
    return found


def of_base(base: BaseBackup) -> Metadata:
    """``base_backup``: what was made."""
    made = base.manifest
    return {
        "base": dg.MetadataValue.text(base.folder.name),
        "system_identifier": dg.MetadataValue.text(made.system_identifier),
        "path": dg.MetadataValue.path(str(base.folder)),
        "size_bytes": dg.MetadataValue.int(made.size_bytes),
        "data_bytes": dg.MetadataValue.int(made.data_bytes),
        "ratio": dg.MetadataValue.float(round(made.size_bytes / max(made.data_bytes, 1), 3)),
        "seconds": dg.MetadataValue.float(made.seconds),
        "compression": dg.MetadataValue.text(made.compression),
        "timeline": dg.MetadataValue.int(made.timeline),
        "start_lsn": dg.MetadataValue.text(made.start_lsn),
        "end_lsn": dg.MetadataValue.text(made.end_lsn),
        "tablespaces": dg.MetadataValue.int(len(made.tablespaces)),
        "server_version": dg.MetadataValue.text(made.server_version),
        "client_version": dg.MetadataValue.text(made.client_version),
        "warnings": dg.MetadataValue.int(len(made.warnings)),
    }


def of_base_verification(base: str, verdict: BaseVerdict) -> Metadata:
    """``base_backup_verification``: what was read back."""
    return {
        "base": dg.MetadataValue.text(base),
        "files": dg.MetadataValue.int(verdict.files),
        "decoded_bytes": dg.MetadataValue.int(verdict.bytes),
        "seconds": dg.MetadataValue.float(verdict.seconds),
    }


def of_wal_pruning(pruned: PrunedArchive) -> Metadata:
    """``wal_archive_pruning``: the decision about each base backup, with its reason, and the WAL that was removed."""
    columns = ("base", "verified", "drilled", "decision", "reason")
    records = [
        {
            "base": each.base.name,
            "verified": "not yet" if each.base.verified is None else "good" if each.base.verified else "bad",
            "drilled": f"{each.base.drilled_at:%Y-%m-%d}" if each.base.drilled_at else "",
            "decision": "keep" if each.keep else "remove",
            "reason": each.reason,
        }
        for each in pruned.plan.bases
    ]
    kept = sum(each.keep for each in pruned.plan.segments)
    found: Metadata = {
        "removed_bases": dg.MetadataValue.int(len(pruned.bases)),
        "removed_segments": dg.MetadataValue.int(len(pruned.segments)),
        "kept_segments": dg.MetadataValue.int(kept),
        "freed_bytes": dg.MetadataValue.int(pruned.freed_bytes),
        "plan": dg.MetadataValue.table(
            records=[dg.TableRecord(record) for record in records],
            schema=dg.TableSchema([dg.TableColumn(name) for name in columns]),
        ),
    }
    if pruned.plan.held:
        found["on_hold"] = dg.MetadataValue.text(pruned.plan.held)
    if pruned.in_use:
        found["in_use"] = of_list(pruned.in_use)
    return found


def of_delivery(delivery: Delivery) -> Metadata:
    """The channels that accepted the message, and those that did not."""
    return {
        "told": dg.MetadataValue.text(", ".join(delivery.delivered) or "no one: BACKUP_NOTIFY_URLS is empty"),
        **({"not_told": dg.MetadataValue.text(", ".join(delivery.failed))} if delivery.failed else {}),
    }


def of_drill(evidence: Evidence, folder: Path) -> Metadata:
    """``restore_drill``: the evidence, most important first, and figures that are plotted over drills."""
    file = folder / f"{evidence.filename}.md"
    found: Metadata = {
        "summary": dg.MetadataValue.md(drill_report.drill_summary(evidence)),
        "evidence": dg.MetadataValue.md(drill_report.drill_page(evidence)),
        "evidence_file": _path(file, folder.parent),
        "backup": dg.MetadataValue.text(evidence.backup),
        "launched_by": dg.MetadataValue.text(evidence.launched_by),
        "restored_into": dg.MetadataValue.text(evidence.place),
        "confinement": dg.MetadataValue.md(plain(evidence.confinement) or "none"),
        "rows": dg.MetadataValue.int(evidence.rows),
        "backup_bytes": dg.MetadataValue.int(evidence.backup_bytes),
        "odd": dg.MetadataValue.int(len(evidence.oddities)),
        **{f"{name.replace(' ', '_')}_seconds": dg.MetadataValue.float(n) for name, n in evidence.phases.items()},
    }
    if evidence.copy_bytes is not None:
        found["copy_bytes"] = dg.MetadataValue.int(evidence.copy_bytes)
    if evidence.recovery_seconds is not None:
        found["recovery_seconds"] = dg.MetadataValue.float(evidence.recovery_seconds)
    if evidence.kept:
        found["kept_copy"] = dg.MetadataValue.text(evidence.kept)
    return found


def of_restore_plan(lines: Iterable[str]) -> Metadata:
    """``restore_job``: the plan."""
    return {"plan": of_list(lines)}


def of_word(word: str) -> Metadata:
    """``restore_job``: the word that lets another run carry out the plan."""
    return {"confirm": dg.MetadataValue.text(word)}


def of_restore_record(record: Record, folder: Path, words: Callable[[str], str]) -> Metadata:
    """``restore_job``: the result, most important first.

    Args:
        record: of the restore.
        folder: of the records.
        words: rewrites a text for readers of the UI.
    """
    found: Metadata = {
        "summary": dg.MetadataValue.md(words(restore_report.restore_gist(record))),
        "outcome": dg.MetadataValue.text(record.outcome),
        "record": dg.MetadataValue.path(str(folder / f"{record.order.filename}.md")),
        "page": dg.MetadataValue.md(words(restore_report.restore_page(record))),
    }
    if record.kept:
        found["kept"] = dg.MetadataValue.text(record.kept)
    if record.interruption_seconds is not None:
        found["interruption_seconds"] = dg.MetadataValue.float(record.interruption_seconds)
    if record.proven:
        found["rows"] = dg.MetadataValue.int(record.proven.rows)
    return found


def of_report(lines: Sequence[Observation]) -> Metadata:
    """``backup_doctor``: the report and how to fix what is wrong, problems first."""
    counts = {level.value: dg.MetadataValue.int(sum(line.level is level for line in lines)) for level in Severity}
    return {
        "summary": dg.MetadataValue.md(problems_markdown(lines)),
        "report": dg.MetadataValue.md(markdown(lines)),
        **counts,
    }


def of_doctor_area(lines: Sequence[Observation]) -> Metadata:
    """A check of ``backup_doctor``: the observations in its area."""
    return {"found": dg.MetadataValue.md(markdown(lines, named=False))}


def _table(rows: Mapping[str, int], before: Mapping[str, int] | None) -> dg.MetadataValue:
    names = sorted({*rows, *(before or {})})
    records = []
    for name in names:
        if before is None:
            change = ""
        elif name not in before:
            change = "new"
        else:
            change = signed(rows[name] - before[name]) if name in rows else "gone"
        records.append(dg.TableRecord({"table": name, "rows": rows.get(name, 0), "change": change}))
    columns = [dg.TableColumn("table"), dg.TableColumn("rows", "int"), dg.TableColumn("change")]
    return dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns))


def _hours(span: timedelta) -> float:
    return round(span.total_seconds() / 3600, 2)


def _path(path: Path, root: Path) -> dg.MetadataValue:
    """A file on the volume, as Markdown: the UI does not wrap a path value, and would cut off what follows it."""
    return dg.MetadataValue.md(f"{code(str(path.relative_to(root)))} in {code(str(root))}")
