"""Continues a log by statements that another machine made, such as those on a remote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ovia_backup_dagster.signing.chain import claims_of_a_new_key
from ovia_backup_dagster.signing.statement_log import StatementLog


def extend(log: StatementLog, contents: Sequence[bytes], signatures: Mapping[int, bytes]) -> None:
    """Append statements, after checking them.

    Args:
        contents: the files of the statements that follow this log's last, in order.
        signatures: number -> signature, of each of them.

    Raises:
        StatementLogError: one does not hold, or does not follow.
        VolumeError: they cannot be written.
    """
    with log.files.locked():
        chain = log.chain()
        first = chain.head.sequence + 1
        needed = {*claims_of_a_new_key(contents, first), first + len(contents) - 1}
        chain.followed_by(contents, {number: signatures[number] for number in needed}, datetime.now(UTC))
        for sequence, content in enumerate(contents, first):
            log.files.write(sequence, content, signatures[sequence])
