"""Checks that the source's extensions are installed on the target server, in the source's versions.

A dump does not hold the objects that an extension creates.
"""

from __future__ import annotations

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import ExtensionMissingError
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.target import Copy

_ENTRY = "EXTENSION - "


def require_available(contents: BackupContents, copy: Copy, record: ProofRecord) -> None:
    """Report a missing extension by name, before a restore fails because of it.

    Raises:
        ExtensionMissingError: the copy's server does not have it; the check is then recorded as failed.
    """
    entries = archives.entries(contents.listing)
    wanted = {entry.removeprefix(_ENTRY).rstrip() for entry in entries if entry.startswith(_ENTRY)}
    with connect(copy.server) as session:
        rows = session.execute("SELECT name FROM pg_available_extensions").fetchall()
    missing = sorted(wanted - {row["name"] for row in rows})
    if missing:
        fix = "install its package beside the server programs in PG_BIN_DIR; or drill on a server that has it: "
        fix += "ovia-backup drill --where database"
        error = ExtensionMissingError(
            f"the extension {', '.join(missing)} is not installed where the backup is restored to",
            why="the source has it, and the PostgreSQL here does not",
            fix="install its package on that server; then try again" if copy.live else fix,
        )
        record.add(Check.EXTENSIONS, [error.account])
        raise error


def prove_extensions(contents: BackupContents, copy: Copy, record: ProofRecord) -> None:
    """Compare the copy's extension versions with the source's.

    Raises:
        ServerError: the copy cannot be queried.
    """
    with connect(copy.connection) as session:
        rows = session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1").fetchall()
    here = {row["extname"]: row["extversion"] for row in rows}
    manifest = contents.manifest
    before = manifest.database.extensions if manifest else {}
    odd = [
        f"extension {name} is {here.get(name, 'missing')} in the copy and {version} in the source"
        for name, version in before.items()
        if here.get(name) != version
    ]
    odd += manifest.undumped if manifest else ()
    listed = ", ".join(f"{name} {version}" for name, version in here.items())
    unknown = "" if manifest else "; the source's versions are not known"
    record.add(Check.EXTENSIONS, [], odd=odd, passed=f"{listed or 'none'}{unknown}")
