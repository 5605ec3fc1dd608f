"""In the UI, texts about a restore name the Launchpad's fields in place of command-line options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ovia_backup_dagster.defs.launchpad_words import in_the_ui
from ovia_backup_dagster.defs.run_configs import RestoreAction, RestoreConfig, RestoreMode
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, StopServices

BEGINS = "launch restore_job with "


@pytest.mark.parametrize(
    ("wishes", "config"),
    [
        (Wishes(), RestoreConfig()),
        (Wishes("ovia_daily_2026-11-29_215758.dump"), RestoreConfig(backup="ovia_daily_2026-11-29_215758.dump")),
        (Wishes(mode=Mode.DROP), RestoreConfig(mode=RestoreMode.drop)),
        (Wishes(mode=Mode.NEW, into="a b; c"), RestoreConfig(mode=RestoreMode.new, into="a b; c")),
        (Wishes(mode=Mode.NEW, into="it's"), RestoreConfig(mode=RestoreMode.new, into="it's")),
        (Wishes(mode=Mode.NEW, into="2026"), RestoreConfig(mode=RestoreMode.new, into="2026")),
        (
            Wishes("weekly/Ovia%20x.dump", mode=Mode.NEW, even_if_damaged=True),
            RestoreConfig(backup="weekly/Ovia%20x.dump", mode=RestoreMode.new, even_if_damaged=True),
        ),
        (Wishes(stop_services=StopServices.FIRST), RestoreConfig(stop_services_first=True)),
        (Wishes(replicas={"ovia_api": 3, "x y": 0}), RestoreConfig(replicas={"ovia_api": 3, "x y": 0})),
        (Wishes(new_host=True, create_roles=True), RestoreConfig(new_host=True, create_roles=True)),
        (Wishes(privileged_roles=["owner", "a, b"]), RestoreConfig(privileged_roles=["owner", "a, b"])),
        (Wishes(auto_undo=True), RestoreConfig(auto_undo=True)),
    ],
    ids=lambda value: value.command() if isinstance(value, Wishes) else "",
)
def test_commands_become_fields_of_the_launchpad(wishes: Wishes, config: RestoreConfig) -> None:
    text = in_the_ui(f"make room; or: {wishes.command()}; or not")
    assert text.startswith(f"make room; or: {BEGINS}")
    assert text.endswith("; or not")
    fields = text.removeprefix(f"make room; or: {BEGINS}").removesuffix("; or not")
    assert RestoreConfig(**yaml.safe_load(f"{{{fields}}}")) == config


def test_every_option_of_a_restore_has_its_field() -> None:
    """A new option of the command line needs a field here."""
    all_of_them = Wishes(
        "x.dump", True, Mode.NEW, "y", 2, StopServices.FIRST, {"z": 1}, True, True, ["w"], True, True, ["t,u"]
    )
    assert all(value != getattr(Wishes(), name) for name, value in vars_of(all_of_them).items() if name != "anywhere")
    assert "--" not in in_the_ui(all_of_them.command())
    assert "ovia-backup" not in in_the_ui(replace(all_of_them, backup="latest").command())


def vars_of(wishes: Wishes) -> dict[str, object]:
    return {name: getattr(wishes, name) for name in Wishes.__slots__}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x stays as y: ovia-backup undo-restore", "x stays as y: launch restore_job with action: plan_undo"),
        (
            "go back: ovia-backup undo-restore --kept 'a b'; or wait",
            'go back: launch restore_job with action: plan_undo, kept: "a b"; or wait',
        ),
        (
            "ovia-backup restore --resume; or put everything back: ovia-backup restore --abort",
            "launch restore_job with action: resume; or put everything back: launch restore_job with action: abort",
        ),
        ("ovia-backup restore --abort --yes-destroy ovia", "launch restore_job with action: abort"),
        ("ovia-backup restore --history", "see the runs of restore_job"),
        ("ovia-backup restore --help", "see the fields in the Launchpad of restore_job"),
        ("choose another (ovia-backup list); or", "choose another (the page of retention_pruning lists them all); or"),
        (
            "ovia-backup accept weekly/x.dump; else",
            "materialize dump_verification with accept: true, backup: weekly/x.dump; else",
        ),
        ("choose another name: --into NAME", "choose another name: into: NAME"),
        ("with it: --create-privileged-role bob", "with it: privileged_roles: [bob]"),
        ("--even-if-damaged needs --mode new", "even_if_damaged: true needs mode: new"),
        ("the same with --without-services", "the same with without_services: true"),
    ],
)
def test_options_in_a_sentence_become_fields(text: str, shown: str) -> None:
    assert in_the_ui(text) == shown
    # A text that was already translated stays the same.
    assert in_the_ui(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "what earlier restores have kept: ovia-backup undo-restore --list",
        "ovia-backup undo-restore --forget --yes-destroy NAME",
        "free: df -h $BACKUP_DIR; ovia-backup prune --dry-run",
        "docker service update --force ovia_api; psql --list; a--mode b",
        "database ovia_restore_20261129 and role ovia_backup",
    ],
)
def test_commands_without_an_equivalent_stay(text: str) -> None:
    assert in_the_ui(text) == text


def test_actions_are_those_of_the_launchpad() -> None:
    for command in ("restore --resume", "restore --abort", "undo-restore"):
        action = in_the_ui(f"ovia-backup {command}").partition("action: ")[2]
        assert RestoreAction(action)
