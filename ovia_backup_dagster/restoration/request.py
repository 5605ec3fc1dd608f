"""The options of a restore, the commands that give them, and which options exclude each other.

``preflight`` decides whether a restore is possible now, and ``planner`` how it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.core.errors import RestoreRefusedError
from ovia_backup_dagster.core.naming import NAME_BYTES, is_utf8
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.restoration.restore_order import Mode, Order, StopServices


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of a restore, as an operator gave them.

    Attributes:
        backup: a name, a path or ``latest``.
        anywhere: whether a path outside the volume is allowed.
        mode: see :class:`Mode`.
        into: with ``new``, the name of the database to create; empty for ``<db>_restore_<time>``.
        jobs: how many entries pg_restore restores at a time.
        stop_services: when services are stopped.
        replicas: service -> its replicas afterwards, if not the same as before.
        tables: names of tables to copy into the live database instead of replacing it; the mode is then ``new``.
        new_host, create_roles, privileged_roles, even_if_damaged, auto_undo: as in :class:`Order`.
    """

    backup: str = "latest"
    anywhere: bool = True
    mode: Mode = Mode.SWAP
    into: str = ""
    jobs: int = 1
    stop_services: StopServices = StopServices.AT_SWAP
    replicas: Mapping[str, int] = field(default_factory=dict)
    new_host: bool = False
    create_roles: bool = False
    privileged_roles: Sequence[str] = ()
    even_if_damaged: bool = False
    auto_undo: bool = False
    tables: Sequence[str] = ()

    def command(self) -> str:
        """The command line with these options."""
        default = Wishes()
        parts = {
            **{f"--tables {shell_word(name)}": True for name in self.tables},
            f"--mode {self.mode}": self.mode is not default.mode and not self.tables,
            f"--into {shell_word(self.into)}": self.into != default.into,
            f"--stop-services {self.stop_services}": self.stop_services is not default.stop_services,
            **{f"--scale {shell_word(name)}={count}": True for name, count in self.replicas.items()},
            "--new-host": self.new_host,
            "--create-roles": self.create_roles,
            **{f"--create-privileged-role {shell_word(name)}": True for name in self.privileged_roles},
            "--even-if-damaged": self.even_if_damaged,
            "--auto-undo": self.auto_undo,
        }
        return " ".join(["ovia-backup restore", shell_word(self.backup), *(part for part in parts if parts[part])])


def command_to_repeat(order: Order) -> str:
    """The command that begins the same restore or undo again."""
    if order.mode is Mode.UNDO:
        return f"ovia-backup undo-restore --kept {shell_word(order.incoming)}"
    return Wishes(backup=order.backup_path, mode=order.mode, tables=order.tables).command()


def command_to_give_up(order: Order) -> str:
    """The command that ends a restore which can neither be finished nor put back."""
    return f"ovia-backup restore --abort --yes-destroy {shell_word(order.database)}"


def refuse_contradictions(wishes: Wishes) -> None:
    wrong = ""
    whole = wishes.mode is Mode.DROP or wishes.into or wishes.even_if_damaged or wishes.auto_undo
    if wishes.tables and whole:
        wrong = "--mode drop, --into, --even-if-damaged and --auto-undo are for whole databases, and exclude --tables"
    elif wishes.even_if_damaged and wishes.mode is not Mode.NEW:
        wrong = "what is damaged must not go live: --even-if-damaged needs --mode new"
    elif wishes.into and wishes.mode is not Mode.NEW:
        wrong = "--into names a new database, and needs --mode new"
    elif wishes.auto_undo and wishes.mode is not Mode.SWAP:
        wrong = "--auto-undo swaps back, and needs --mode swap"
    if wrong:
        raise RestoreRefusedError("these options contradict each other", why=wrong, fix="ovia-backup restore --help")


def refuse_impossible_name(name: str) -> None:
    count = len(name.encode(errors="surrogatepass"))
    if count > NAME_BYTES or not is_utf8(name):
        why = f"it has {count} bytes, and PostgreSQL takes {NAME_BYTES}" if is_utf8(name) else "it is not UTF-8"
        raise RestoreRefusedError(
            f"no database can be called {shell_word(name)}", why=why, fix="choose a shorter name: --into NAME"
        )
