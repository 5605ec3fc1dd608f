"""Copies on remotes as assets: three for each remote. Absent if OFFSITE_REMOTES names none.

A remote that fails fails its own check, and nothing else: the backup on the volume is good without it, and the other
remotes have steps of their own. The freshness alert reports it as what it is (``health.condition``).
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.remote_address import RemoteAddress
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import DUMP_VERIFICATION, DatabaseNames
from ovia_backup_dagster.defs.policies import MAX_RETRIES, OWNERS
from ovia_backup_dagster.offsite.operations import RemoteOperations
from ovia_backup_dagster.system import BackupSystem

#: Asset checks.
COPIED, PRUNED, INTACT = "copied_to_remote", "pruned_on_remote", "copies_intact"
#: After the steps on the volume, which a long upload must not delay.
_LAST = {"dagster/priority": "-1"}
Result = dg.MaterializeResult[None] | dg.AssetCheckResult


def build_offsite_assets(system: BackupSystem, names: DatabaseNames) -> list[dg.AssetsDefinition]:
    """The assets of every remote."""
    return [
        asset
        for address in system.settings.offsite_remotes
        for asset in (
            _asset(system, names, address, names.offsite_copy(address.name), COPIED, _copy, [DUMP_VERIFICATION]),
            _asset(
                system,
                names,
                address,
                names.offsite_pruning(address.name),
                PRUNED,
                _prune,
                [names.offsite_copy(address.name)],
            ),
            _asset(system, names, address, names.offsite_verification(address.name), INTACT, _verify, []),
        )
    ]


#: The metadata to show, and what is wrong.
Done = tuple[metadata.Metadata, tuple[str, ...]]
_Act = Callable[[RemoteOperations, dg.AssetExecutionContext], Done]
_DESCRIPTIONS = {
    COPIED: "Sends every verified backup that {target} does not have, newest first: encrypted, signed, checked on "
    "arrival. A newer verdict or drill follows its backup.",
    PRUNED: "Removes the copies on {target} that OFFSITE_DAILY_KEEP and the other tiers do not keep. A copy that the "
    "store has locked stays, and is no failure.",
    INTACT: "Compares every copy on {target} with its signed receipts, reads one back whole, and tests the lock by a "
    "delete that must be refused.",
}


def _asset(
    system: BackupSystem,
    names: DatabaseNames,
    address: RemoteAddress,
    name: str,
    check: str,
    act: _Act,
    after: list[str],
) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.key(name),
        deps=[names.key(each) for each in after],
        group_name=names.backup_group,
        kinds={"file"},
        owners=OWNERS,
        pool=names.remote_pool(address.name),
        op_tags=_LAST,
        output_required=False,
        check_specs=[dg.AssetCheckSpec(check, asset=names.key(name), description=f"The last run on {address} worked.")],
        description=_DESCRIPTIONS[check].format(target=f"`{address.name}`"),
    )
    def offsite(context: dg.AssetExecutionContext) -> Iterator[Result]:
        try:
            [remote] = system.offsite.remotes(address.name)
            shown, findings = act(system.offsite.on(remote), context)
        except BackupError as error:
            if error.transient and context.retry_number < MAX_RETRIES:
                wait = system.retry_seconds * 2**context.retry_number
                context.log.warning(f"{error.account}. Trying again in {wait:.0f} s")
                raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from None
            text = names.in_words(str(error))
            context.log.error(text)
            yield dg.AssetCheckResult(check_name=check, passed=False, description=shortened(text))
            return
        yield dg.MaterializeResult(metadata=shown)
        yield dg.AssetCheckResult(
            check_name=check,
            passed=not findings,
            description=shortened("; ".join(findings)) or None,
            metadata={"findings": metadata.of_list(findings)} if findings else None,
        )

    return offsite


def _copy(operations: RemoteOperations, context: dg.AssetExecutionContext) -> Done:
    now = datetime.now(UTC)
    copied = operations.copy(now, context.log.info)
    return metadata.of_copies(copied, operations.record, now), operations.record.findings


def _prune(operations: RemoteOperations, context: dg.AssetExecutionContext) -> Done:
    pruned = operations.prune(datetime.now(UTC), context.log.info)
    return metadata.of_remote_pruning(pruned), ()


def _verify(operations: RemoteOperations, context: dg.AssetExecutionContext) -> Done:
    found = operations.verify(datetime.now(UTC), context.log.info)
    for note in found.notes:
        context.log.warning(note)
    return metadata.of_remote_verification(found), found.findings
