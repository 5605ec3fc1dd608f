"""The sections of ``docs/performance.md`` on point-in-time recovery; ``performance`` makes the page."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Json
from ovia_backup_dagster.core.human_text import human_bytes
from tools.figures import megabytes, spread, table


def point_in_time_figures(part: Json) -> Iterator[str]:
    """What receiving costs, how fast copies and recoveries are, and what is lost with a server."""
    yield (
        f"## Point-in-time recovery (u-z)\n\nA server that keeps its data safe, pgbench's tables of "
        f"{megabytes(part['database_bytes'])}, {part['clients']} sessions. The server, pgbench, the receiver and its "
        f"volume share {part['cores']} cores and one disk here, which they need not in production.\n"
    )
    yield from _receiving(part)
    yield from _copies(part)
    yield from _day(part["day"])
    yield from _loss(part)


def _receiving(part: Json) -> Iterator[str]:
    found = part["receiving"]
    sides = found["transactions"]
    yield (
        f"### Receiving (u, v)\n\npgbench, {len(sides['on']['samples'])} runs of {found['run_seconds']:.0f} s on each "
        f"side, at {spread(found['wal_megabytes_per_second'], 1)} MB of WAL a second, a beacon every "
        f"{part['beacon_seconds']} s. A checkpoint comes before each run, and is not counted.\n"
    )
    yield table(
        ("", "", "transactions a second", "less, by the medians"),
        [
            ("", "nothing receives", spread(sides["off"], 0), ""),
            ("u", "`ovia-backup wal receive`", spread(sides["on"], 0), f"{found['cost_percent']:.1f} %"),
            (
                "",
                "`pg_receivewal --synchronous` alone: nothing is checked or archived",
                spread(sides["alone"], 0),
                f"{found['alone_percent']:.1f} %",
            ),
            ("", "server and pgbench have all cores but one; nothing receives", spread(sides["off_apart"], 0), ""),
            (
                "u",
                "the same, our receiver on that core, its volume in memory",
                spread(sides["on_apart"], 0),
                f"{found['apart_percent']:.1f} %",
            ),
            (
                "",
                "as in the second row, and commits wait for the receiver (`synchronous_standby_names`)",
                spread(sides["synchronous"], 0),
                f"{100 * (1 - found['synchronous_ratio']):.0f} % of that row",
            ),
        ],
    )
    yield (
        "For each GB of WAL, receiving, checking and compressing take "
        f"{spread(found['processor_seconds_per_gb'], 1)} s of processor time, the server's sender "
        f"{spread(found['sender_seconds_per_gb'], 1)} s. The WAL is stored as {spread(found['stored'])} of its "
        f"size. The worst RPO that the receiver reported was {spread(found['rpo_seconds'], 1)} s in these runs, and "
        f"{part['replay']['rpo_seconds']:.1f} s while {part['replay']['wal_megabytes_per_second']:.0f} MB of WAL were "
        "written a second.\n"
    )
    if found["cost_percent"] > 3:
        yield (
            f"**What bounds u**: pgbench, the server and the receiver share {part['cores']} cores, which pgbench keeps "
            "busy by itself, and one disk, on which the receiver syncs what it gets, as the server does. Compare the "
            "rows of pg_receivewal alone, and of the receiver with a core and a volume of its own.\n"
        )


def _copies(part: Json) -> Iterator[str]:
    bases, replay = part["bases"], part["replay"]
    yield (
        f"### Base backups and replay (w, x, y)\n\n{human_bytes(bases['data_bytes'])} of data, "
        f"{human_bytes(bases['size_bytes'])} as a base backup; {human_bytes(replay['wal_bytes'])} of WAL. "
        f"{len(bases['seconds']['ours']['samples'])} rounds of base backups, "
        f"{len(replay['seconds']['ours']['samples'])} of recoveries.\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("w", "base backup: hashed, synced and published", spread(bases["seconds"]["ours"])),
            ("", "`pg_basebackup`, the same compression and checksums", spread(bases["seconds"]["bare"])),
            ("x", "verification: every file against `backup_manifest`", spread(bases["seconds"]["verification"])),
            ("y", "replay in a confined cluster, from the compressed archive", spread(replay["seconds"]["ours"])),
            ("", "the same settings, unconfined, `cp` of plain segments", spread(replay["seconds"]["own"])),
            ("", "unpacking before the replay", spread(replay["seconds"]["unpack"])),
            ("", "the same with `tar --zstd`", spread(replay["seconds"]["tar"])),
        ],
    )
    yield table(
        ("ratio", ""), [(name, spread(value, 2)) for name, value in (bases["ratios"] | replay["ratios"]).items()]
    )


def _day(day: Json) -> Iterator[str]:
    idle, updates, beacon = day["idle_bytes"], day["updates"], day["beacon_seconds"]
    yield (
        f"### WAL of a day\n\nThe demo's database, idle, with a beacon every {beacon} s: in so many seconds the server "
        f"wrote {idle['median']:,.0f} bytes ({idle['min']:,.0f}-{idle['max']:,.0f}; autovacuum adds the most). That is "
        f"{human_bytes(day['idle_bytes_per_day'])} a day, extrapolated from {len(idle['samples']) * beacon} s, and the "
        f"segments that are being received; the receiver takes {day['idle_processor_percent']:.1f} % of a core "
        f"meanwhile. Updates of single rows of it are stored as {updates['stored']:.2f} of the WAL's size.\n"
    )


def _loss(part: Json) -> Iterator[str]:
    yield (
        "### The server lost with its disk (z)\n\nTwo sessions commit a row at a time, as fast as they can; all "
        "processes of the server are killed at a random moment, its disk is removed at once, and a cluster is "
        "recovered from the backup volume to the last commit that was received. The kernel lives on, so what the "
        "server had handed to it still arrives; a machine that loses power loses that, too.\n"
    )
    rows = []
    for name, found in part["lost"].items():
        rows.append(
            (
                "z" if name == "synchronous" else "",
                name,
                str(found["rounds"]),
                f"{found['committed']:,}",
                f"{found['commits']['max']:.0f}",
                f"{found['seconds']['max'] * 1000:.1f}",
            )
        )
    yield table(
        ("", "", "servers lost", "commits acknowledged", "lost, the worst", "the last ms before the loss, the worst"),
        rows,
    )
    yield (
        "In each round, what a beacon had confirmed was there, and each session's rows were the first that it had "
        "committed.\n"
    )


def barman_figures(part: Json) -> Iterator[str]:
    seconds, ratios = part["seconds"], part["ratios"]
    yield (
        f"## Beside Barman\n\nBarman {part['version']}, streaming with a slot, zstd:1 for both, the same server; "
        f"{', '.join(str(len(found['ours']['samples'])) for found in seconds.values())} rounds.\n"
    )
    labels = {
        "base": "base backup, as a command",
        "archiving": f"receiving and archiving {human_bytes(part['archived_bytes']['median'])} of WAL",
        "recovered": "from the command to a recovered server",
    }
    yield table(
        ("seconds", "ours", f"Barman {part['version']}", "ratio"),
        [
            (label, spread(seconds[name]["ours"]), spread(seconds[name]["barman"]), spread(ratios[name]))
            for name, label in labels.items()
        ],
    )
    yield (
        "Ours checks every record of the WAL before it is archived; Barman does not read them. Its `archive-wal` runs "
        "here without a pause, and once a minute in production. Ours includes Python's start, as Barman's does.\n"
    )
    if part["verification_refused"]:
        yield f"`barman verify-backup` of this backup: *{part['verification_refused']}*.\n"
