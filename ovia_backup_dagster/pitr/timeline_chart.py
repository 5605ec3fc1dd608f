"""A timeline as a picture: commits a minute, and marks where rows were lost. Pure; SVG without scripts or other files.

Screen readers and a pointer get the same facts from the ``title`` of each element.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape

from ovia_backup_dagster.pitr.wal_timeline import Minute, WalTimeline, WalTransaction

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 32, 56, 44
_MINUTE = timedelta(minutes=1)
_LABELS = 6
_ROLE = 'role="img" aria-labelledby="title desc"'
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.bar{fill:#4a78b5}.axis{stroke:#888}.loss{stroke:#b3261e;fill:#b3261e}"
    ".point{stroke:#2e7d32;fill:#2e7d32}"
)


def svg_of(timeline: WalTimeline, since: datetime, until: datetime, title: str) -> str:
    """Draw a timeline.

    Args:
        timeline: what happened.
        since, until: the first and the last instant of the picture (UTC).
        title: what it shows, in words.
    """
    since, until = (at.astimezone(UTC).replace(second=0, microsecond=0) for at in (since, until))
    until = max(until, since) + _MINUTE
    scale = _Scale(since, until, max((each.commits for each in timeline.minutes), default=0) or 1)
    losses = [each for each in timeline.transactions if each.loses_rows]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_ROLE}>',
        f'<title id="title">{_text(title)}</title>',
        f'<desc id="desc">{_text(_description(timeline, losses))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20">{_text(title)}</text>',
        *_axes(scale),
        *(_bar(scale, each) for each in timeline.minutes),
        *(
            _mark(scale, point.after, "point", f"restore point {point.name}, {point.lsn}")
            for point in timeline.restore_points
            if point.after is not None
        ),
        *(_mark(scale, each.time, "loss", f"{_clock(each.time)} {each.lsn}: {each.text}") for each in losses),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Scale:
    """Places times and numbers."""

    def __init__(self, since: datetime, until: datetime, most: int) -> None:
        self.since, self.until, self.most = since, until, most
        self._across = (_WIDTH - _LEFT - _RIGHT) / (until - since).total_seconds()
        self._up = (_HEIGHT - _TOP - _BOTTOM) / most

    def x(self, at: datetime) -> float:
        return _LEFT + min(max(0.0, (at - self.since).total_seconds()), self.span) * self._across

    def y(self, count: float) -> float:
        return _HEIGHT - _BOTTOM - count * self._up

    @property
    def span(self) -> float:
        return (self.until - self.since).total_seconds()


def _axes(scale: _Scale) -> Iterator[str]:
    floor = scale.y(0)
    yield f'<line class="axis" x1="{_LEFT}" y1="{floor:.1f}" x2="{_WIDTH - _RIGHT}" y2="{floor:.1f}"/>'
    for count in sorted({0, scale.most // 2, scale.most}):
        yield f'<text x="{_LEFT - 6}" y="{scale.y(count) + 4:.1f}" text-anchor="end">{count:,}</text>'
    minutes = round(scale.span / 60)
    for minute in range(0, minutes + 1, -(-minutes // _LABELS)):
        at = scale.since + minute * _MINUTE
        yield f'<text x="{scale.x(at):.1f}" y="{floor + 18:.1f}" text-anchor="middle">{at:%H:%M}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">UTC, from {scale.since:%Y-%m-%d}</text>'


def _bar(scale: _Scale, minute: Minute) -> str:
    left, right = scale.x(minute.start), scale.x(minute.start + _MINUTE)
    told = f"{minute.start:%Y-%m-%d %H:%M} UTC: {minute.commits:,} commits"
    return (
        f'<rect class="bar" x="{left:.1f}" y="{scale.y(minute.commits):.1f}" '
        f'width="{max(0.5, (right - left) * 0.9):.1f}" height="{scale.y(0) - scale.y(minute.commits):.1f}">'
        f"<title>{_text(told)}</title></rect>"
    )


def _mark(scale: _Scale, at: datetime, kind: str, told: str) -> str:
    x = scale.x(at)
    return (
        f'<g class="{kind}"><title>{_text(told)}</title>'
        f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{scale.y(0):.1f}"/>'
        f'<path d="M{x - 6:.1f} {_TOP - 20} h12 l-6 12 z"/></g>'
    )


def _description(timeline: WalTimeline, losses: list[WalTransaction]) -> str:
    commits = sum(each.commits for each in timeline.minutes)
    told = "; ".join(f"{_clock(each.time)}: {each.text}" for each in losses) or "none"
    return f"{commits:,} commits. Drops, truncations and mass deletes: {told}."


def _clock(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"


def _text(text: str) -> str:
    # XML knows no control characters, not even escaped.
    return escape("".join(c if c.isprintable() else "�" for c in text))
