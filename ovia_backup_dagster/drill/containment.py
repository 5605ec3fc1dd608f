"""What keeps a backup that is let in from everything else: walls that hold, and functions that gain no rights.

Makes the check of the walls, and refuses an archive that is not to be trusted where it would be restored. How the walls
are tried is the business of ``escape_attempts``; what they are, of ``postgres.sandbox``.
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
    """What keeps the backup of one drill.

    Attributes:
        proof: of that backup; what is found is noted there.
        records: the folder of the evidence, which nothing inside may reach.
        text: how the backup is confined, for the evidence; empty until that was tried.
    """

    proof: Proof
    records: Path
    text: str = ""

    @property
    def programs(self) -> Programs:
        """The client programs, with their sandbox."""
        return self.proof.contents.programs

    def refuse_unconfined(self) -> None:
        """Where every wall must hold, no program is started that could read the archive through a hole.

        Raises:
            SandboxError: there is one.
        """
        programs = self.programs
        if programs.sandbox.confine is Confine.REQUIRE:
            self._judge(try_from_inside(programs, self.records))

    def prove(self, copy: Copy) -> None:
        """Try the walls before the archive is let in.

        Raises:
            SandboxError: one does not hold, and must.
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
        """Refuse to go on through a hole where every wall must hold.

        Raises:
            SandboxError: there is one.
        """
        self.text = walls.text
        try:
            walls.require(self.programs.sandbox)
        except SandboxError as error:
            self.proof.add(Check.CONTAINED, [error.account])
            raise

    def refuse_untrusted(self, copy: Copy, *, trusted: bool) -> None:
        """A proof is not worth that others become superusers where production is.

        Args:
            copy: where the backup is to be restored.
            trusted: whether a person trusts the owners of the archive's functions.

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
                "deploy/restore-role.sql makes (RESTORE_POSTGRES_USER); or, if you trust their owners: --trust-archive",
            )
