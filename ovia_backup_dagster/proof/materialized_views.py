"""Materialized views that pg_restore could not refresh: a session of this program refreshes them.

pg_restore tries first, without a ``search_path`` (see ``pg_restore``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import be_patient, connect

#: How an entry that refreshes a view begins in a contents list.
REFRESH = "MATERIALIZED VIEW DATA "
#: How the command that refreshes it begins.
REFRESH_COMMAND = "REFRESH MATERIALIZED VIEW "


@dataclass(slots=True)
class Unrefreshed:
    """A materialized view that pg_restore could not refresh.

    Attributes:
        command: the SQL that refreshes it, with a semicolon.
        said: the server's error in the last failed attempt.
        refreshed: whether a session with a ``search_path`` could refresh it.
    """

    command: str
    said: str
    refreshed: bool = False

    def __str__(self) -> str:
        command = self.command.removesuffix(";")
        view = command.removeprefix(REFRESH_COMMAND)
        if self.refreshed:
            return (
                f"materialized view {view} cannot be refreshed by pg_restore, which has no search_path: {self.said}; "
                f"it was refreshed with one, by: {command}"
            )
        return f"materialized view {view} cannot be refreshed: {self.said}; fix the cause, then run: {command}"


def refresh_in_session(
    target: Connection, options: str, views: Sequence[Unrefreshed], search_path: str | None, listing: str
) -> None:
    """Refresh views in a session that has a ``search_path``; repeat while that makes progress, as views use views.

    Each view then holds whether it was refreshed, and if not, the error.

    Args:
        target: the database.
        options: ``PGOPTIONS`` of the sessions that fill the database.
        views: those that pg_restore could not refresh.
        search_path: the source database's own setting; ``None`` for the server's default.
        listing: the archive's contents list, which holds all names.

    Raises:
        BackupError: the server or its disk failed, which is not a finding about a view.
    """
    with connect(target, options) as session:
        be_patient(session)
        if search_path is not None:
            # Qualified, because the path may put another schema before pg_catalog.
            session.execute("SELECT pg_catalog.set_config('search_path', %s, false)", [search_path])
        left, before = list(views), len(views) + 1
        while left and len(left) < before:
            before = len(left)
            for view in left:
                try:
                    session.execute(view.command.encode())
                except psycopg.Error as error:
                    if session.closed:
                        raise
                    view.said = target.redact(said_by(error, listing + view.command)) or view.said
                else:
                    view.refreshed = True
            left = [view for view in left if not view.refreshed]
