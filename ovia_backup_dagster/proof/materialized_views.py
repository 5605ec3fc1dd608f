"""Materialized views that a restore leaves unrefreshed, and the session of ours that refreshes them.

pg_restore refreshes them first, and has no ``search_path``: that is the business of ``pg_restore``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import be_patient, connect

#: How an entry of a contents list begins that refreshes a view.
REFRESH = "MATERIALIZED VIEW DATA "
#: How the command begins that does it.
REFRESH_COMMAND = "REFRESH MATERIALIZED VIEW "


@dataclass(slots=True)
class Unrefreshed:
    """A materialized view that pg_restore could not refresh.

    Attributes:
        command: that refreshes it, with its semicolon.
        said: what the server said when it was last tried and failed.
        refreshed: whether a session of ours could.
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
        return f"materialized view {view} cannot be refreshed: {self.said}; when that is put right: {command}"


def refresh_in_session(
    target: Connection, options: str, views: Sequence[Unrefreshed], search_path: str | None, listing: str
) -> None:
    """Refresh views in a session that has a ``search_path``, as often as that gets on: views stand on views.

    Each says afterwards whether it was refreshed, and if not, why.

    Args:
        target: the database.
        options: ``PGOPTIONS`` of what fills it.
        views: those that pg_restore could not refresh.
        search_path: the source database's own; ``None``: what the server gives.
        listing: the archive's contents list, which has all names.

    Raises:
        BackupError: the server or its disk failed, which says nothing about a view.
    """
    with connect(target, options) as session:
        be_patient(session)
        if search_path is not None:
            # By its whole name: the path may put a schema of others before what is built in.
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
