"""Tells people, through Apprise. What is said is decided elsewhere; a URL holds secrets and is never shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from ovia_backup_dagster.core.errors import NotificationError


@dataclass(frozen=True, slots=True)
class Delivery:
    """Who was told. Channels are named by number and kind only (``1 (slack)``).

    Attributes:
        delivered: channels that took the message.
        failed: channels that did not.
    """

    delivered: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends to every channel.

    Attributes:
        urls: Apprise URLs.
    """

    urls: Sequence[SecretStr]

    def send(self, title: str, body: str, *, failure: bool) -> Delivery:
        """Send a message to every channel.

        Args:
            failure: whether it is bad news; channels that have colours or priorities show it.

        Raises:
            NotificationError: there are channels, and none took the message. Trying again may help.
        """
        # A second to import, and only needed on bad days.
        import apprise

        # Apprise's own log lines may repeat parts of a URL.
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        kind = apprise.NotifyType.FAILURE if failure else apprise.NotifyType.SUCCESS
        delivered: list[str] = []
        failed: list[str] = []
        for number, url in enumerate(self.urls, 1):
            text = url.get_secret_value()
            name = f"{number} ({text.partition('://')[0]})"
            channel = apprise.Apprise()
            try:
                accepted = channel.add(text) and channel.notify(title=title, body=body, notify_type=kind)
            except Exception:  # noqa: BLE001 - a hundred plugins; none may keep the others from being tried
                accepted = False
            (delivered if accepted else failed).append(name)
        if failed and not delivered:
            raise NotificationError(
                f"nobody was told: {title}",
                why=f"no channel took the message: {', '.join(failed)}",
                fix="check BACKUP_NOTIFY_URLS and the network: apprise -vv -b test URL",
            )
        return Delivery(tuple(delivered), tuple(failed))
