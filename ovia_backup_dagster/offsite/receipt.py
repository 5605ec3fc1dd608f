"""The two signed files of a remote besides the log: the marker, and the receipt of a copied backup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.manifest import Sidecar

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


class Marker(Sidecar):
    """``ovia-offsite.json``: shows that the remote is mounted, and whose it is.

    Attributes:
        version: of this format.
        id: distinguishes the remotes of one database.
        database: the only database whose backups are there.
        at: when it was made (UTC).
    """

    version: Literal[1] = 1
    id: str
    database: str
    at: AwareDatetime


class CopiedFile(Sidecar):
    """An encrypted file as it was sent.

    Attributes:
        path: below the remote.
        size_bytes: of the ciphertext.
        sha256, md5: of the ciphertext, in hex. Stores compare MD5; we compare SHA-256.
    """

    path: str
    size_bytes: int = Field(ge=0)
    sha256: Hex
    md5: Hex


class Receipt(Sidecar):
    """``receipt-00000042.json``: a backup's files were sent whole, and were there with these sizes.

    Attributes:
        version: of this format.
        remote: the marker's ``id``: a receipt of another remote does not count.
        backup: the archive's file name.
        sequence: the statement that names the files.
        at: when it was written (UTC).
        files: suffix -> file, the archive's suffix being empty.
    """

    version: Literal[1] = 1
    remote: str
    backup: str
    sequence: int = Field(ge=1)
    at: AwareDatetime
    files: Mapping[str, CopiedFile]
