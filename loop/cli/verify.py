"""`loopctl verify` checks every hash, sequence and manifest."""

from __future__ import annotations

import click

from loop.cli.options import command, print_answer, the_call
from loop.words import safe
from store.records import Json


@command("verify", "loopctl verify")
def verify_command() -> int:
    """Check every hash, sequence and manifest of the run. Exit code 1 if anything has changed since it was written."""
    from dataclasses import asdict

    from loop.reading.reader import reader
    from loop.system.exits import explained
    from store.errors import NoStore, StoreError, StoreTooNew, StoreTooOld
    from store.verify import Finding, Verification, verify_store

    try:
        with reader(the_call().place().run_dir) as store:
            result = verify_store(store.ledger.db, store.run_dir)
    except (NoStore, StoreTooNew, StoreTooOld):
        raise
    except StoreError as error:  # too damaged to read any further
        result = Verification([Finding("database", explained(error)[1])])
    findings = [asdict(finding) for finding in result.findings]
    print_answer({"ok": not findings, "findings": findings, "checked": dict(result.checked)}, _print)
    return 1 if findings else 0


def _print(answer: Json) -> None:
    for finding in answer["findings"]:
        click.echo(f"{finding['kind']}: {safe(finding['message'])}")
    if answer["ok"]:
        click.echo(f"ok: {', '.join(f'{number:,} {what}' for what, number in answer['checked'].items())}")
