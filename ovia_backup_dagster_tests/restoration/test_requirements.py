"""The needs of a restore compared with what a server offers; tests that need no server."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.restoration.requirements import Needs, Offers, Sessions, unmet


@pytest.mark.parametrize("count", [1, 5, 6, 150])
def test_the_grant_for_many_owners_can_be_pasted(count: int) -> None:
    owners = sorted(f"owner_{'x' * 40}_{number:03}" for number in range(count))
    sessions = Sessions(of_role=None, of_server=97, free=97)
    offers = Offers(
        place="db:5432",
        role="keeper",
        superuser=False,
        a_superuser="postgres",
        strangers=dict.fromkeys(owners, False),
        sessions=sessions,
    )

    [obstacle], _ = unmet(Needs("a.dump", owners=owners), offers, 2)

    named = ", ".join(f'"{owner}"' for owner in owners[:5])
    grant = f'as a superuser: GRANT {named} TO "keeper" WITH INHERIT TRUE, SET TRUE'
    rest = f"; then those of the {count - 5} more, whom the plan names next; or let a superuser restore"
    assert obstacle.fix.startswith(grant)
    assert (rest in obstacle.fix) == (count > 5)
    assert "characters" not in obstacle.fix
    assert len(str(obstacle)) <= 1000
