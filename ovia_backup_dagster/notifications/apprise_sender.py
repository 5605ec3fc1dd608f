"""Notifies people through Apprise; a URL names each channel. A URL holds secrets and is never shown.

Another way to notify people is a module beside this one, with a class that has the methods of :class:`Notifier`;
``system`` creates it. ``health.alert_message`` writes the messages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from ovia_backup_dagster.core.errors import NotificationError


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of a message. Channels are named by number and kind only (``1 (slack)``).

    Attributes:
        delivered: channels that accepted the message.
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

    def unusable(self) -> tuple[str, ...]:
        """Channels whose URL Apprise does not understand."""
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        named = ((url.get_secret_value(), name) for url, name in zip(self.urls, self._names(), strict=True))
        return tuple(name for url, name in named if not apprise.Apprise.instantiate(url, suppress_exceptions=True))

    def _names(self) -> tuple[str, ...]:
        """A URL holds secrets: channels are named by number and kind."""
        kinds = (url.get_secret_value().partition("://")[0] for url in self.urls)
        return tuple(f"{number} ({kind})" for number, kind in enumerate(kinds, 1))

    def send(self, title: str, body: str, *, failure: bool) -> Delivery:
        """Send a message to every channel.

        Args:
            failure: whether it is bad news; channels that have colours or priorities show it.

        Raises:
            NotificationError: there are channels, and none accepted the message. Trying again may help.
        """
        # It takes a second to import, and is needed only when a message is sent.
        import apprise

        # Apprise's own log lines may repeat parts of a URL.
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        kind = apprise.NotifyType.FAILURE if failure else apprise.NotifyType.SUCCESS
        delivered: list[str] = []
        failed: list[str] = []
        for url, name in zip(self.urls, self._names(), strict=True):
            text = url.get_secret_value()
            channel = apprise.Apprise()
            try:
                accepted = channel.add(text) and channel.notify(title=title, body=body, notify_type=kind)
            except Exception:  # noqa: BLE001 - one plugin's error must not stop the other channels
                accepted = False
            (delivered if accepted else failed).append(name)
        if failed and not delivered:
            raise NotificationError(
                f"no one was notified: {title}",
                why=f"no channel accepted the message: {', '.join(failed)}",
                fix="check BACKUP_NOTIFY_URLS and the network: apprise -vv -b test URL",
            )
        return Delivery(tuple(delivered), tuple(failed))
