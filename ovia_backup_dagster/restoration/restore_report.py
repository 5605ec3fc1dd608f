"""Renders a restore's record as a Markdown page. It decides nothing."""

from __future__ import annotations

from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.markdown import code, plain, table
from ovia_backup_dagster.core.naming import before_at
from ovia_backup_dagster.drill.drill_report import row
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.restore_order import Mode

_TITLES = {
    Mode.SWAP: "Restore",
    Mode.DROP: "Restore without a way back",
    Mode.NEW: "Restore into a new database",
    Mode.UNDO: "Restore undone",
}


def restore_page(record: Record) -> str:
    """Render the page."""
    order, proven = record.order, record.proven
    what = code(order.backup or order.incoming)
    parts = [
        f"# {_TITLES[order.mode]}: {what}, {record.outcome}",
        restore_gist(record),
        table(("", ""), _facts(record)),
        "## Seconds",
        table(("step", "seconds"), [(step, f"{seconds:.1f}") for step, seconds in record.seconds.items()]),
    ]
    if record.notes:
        parts += ["## To know", "\n".join(f"* {plain(note)}" for note in record.notes)]
    if proven and proven.lost:
        parts += ["## What the damaged backup did not give", "\n".join(f"* {plain(text)}" for text in proven.lost)]
    if proven and proven.lines:
        parts += ["## What was proven", table(("check", "result", "found"), [row(line) for line in proven.lines])]
    if proven and proven.tables:
        rows = [(code(t.name), f"{t.rows:,}", human_bytes(t.size_bytes)) for t in proven.tables]
        parts += ["## Rows per table", table(("table", "rows", "bytes with indexes"), rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def restore_gist(record: Record) -> str:
    """The outcome, and what to do now."""
    lines = []
    if record.outcome == "put back":
        lines.append("It did not come to its end. Everything is as it was before.")
    elif record.outcome == "given up":
        lines.append("It was given up: neither finished nor put back.")
    elif record.order.tables:
        where = f"schema {code(record.order.tables_schema)} of {code(record.order.database)}"
        lines.append(f"{', '.join(map(code, record.order.tables))}: in {where}. No other table was touched.")
    elif record.order.becomes != record.order.database:
        lines.append(f"It is in {code(record.order.becomes)}. Nothing else was touched.")
    else:
        lines.append(f"{code(record.order.database)} is live with it.")
    if record.kept and before_at(record.kept, record.order.database):
        # By name: it will not stay the newest.
        back = "make it live again" if record.outcome == "put back" else "swap back"
        what = f"{record.what_is_kept[0].upper()}{record.what_is_kept[1:]} stays as {code(record.kept)}"
        lines.append(f"{what}: `ovia-backup undo-restore --kept` and this name {back}.")
    if record.error:
        lines.append(f"What failed: {plain(record.error)}.")
    if record.error and record.fix:
        lines.append(f"Next: {plain(record.fix)}")
    return "\n\n".join(lines)


def _facts(record: Record) -> list[tuple[str, str]]:
    order = record.order
    facts = [
        ("database", f"{code(order.database)} at {plain(order.place)}"),
        ("from", f"{order.started_at:%Y-%m-%d %H:%M:%S} to {record.finished_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("launched by", plain(order.launched_by)),
    ]
    if order.backup_started_at:
        facts.append(("backup of", f"{order.backup_started_at:%Y-%m-%d %H:%M:%S} UTC"))
    if record.proven and record.proven.tables:
        facts.append(("rows", f"{record.proven.rows:,} in {len(record.proven.tables):,} tables"))
    if record.interruption_seconds is not None:
        cut = f", {record.sessions_cut} sessions cut" if record.sessions_cut is not None else ""
        facts.append(("interruption at the swap", f"{record.interruption_seconds * 1000:.0f} ms{cut}"))
    if record.replicas:
        facts.append(("services", ", ".join(f"{plain(name)}: {count}" for name, count in record.replicas.items())))
    return [*facts, ("made by", order.made_by)]
