"""The page to print: the keys, the head of the log, and how to restore on an empty machine. Pure text.

It is the offline copy of the age identity. Who makes the keys belongs to ``key_files`` and ``age_keys``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ovia_backup_dagster.signing.age_keys import AGE_IDENTITY, AgePair
from ovia_backup_dagster.signing.chain import Chain
from ovia_backup_dagster.signing.key_files import VERIFY_KEY, NewFile, fingerprint
from ovia_backup_dagster.signing.sshsig import public_key, public_text

RECOVERY_PAGE = "recovery-page.txt"
_NOTED = 4
_BLANK = "____-__-__  no. _______  SHA-256 " + "_" * 47


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What is on the page.

    Attributes:
        made_at: when (UTC).
        key: the public key of the signed log.
        age: the identity and its recipient.
        age_was_printed: whether an earlier page has the identity, if this one cannot.
        log: the signed log, if there is one and it could be read.
    """

    made_at: datetime
    key: Ed25519PublicKey
    age: AgePair
    age_was_printed: bool = False
    log: Chain | None = None

    @property
    def file(self) -> NewFile:
        """The page as a file that only its owner may read."""
        return NewFile(RECOVERY_PAGE, ("\n".join(_lines(self)) + "\n").encode())


def _lines(facts: PageFacts) -> Iterator[str]:
    yield f"RECOVERY PAGE of ovia-backup, made {facts.made_at:%Y-%m-%d %H:%M} UTC"
    yield ""
    if facts.age.identity is not None:
        yield "This page is the offline copy of the age identity, a secret: with it, every"
        yield "copy off the host can be decrypted. Print the page, keep the paper where no"
        yield "computer reaches it, and delete this file."
    else:
        yield "Print this page, keep it away from the host, and delete this file."
    yield ""
    yield "PUBLIC KEY OF THE SIGNED LOG"
    yield f"What it does not vouch for must not be restored. As a file, {VERIFY_KEY}:"
    yield public_text(facts.key)
    yield f"Fingerprint: {fingerprint(facts.key)}"
    yield ""
    yield from _age_lines(facts)
    yield ""
    yield from _head_lines(facts)
    yield ""
    yield "TO RESTORE ON AN EMPTY MACHINE"
    yield "Install ovia-backup, write the public key and the age identity to files, and"
    yield "let the settings name them, as docs/offsite.md says. Then:"
    yield "    ovia-backup list --offsite"
    yield "    ovia-backup fetch latest"
    yield "    ovia-backup restore PATH --new-host"
    yield "PATH is what fetch printed."
    yield "To restore without our programs: docs/restore-without-us.md."


def _age_lines(facts: PageFacts) -> Iterator[str]:
    yield "AGE RECIPIENT, to which copies off the host are encrypted"
    yield facts.age.recipient or "none: the keys were made without age"
    yield ""
    yield f"AGE IDENTITY, which decrypts them: secret. As a file, {AGE_IDENTITY}:"
    if facts.age.identity is not None:
        yield facts.age.identity
    elif facts.age_was_printed:
        yield "not on the host any more. It is on the page that was printed before: keep it."
    else:
        yield "none: the keys were made without age"


def _head_lines(facts: PageFacts) -> Iterator[str]:
    yield "HEAD OF THE SIGNED LOG, as ovia-backup log verify prints it"
    yield "A log with fewer statements was cut off. Note the head from time to time."
    log = facts.log
    blank = _NOTED
    if log is not None and log.head.at is not None:
        yield f"{log.head.at:%Y-%m-%d}  no. {log.head.sequence}  database {log.database}, SHA-256"
        yield f"    {log.head.sha256}"
        if log.key != public_text(facts.key):
            yield f"    signed by another key: {fingerprint(public_key(log.key))}"
        blank -= 1
    for _ in range(blank):
        yield _BLANK
