"""`loopctl verify`: every hash, sequence and manifest checked."""

from __future__ import annotations

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.words import safe


@click.command("verify")
@shared_options
@click.pass_context
def verify_command(context: click.Context) -> None:
    """Check every hash, sequence and manifest of the run. Exit code 1 if anything has changed since it was written.

    \b
    Examples:
      loopctl verify
    """
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
    if the_call().json:
        findings = [asdict(finding) for finding in result.findings]
        print_json({"ok": not findings, "findings": findings, "checked": dict(result.checked)})
    elif result.findings:
        for finding in result.findings:
            click.echo(f"{finding.kind}: {safe(finding.message)}")
    else:
        click.echo(f"ok: {', '.join(f'{number:,} {what}' for what, number in result.checked.items())}")
    context.exit(1 if result.findings else 0)
