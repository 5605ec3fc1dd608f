"""Continues a log by statements that another machine made, such as those on a remote."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from ovia_backup_dagster.signing.chain import broken, claims_of_a_new_key
from ovia_backup_dagster.signing.sshsig import SignatureError, public_key, verify
from ovia_backup_dagster.signing.statement_log import StatementLog


def extend(log: StatementLog, contents: Mapping[int, bytes], signatures: Mapping[int, bytes]) -> None:
    """Append the statements that the log lacks, after checking them and every signature: this log is a source, too.

    Args:
        contents: number -> file of a statement.
        signatures: number -> signature, of each of them.

    Raises:
        StatementLogError: a signature is invalid, or a statement does not follow.
        VolumeError: they cannot be written.
    """
    with log.files.locked():
        chain = log.chain()
        # Another process may have appended some meanwhile.
        added = [sequence for sequence in sorted(contents) if sequence > chain.head.sequence]
        if not added:
            return
        texts = [contents[sequence] for sequence in added]
        needed = {*claims_of_a_new_key(texts, added[0]), added[-1]}
        longer = chain.followed_by(texts, {number: signatures[number] for number in needed}, datetime.now(UTC))
        for sequence in added:
            try:
                verify(public_key(longer.signer_of(sequence)), contents[sequence], signatures[sequence])
            except SignatureError as error:
                raise broken(f"the signature of statement {sequence} is invalid", str(error)) from None
        for sequence in added:
            log.files.write(sequence, contents[sequence], signatures[sequence])
