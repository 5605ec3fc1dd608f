"""``docs/performance.md``, rendered from ``results.json`` alone.

A note beside a table is printed only if the figures support it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks.measure import REPOSITORY, Json
from ovia_backup_dagster.core.human_text import human_bytes
from tools.figures import megabytes, spread, table
from tools.recovery_figures import barman_figures, point_in_time_figures

RESULTS = REPOSITORY / "benchmarks" / "results.json"
PAGE = REPOSITORY / "docs" / "performance.md"

_INTRODUCTION = """# Performance

<!-- Generated from benchmarks/results.json by make bench. Do not edit. -->

Measured by `make bench` with a real PostgreSQL server, the full build, on a database of half the demo's tables and half
prose. Sides that are compared take turns, five rounds, each round beginning with another side; a ratio is taken in each
round, and the figure given here is the median, with the lowest and the highest in parentheses. No cache is dropped:
what is read is in memory on all sides. Before each side, free memory is filled with another file's cache, as on a
server that has run for a day: a virtual machine may hand free memory back to its host, and here it took 2.3 s to get
a GB again.
"""


def rendered(results: Json) -> str:
    """The page."""
    dumps = ((_dump, "dump"), (_computed, "computed"))
    sections = (*dumps, (_compression, "compression"), (_verification, "verification"))
    restores = ((_drill, "drill"), (_restore, "restore"))
    signed = ((_listing, "listing"), (_signing, "signing"), (_offsite, "offsite"))
    instants = ((point_in_time_figures, "pitr"), (barman_figures, "barman"))
    more = (*signed, *instants, (_memory, "memory"), (_latency, "latency"), (_start, "start"))
    blocks = [_INTRODUCTION, *_targets(results)]
    for section, part in (*sections, *restores, *more):
        if part in results:
            blocks += [*section(results[part]), _surroundings(results[part])]
    return "\n".join(blocks)


def _targets(results: Json) -> Iterator[str]:
    found = sorted((entry for part in results.values() for entry in part["targets"]), key=lambda e: str(e["figure"]))
    yield table(
        ("", "what", "target", "measured", ""),
        [
            (
                entry["figure"],
                entry["what"],
                f"at most {entry['most']:g} {entry['unit']}".rstrip(),
                f"{entry['measured']:.3g} {entry['unit']}".rstrip(),
                "met" if entry["met"] else "**missed**",
            )
            for entry in found
        ],
    )


def _dump(part: Json) -> Iterator[str]:
    seconds, ratios, parts = part["seconds"], part["ratios"], part["job_parts"]
    yield f"## The daily job and pg_dump (a-d)\n\nA database of {megabytes(part['database_bytes'])}.\n"
    yield table(
        ("", "what", "seconds", "archive"),
        [
            ("a", "`daily_backup_job`: dump, verification, promotion, pruning", spread(seconds["job"]), ""),
            (
                "b",
                "the old script's `pg_dump -Fc`",
                spread(seconds["old_script"]),
                human_bytes(part["archive_bytes"]["old_script"]),
            ),
            (
                "c",
                "`pg_dump` as the job runs it, and fsync",
                spread(seconds["pg_dump"]),
                human_bytes(part["archive_bytes"]["pg_dump"]),
            ),
            ("d", "COPY of every table to nowhere, one session", spread(seconds["copy"]), ""),
        ],
    )
    yield table(("ratio", ""), [(name, spread(value, 2)) for name, value in ratios.items()])
    yield (
        "(a) is a real `dagster job execute` on a Dagster home of its own, from the start of the run to its end; the "
        "whole process, with Python's start, the imports and the creation of the run, took "
        f"{parts['process']['median']:.1f} s. Of (a):\n"
    )
    yield table(
        ("", "seconds"),
        [
            ("dump: pg_dump, roles, SHA-256, fsync, manifest", spread(parts["dump"])),
            ("verification: SHA-256, all of the archive, verdict", spread(parts["verification"])),
            ("Dagster's events, promotion, pruning", spread(parts["other"])),
        ],
    )
    verification, other = parts["verification"]["median"], parts["other"]["median"]
    if ratios["c/d"]["median"] > 1.4:
        yield (
            "**What bounds c/d**: pg_dump compresses in the thread that receives the rows, and the server waits for "
            "it; see the levels below. pg_dump 16 ignores `workers=`, and two tables at a time (`-Fd -j2`) gain "
            "nothing on two cores, as the server needs the other.\n"
        )
    if ratios["a/c"]["median"] > 1.7:
        yield (
            f"**What bounds a/c**: besides pg_dump, {verification:.1f} s go into reading the dump back, and, whatever "
            f"the database's size, {other:.1f} s into Dagster's events.\n"
        )


def _computed(part: Json) -> Iterator[str]:
    seconds, ratios = part["seconds"], part["ratios"]
    yield (
        "## Hashes of what a restore computes (o)\n\nBeside pg_dump, in its snapshot, a second session hashes "
        f"{part['columns']} generated columns and {part['views']} materialized views of a database of "
        f"{megabytes(part['database_bytes'])}: it reads {human_bytes(part['read_bytes'])} in "
        f"{part['hashing_seconds']:.2f} s. Whole dumps, with SHA-256, roles and manifest:\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("", "with the hashes", spread(seconds["hashed"])),
            ("", "the same database without", spread(seconds["unhashed"])),
            ("o", "a database with nothing to hash", spread(seconds["nothing"])),
            ("", "the same, not asked whether there is anything", spread(seconds["nothing_unhashed"])),
        ],
    )
    yield table(
        ("ratio", ""),
        [("with / without", spread(ratios["hashed"], 3)), ("o", spread(ratios["o"], 3))],
    )


def _compression(part: Json) -> Iterator[str]:
    yield "## Levels of compression\n\npg_dump on the same database, three rounds.\n"
    yield table(
        ("compression", "seconds", "beside COPY", "archive"),
        [
            (level, spread(part["seconds"][level]), spread(value, 2), human_bytes(part["archive_bytes"][level]))
            for level, value in part["ratios"].items()
        ],
    )


def _verification(part: Json) -> Iterator[str]:
    seconds, times = part["seconds"], part["ratios"]["e"]
    archive, text = human_bytes(part["archive_bytes"]), human_bytes(part["decoded_bytes"])
    yield f"## Verification (e)\n\nAn archive of {archive}, which decodes to {text}.\n"
    yield table(
        ("what", "seconds"),
        [
            (
                "verification's pass: rows and SHA-256 of every table, contents, schema",
                spread(seconds["read_archive"]),
            ),
            ("`pg_restore --file=/dev/null`", spread(seconds["decode"])),
            ("SHA-256 of the decoded text", spread(seconds["hash_text"])),
            ("SHA-256 of the archive, which comes before the pass", spread(seconds["hash_archive"])),
        ],
    )
    yield (
        f"The pass takes {spread(times, 2)} times as long as `pg_restore --file=/dev/null` and the SHA-256 of the "
        "decoded text, one after the other.\n"
    )
    if times["median"] > 1.8:
        yield (
            "**What bounds e**: what pg_restore decodes goes through a pipe, and its newlines are counted, which costs "
            "Python more than the hash does. The contents and the schema take milliseconds.\n"
        )


def _drill(part: Json) -> Iterator[str]:
    seconds, phases = part["seconds"], part["phases"]
    yield (
        f"## The restore drill (j, k, n)\n\nA database of {megabytes(part['database_bytes'])}, restored into a "
        "throwaway cluster, read back, compared, analyzed; beside what the old runbook asks people for, on a server "
        "with PostgreSQL's defaults, which keeps its data safe.\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("j", "`ovia-backup drill`, the whole process, confined", spread(seconds["drill"])),
            ("n", "the same with `DRILL_SANDBOX=off`", spread(seconds["unconfined"])),
            (
                "",
                "`pg_restore` of the old script's dump, one job, and `count(*)` of every table",
                spread(seconds["old"]),
            ),
            ("k", "reading the copy: rows, SHA-256, contents, schema", spread(seconds["read"])),
            ("", "`pg_dump -Fc -Z0` of the copy", spread(seconds["dump"])),
        ],
    )
    yield table(("ratio", ""), [(name, spread(value, 2)) for name, value in part["ratios"].items()])
    yield f"Of the drill, {spread(part['recovery'])} s are what a restore would take: the recovery time. Its phases:\n"
    yield table(("", "seconds"), [(name, spread(taken)) for name, taken in phases.items()])
    restore, reading = phases["restore"]["median"], phases["reading the copy"]["median"]
    if part["ratios"]["j"]["median"] > 0.75 and restore < seconds["old"]["median"] * 0.75:
        yield (
            f"**What bounds j**: the restore alone takes {restore:.1f} s, with both cores here busy, as with "
            f"reading ({reading:.1f} s) and ANALYZE; one process and its server leave a core half idle. What the jobs "
            "gain, the proof takes back. With more cores the restore's part shrinks.\n"
        )


def _restore(part: Json) -> Iterator[str]:
    seconds, steps, phases = part["seconds"], part["steps"], part["phases"]
    yield (
        f"## The restore (l, m)\n\nA database of {megabytes(part['database_bytes'])}, replaced on a server with "
        "PostgreSQL's defaults, which keeps its data safe. A checkpoint comes before each side, and is not counted.\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("l", "`ovia-backup restore`, from the command to proven and live", spread(seconds["swap"])),
            (
                "",
                "the old runbook: drop, create, `pg_restore` of the old script's dump, `count(*)` of every table",
                spread(seconds["runbook"]),
            ),
        ],
    )
    yield table(("ratio", ""), [(name, spread(value, 2)) for name, value in part["ratios"].items()])
    yield "Its steps, and of the step `restore` the phases; the rest is Python's start, the plan and the record:\n"
    yield table(
        ("", "seconds"),
        [(f"step `{name}`", spread(taken)) for name, taken in steps.items()]
        + [(name, spread(taken)) for name, taken in phases.items()],
    )
    if part["ratios"]["l"]["median"] > 0.85:
        proof = sum(phases[name]["median"] for name in ("hash", "reading the copy", "comparison", "analyze"))
        busy, cores = {name: taken["median"] for name, taken in part["busy"].items()}, part["cores"]
        shares = {name: busy[name] / seconds[name]["median"] / cores for name in busy}
        least = busy["swap"] / cores / seconds["runbook"]["median"]
        yield (
            f"**What bounds l**: processor time. The restore alone takes {phases['restore']['median']:.1f} s of the "
            f"runbook's {seconds['runbook']['median']:.1f} s; then come {proof:.1f} s that the runbook does not spend: "
            "every row is read back and compared, and the statistics are made, without which the database would be "
            f"slow at first. That is {busy['swap']:.1f} s of processor time beside {busy['runbook']:.1f} s, and keeps "
            f"the {cores} cores here busy to {shares['swap']:.0%}, the runbook's way to {shares['runbook']:.0%}. With "
            f"no core ever idle the ratio would be {least:.2f}. None of it interrupts a session: the old database "
            "is in use meanwhile.\n"
        )
    yield (
        f"### The interruption (m)\n\n{part['clients']} clients connect, run one query, disconnect, and start "
        f"again at once, in processes of their own, while the database is swapped by {part['restores']} restores and "
        f"then {part['undos']} times by `undo-restore`. The longest time between two successful answers to a client, "
        "of all clients, around each swap:\n"
    )
    yield table(
        ("", "milliseconds"),
        [
            ("around the swap", spread(part["interruption"], 0, 1000)),
            ("in the seconds before it, while nothing else was done", spread(part["calm"], 0, 1000)),
            ("the swap itself, as its record says", spread(part["swap"], 0, 1000)),
        ],
    )


def _listing(part: Json) -> Iterator[str]:
    yield "## Many backups (f)\n"
    yield table(
        ("backups", "sensor tick, ms", "`list --json`, ms", "the same as a process, ms"),
        [
            (
                f"{volume['backups']:,}",
                *(spread(volume["seconds"][name], 1, 1000) for name in ("tick", "list", "list_process")),
            )
            for volume in part["volumes"]
        ],
    )
    yield "Each backup has a manifest and a verdict with 30 tables. `list` reads all of them, the sensor the newest.\n"


def _signing(part: Json) -> Iterator[str]:
    seconds = part["seconds"]
    yield (
        f"## The signed log (p)\n\n{part['statements']:,} statements: a dump, its verdict and a removal a day for "
        f"{part['years']} years, and a new key each year. A process that has not read the log before:\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("p", "reads and checks it with the newest key", spread(seconds["read"])),
            ("", "the same with the first key: one more signature a year", spread(seconds["read_with_the_first_key"])),
            ("", "`ovia-backup log verify`: every signature", spread(seconds["check_each"])),
            ("", "a process that has read it states one more", spread(seconds["state"], 3)),
        ],
    )


def _offsite(part: Json) -> Iterator[str]:
    seconds, peak = part["seconds"], part["peak_mb"]
    yield (
        "## Copies on remotes (q-t)\n\nAn S3 server on loopback (`rclone serve s3`), and a file of "
        f"{part['megabytes']:,} MB that does not compress. Sending is one stream: age, SHA-256 and MD5 in "
        "passing, rclone in parts; fetching writes the ciphertext, decrypts it and compares the SHA-256.\n"
    )
    yield table(
        ("", "what", "seconds"),
        [
            ("q", "encrypted and hashed to S3", spread(seconds["sent"])),
            ("", "`rclone copyto` of the plain file", spread(seconds["copyto"])),
            ("t", "fetched, decrypted and compared", spread(seconds["fetched"])),
            ("s", f"a run with nothing to send, {part['objects']:,} objects there", spread(seconds["idle"])),
        ],
    )
    yield table(("ratio", ""), [("q", spread(part["ratio"], 2))])
    shown = ", ".join(f"{name} {value:.0f} MB" for name, value in peak.items())
    yield f"Peaks of memory while sending: {shown}. Before the first byte ours has 43 MB: Python and its libraries.\n"


def _memory(part: Json) -> Iterator[str]:
    names = {"dump": "`ovia-backup dump`", "verify": "`ovia-backup verify`", "job": "the daily job"}
    yield "## Memory (g)\n\nPeaks of resident memory in MB.\n"
    sizes = part["databases"]
    rows = []
    for name, title in names.items():
        programs = sorted(
            {program for size in sizes for program in size["peak_mb"][name]}, key=lambda p: (p != "self", p)
        )
        for program in programs:
            values = [size["peak_mb"][name].get(program) for size in sizes]
            label = title if program == "self" else f"its {program}"
            rows.append((label, *("" if value is None else f"{value:.0f}" for value in values)))
    yield table(("", *(f"database of {megabytes(size['database_bytes'])}" for size in sizes)), rows)


def _latency(part: Json) -> Iterator[str]:
    yield (
        "## From the tick to pg_dump (h)\n\nA real `dagster-daemon` with `BACKUP_SCHEDULE='* * * * *'` and the "
        f"`dagster.yaml` of this repository, {len(part['seconds']['samples'])} ticks. From the tick's nominal time:\n"
    )
    rows = [(what, spread(value, 2)) for what, value in part["parts"].items()]
    yield table(("", "seconds"), [*rows, ("**until pg_dump starts**", spread(part["seconds"], 2))])


def _start(part: Json) -> Iterator[str]:
    seconds, above = part["seconds"], part["above_dagster"]
    yield "## Import and start (i)\n\nEach in a new process.\n"
    yield table(
        ("what", "seconds"),
        [
            ("`import dagster`", spread(seconds["import_dagster"])),
            ("import of a location with one asset", spread(seconds["import_trivial"])),
            ("import of ours", spread(seconds["import_ours"])),
            ("ours less the other", spread(above["import"])),
            ("`dagster definitions validate` of a location with one asset", spread(seconds["start_trivial"])),
            ("`dagster definitions validate` of ours", spread(seconds["start_ours"])),
            ("ours less the other", spread(above["start"])),
            ("`ovia-backup --help`", spread(seconds["help"])),
        ],
    )


def _surroundings(part: Json) -> str:
    return (
        f"*{part['date']}: {part['cores']} cores, {part['memory_gb']} GB of memory, load {part['load_before']} before; "
        f"PostgreSQL {part['postgresql']}, Python {part['python']}, Dagster {part['dagster']}.*\n"
    )


def main() -> None:
    """Write the page from the stored results, without measuring."""
    PAGE.write_text(rendered(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
