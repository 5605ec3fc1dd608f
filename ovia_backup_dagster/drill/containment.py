"""Keeps the code in a backup away from everything else: the sandbox holds, and functions gain no rights.

Makes the check of the sandbox, and refuses an untrusted archive if its functions would gain rights. ``escape_attempts``
tests the sandbox; ``postgres.sandbox`` builds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import CopyError, SandboxError
from ovia_backup_dagster.drill.escape_attempts import Walls, try_from_inside
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.sandbox import Confine
from ovia_backup_dagster.postgres.session import connect, system_identifier
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.target import Copy


@dataclass(slots=True)
class Containment:
    """The containment of one drill.

    Attributes:
        proof: the proof of the drill's backup, which receives the check's result.
        records: the folder of the evidence, which no code in the sandbox may reach.
        text: how the backup is confined, for the evidence; empty until that was tested.
    """

    proof: Proof
    records: Path
    text: str = ""

    @property
    def programs(self) -> Programs:
        """The client programs, with their sandbox."""
        return self.proof.contents.programs

    def refuse_unconfined(self) -> None:
        """With DRILL_SANDBOX=require, test the sandbox before any program reads the archive.

        Raises:
            SandboxError: a wall does not hold.
        """
        programs = self.programs
        if programs.sandbox.confine is Confine.REQUIRE:
            self._judge(try_from_inside(programs, self.records))

    def prove(self, copy: Copy) -> None:
        """Test the sandbox before the archive is restored.

        Raises:
            SandboxError: a wall does not hold, and DRILL_SANDBOX=require is set.
        """
        programs = self.programs
        if not copy.private or programs.sandbox.confine is Confine.OFF:
            why = "DRILL_SANDBOX=off" if copy.private else "the server is one that others use"
            self.text = f"none: {why}"
            self.proof.add(Check.CONTAINED, [], passed=self.text, result=Result.NOT_MADE)
            return
        walls = try_from_inside(programs, self.records, copy)
        self._judge(walls)
        odd = [] if walls.whole else [walls.text]
        self.proof.add(Check.CONTAINED, [], odd=odd, passed=walls.text)

    def _judge(self, walls: Walls) -> None:
        """Store the result; refuse to go on if a wall does not hold and DRILL_SANDBOX=require is set.

        Raises:
            SandboxError: a wall does not hold.
        """
        self.text = walls.text
        try:
            walls.require(self.programs.sandbox)
        except SandboxError as error:
            self.proof.add(Check.CONTAINED, [error.account])
            raise

    def refuse_untrusted(self, copy: Copy, *, trusted: bool) -> None:
        """Refuse a drill through which other roles could gain a superuser's rights on the production cluster.

        Args:
            copy: the target of the restore.
            trusted: whether the operator trusts the owners of the archive's functions.

        Raises:
            CopyError: a superuser would run others' functions on the source's own cluster.
        """
        found = self.proof.prove_functions(copy)
        if not found.functions or trusted:
            return
        there = self.proof.contents.manifest.database.system_identifier if self.proof.contents.manifest else None
        with connect(copy.server) as session:
            here = system_identifier(session)
        if here is None or there is None or here == there:
            raise CopyError(
                f"{self.proof.contents.backup} is not restored into {copy.name}",
                why=f"it is, or may be, the source's own cluster, and {found}",
                fix="drill in a throwaway cluster: ovia-backup drill --where throwaway; or as the role that "
                "deploy/restore-role.sql creates (RESTORE_POSTGRES_USER); or, if you trust their owners: "
                "--trust-archive",
            )
