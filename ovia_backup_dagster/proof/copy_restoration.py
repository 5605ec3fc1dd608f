"""Restores a backup into a new copy: roles, the database, everything that the archive holds.

The order is the same for a drill's copy and for a database that goes live. ``pg_restore`` runs the program, ``roles``
creates roles, and ``target`` creates the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BackupError, ExtensionMissingError
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import executed_functions, roles
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.excluded_entries import Withheld, withheld
from ovia_backup_dagster.proof.extensions import require_available
from ovia_backup_dagster.proof.materialized_views import REFRESH, Unrefreshed
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.source_settings import InEffect, put_in_effect, settings_of_backup
from ovia_backup_dagster.proof.target import Copy, explained_by_limits

_RESCUE = "--mode new --even-if-damaged"


@dataclass
class CopyRestoration:
    """The restore of one backup.

    Attributes:
        contents: the backup.
        record: receives the results.
        jobs: how many entries pg_restore restores at a time. A single job fills the gaps that large rows leave in
            pages: the rows are the same, in another order.
        rescue: the command that restores the rows if a rule refuses them; empty for the usual command.
        lost: the errors of a restore despite errors, a line each.
        unrefreshed: materialized views that pg_restore could not refresh.
        settings: the source's settings that are in effect in the copy.
        withheld: entries that a scratch database does not get; a database that goes live gets all.
    """

    contents: BackupContents
    record: ProofRecord
    jobs: int
    rescue: str = ""
    lost: list[str] = field(default_factory=list, init=False)
    unrefreshed: list[Unrefreshed] = field(default_factory=list, init=False)
    settings: InEffect = field(default=InEffect(), init=False)
    withheld: Withheld = field(default_factory=Withheld, init=False)

    def prove_functions(self, copy: Copy) -> executed_functions.Reach:
        """Find functions that the restore would run with more rights than their owners have; records the check.

        Raises:
            BackupError: the server or the archive cannot be read.
        """
        if copy.private:
            found = executed_functions.Reach("", ())
            text = "all code in the backup runs in a cluster that serves this copy alone"
        else:
            found = executed_functions.reach(copy.server, self.contents.programs, self.contents.backup)
            known = f"no function is known to run with the rights of {found.role}"
            text = known if found.role else "the role that restores has no rights to lend"
        self.record.add(Check.FUNCTIONS, [], odd=[str(found)] if found.functions else [], passed=text)
        return found

    def restore(self, copy: Copy, *, despite_errors: bool = False) -> None:
        """Restore the backup into a copy that does not exist yet.

        Args:
            copy: the copy, which this method creates.
            despite_errors: restore as much as possible, and collect the errors in ``lost``.

        Raises:
            BackupError: the copy cannot be created, or the restore failed; the check is then recorded as failed.
        """
        contents, record = self.contents, self.record
        record.log(f"restoring {contents.backup} into: {copy.name}")
        with connect(copy.server) as session:
            row = session.execute("SELECT current_setting('server_version') AS version").fetchone()
            assert row is not None
            record.versions["copy"] = row["version"]
        require_available(contents, copy, record)
        notes: list[str] = []
        if copy.private:
            with record.phase("roles"):
                notes += self._make_roles(copy)
        else:
            text = "the server has roles of its own, which are left as they are"
            record.add(Check.ROLES, [], passed=text, result=Result.NOT_MADE)
        if not copy.with_owners:
            self.withheld = withheld(copy.server, contents.programs, contents.backup.path)
            notes += self.withheld.notes
        with record.phase("restore"):
            notes += copy.create(contents.script)
            settings = self._live_as_the_source(copy)
            notes += settings.notes
            restorer = self._restorer(copy)
            try:
                notes += self._fill(restorer, despite_errors=despite_errors)
            except BackupError as error:
                error = explained_by_limits(error, copy)
                check = Check.EXTENSIONS if isinstance(error, ExtensionMissingError) else Check.RESTORED
                record.add(check, [error.account, *settings.notes, *settings.quietly])
                raise error from None
        passed = f"{self.jobs} job{'s' if self.jobs > 1 else ''}, {record.phases['restore']:.1f} s, no error"
        record.add(Check.RESTORED, self.lost, odd=notes, passed=passed)
        with record.phase("materialized views"):
            self._prove_refreshed(restorer)

    def _restorer(self, copy: Copy) -> Restorer:
        return Restorer(
            self.contents.programs,
            copy.connection,
            copy.name,
            self.jobs,
            with_owners=copy.with_owners,
            live=copy.live,
            settings=self.settings,
            rescue=self.rescue or f"ovia-backup restore {self.contents.word} {_RESCUE}",
            without=self.withheld.entries,
        )

    def _fill(self, restorer: Restorer, *, despite_errors: bool) -> list[str]:
        contents = self.contents
        archive = contents.backup.path, contents.listing, contents.source_bytes, self.record.log
        if not despite_errors:
            return restorer.restore(*archive)
        salvaged = restorer.salvage(*archive)
        self.lost = salvaged.lost
        return salvaged.notes

    def _live_as_the_source(self, copy: Copy) -> InEffect:
        """Put the source's settings in effect, until ``source_settings.take_out``."""
        contents, log = self.contents, self.record.log
        self.settings = put_in_effect(copy, settings_of_backup(contents.backup, contents.script, contents.listing))
        log(f"settings of the source, in effect while the copy is filled: {', '.join(self.settings.names)}")
        for note in self.settings.quietly:
            log(note)
        return self.settings

    def _make_roles(self, copy: Copy) -> list[str]:
        programs, backup, record = self.contents.programs, self.contents.backup, self.record
        saved = backup.saved_roles()
        if saved is None:
            record.add(Check.ROLES, [], passed="no roles were saved with this backup", result=Result.NOT_MADE)
            made = roles.make_missing(copy.server, programs, backup.path)
            return (
                [f"roles were not saved with this backup; made from what the archive names: {', '.join(made)}"]
                if made
                else []
            )
        for note in roles.replay(copy.server, saved):
            record.log(f"roles: {note}")
        bad, odd = roles.compare_roles(copy.server, programs, saved)
        record.add(Check.ROLES, bad, odd=odd, passed=f"{len(roles.saved(saved))} roles, with what they may do")
        return []

    def _prove_refreshed(self, restorer: Restorer) -> None:
        contents = self.contents
        views = [entry for entry in archives.entries(contents.listing) if entry.startswith(REFRESH)]
        if views:
            self.unrefreshed = restorer.refresh(contents.backup.path, contents.listing, contents.search_path)
        odd = [str(view) for view in self.unrefreshed]
        if not self.lost:
            odd = [f"the data is proven, but {line}" for line in odd]
        self.record.add(
            Check.MATERIALIZED_VIEWS,
            odd,
            passed=f"{len(views)} refreshed" if views else "there is none to refresh",
        )
