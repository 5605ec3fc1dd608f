"""Renders a drill's evidence as a Markdown page for people. It decides nothing."""

from __future__ import annotations

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.human_text import human_bytes, seconds
from ovia_backup_dagster.core.markdown import bullets, code, plain, table
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.proof.check_results import CheckResult, Result

#: The lines of the old runbook's checklist -> the checks that answer them.
CHECKLIST = {
    "`verify-backup.sh` reports all expected tables present": Check.TABLES_PRESENT,
    "`restore.sh` completes without errors": Check.RESTORED,
    "Row counts for the expected tables are non-zero": Check.TABLES_HOLD_ROWS,
    "Row counts are consistent with expected data volume": Check.ROWS_KEPT,
    "Application health check passes after restore": Check.OWN_CHECK,
}
_NOT_REACHED = "the drill did not get that far"


def drill_page(evidence: Evidence) -> str:
    """Render the page."""
    verdict = "passed" if evidence.passed else "FAILED"
    parts = [
        f"# Restore drill of {code(evidence.backup)}: {verdict}",
        drill_summary(evidence),
        table(("", ""), _facts(evidence)),
        "## What was proven",
        table(("check", "result", "found"), [row(line) for line in evidence.lines]),
        "## The runbook's checklist",
        "\n".join(_checklist_line(evidence, text, check) for text, check in CHECKLIST.items()),
        "## Seconds",
        table(("phase", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in evidence.phases.items()]),
        "## Rows per table",
        table(
            ("table", "rows", "bytes with indexes"),
            [(code(t.name), f"{t.rows:,}", human_bytes(t.size_bytes)) for t in evidence.tables],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def drill_summary(evidence: Evidence) -> str:
    """The main facts in words: recovery time, rows, size.

    Short for a drill that passed, because Dagster's UI hides Markdown of 1,000 characters behind a link.
    """
    if evidence.passed:
        took = seconds(evidence.recovery_seconds) if evidence.recovery_seconds else "unknown"
        size = f"{human_bytes(evidence.backup_bytes)} as a backup"
        if evidence.copy_bytes is not None:
            size += f", {human_bytes(evidence.copy_bytes)} on disk"
        said = [
            f"Recovery time to expect: **{took}**",
            f"Rows: **{evidence.rows:,}** in {len(evidence.tables):,} tables",
            f"Size: **{size}**",
        ]
        if evidence.oddities:
            said.append(f"Odd, and worth a look: {len(evidence.oddities)}")
        return f"The backup restores, and what it restores is what was dumped.\n\n{bullets(said)}"
    lines = [f"* {plain(text)}" for text in evidence.failures]
    fix = f"\n\nNext: {plain(evidence.fix)}" if evidence.fix else ""
    return "It is not proven that this backup restores:\n\n" + "\n".join(lines) + fix


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    facts = [
        ("database", code(evidence.database)),
        ("backup", f"{code(evidence.tier)} of {evidence.backup_started_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("archive", f"{evidence.backup_bytes:,} bytes, SHA-256 {code(evidence.backup_sha256 or 'unknown')}"),
        ("drill", f"{evidence.started_at:%Y-%m-%d %H:%M:%S} to {evidence.finished_at:%H:%M:%S} UTC"),
        ("launched by", plain(evidence.launched_by)),
        ("restored into", f"{plain(evidence.place)}, {evidence.jobs} jobs"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(evidence.versions.items()))),
    ]
    if evidence.copy_bytes is not None and evidence.decoded_bytes is not None:
        rows = f"{evidence.rows:,} rows in {len(evidence.tables):,} tables, {evidence.large_objects:,} large objects"
        size = f"{human_bytes(evidence.copy_bytes)} on disk, {human_bytes(evidence.decoded_bytes)} as text"
        facts.append(("copy", f"{rows}, {size}"))
    if evidence.confinement:
        facts.append(("confinement", plain(evidence.confinement)))
    if evidence.kept:
        facts.append(("kept for a look, until the next drill", code(evidence.kept)))
    return [*facts, ("made by", evidence.made_by)]


def row(line: CheckResult) -> tuple[str, str, str]:
    """A check as a row of a table."""
    return (
        line.check.value,
        f"**{line.result.value}**" if line.result is Result.FAILED else line.result.value,
        plain(line.text),
    )


def _checklist_line(evidence: Evidence, text: str, check: Check) -> str:
    line = next((line for line in evidence.lines if line.check is check), None)
    mark = "x" if line is not None and line.result in (Result.PASSED, Result.ODD) else " "
    said = f"{line.result.value}: {plain(line.text)}" if line else _NOT_REACHED
    return f"- [{mark}] {text} ({said})"
