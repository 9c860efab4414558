"""Mistakes in [schedule] by line, and what of it may change within a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loop.config.machine import ScheduleTable
from loop.config.same_run import config_sha256, differences, resolved
from loop.config.settings import Config
from tests.support import ROOT
from tests.support.configurations import VALID, load_text, mistakes_in

WINDOW_REMEDY = 'write "22:00-07:00", "Mon-Fri 20:00-06:00 Europe/Berlin" or "weekends"'
UNTIL_REMEDY = 'write "2026-12-24T08:00", or "2026-12-24T08:00+01:00"'
CRON_REMEDY = 'write minute, hour, day, month and weekday: "0 22 * * *" or "30 6 * * 1-5"'


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('every = "0h"', ["""18: schedule.every: '0h' is no time at all; write "continuous" for one round after the """
                          'other, or "6h"']),
        ('every = "often"', ["""18: schedule.every: 'often' is no interval; write "continuous", or a number and s, m, h, """
                             'd or w: "6h"']),
        ('every = "999999999d"', ["18: schedule.every: '999999999d' is more than a year; give at most 366d"]),
        ("every = 6", ["18: schedule.every: 6 is not text; give text in quotes"]),
        ('every = "continuous"\ncron = "0 22 * * *"', ["18: schedule.every: every and cron are both given; give one"]),
        ('cron = "0 22 * *"', [f"18: schedule.cron: '0 22 * *' has 4 fields, not 5; {CRON_REMEDY}"]),
        ('cron = ""', [f"18: schedule.cron: '' has 0 fields, not 5; {CRON_REMEDY}"]),
        *((f'cron = "{text}"', [f"18: schedule.cron: '{text}': {problem}; {CRON_REMEDY}"]) for text, problem in (
            ("60 22 * * *", "minute 60 is not between 0 and 59"),
            ("0 0 * * mon-fri,x", "'x' is no weekday"),
            ("0 0 * * mon-fri/0", "'mon-fri/0' is no weekday"),
            ("0 0 * * *-fri", "'*-fri' is no weekday"),
            ("0 0 1 march *", "'march' is no month"),
            ("0 8-6 * * *", "the hours '8-6' end before they begin"))),
        *((f'cron = "{text}"', [f"18: schedule.cron: '{text}' never comes; give a day that is in the month"])
          for text in ("0 0 30 2 *", "0 0 31 2,4,jun *")),
        ('cron = "0 0 13 * 5"', ["18: schedule.cron: '0 0 13 * 5' names a day of the month and a weekday, and cron "
                                 "programs differ in what that means; put * for one of them"]),
        ('timezone = "Europe/Berln"',
         ["18: schedule.timezone: 'Europe/Berln' is no time zone; the closest is Europe/Berlin"]),
        ('timezone = "?"', ["""18: schedule.timezone: '?' is no time zone; give a name like "Europe/Berlin" or "UTC\""""]),
        ('timezone = "Europe"\nwindows = ["25:00-26:00"]',
         ["18: schedule.timezone: 'Europe' is no time zone; give a name like \"Europe/Berlin\" or \"UTC\"",
          "19: schedule.windows[0]: '25:00-26:00': a window begins from 00:00 to 23:59 and ends at 24:00 at the latest"]),
        ("windows = []",
         ["18: schedule.windows: is empty, so no round would ever begin; leave the key out to run at any time"]),
        ('windows = "weekends"', ['18: schedule.windows: "weekends" is text; give a list of texts in quotes']),
        ('windows = [\n "weekends",\n "10:00-10:00",\n "",\n]',
         ["20: schedule.windows[1]: '10:00-10:00' ends when it begins; write 00:00-24:00 for the whole day",
          f"21: schedule.windows[2]: '' names neither days nor times; {WINDOW_REMEDY}"]),
        ('windows = ["10-18", "Mo 10:00-12:00", "saturn", "22:00-07:00 weekends UTC", "weekends Erope/Berlin"]',
         [*(f"18: schedule.windows[{n}]: '{text}': '{text.split()[0]}' is neither days nor times; {WINDOW_REMEDY}"
            for n, text in enumerate(["10-18", "Mo 10:00-12:00", "saturn"])),
          f"18: schedule.windows[3]: '22:00-07:00 weekends UTC': 'weekends' is not expected here; {WINDOW_REMEDY}",
          "18: schedule.windows[4]: 'Erope/Berlin' is no time zone; the closest is Europe/Berlin"]),
        *((f'until = "{text}"', [f"18: schedule.until: '{text}' is not a date with a time; {UNTIL_REMEDY}"])
          for text in ("Christmas", "2026-12-24", "0001-01-01T00:00+14:00")),
        ("until = 2026-12-24T08:00:00",
         ["18: schedule.until: 2026-12-24 08:00:00 is a date or time; no key takes one (text stands in quotes)"]),
        ('stop = [\n{ type = "plateau", round = 5, rounds = 5 },\n{ type = "taget" },\n{ type = "plateau" }, 3]',
         ["19: schedule.stop[0].round: unknown key; the keys of 'plateau' are type, rounds",
          "20: schedule.stop[1].type: unknown type 'taget'; known types: plateau, target, hours",
          "21: schedule.stop[2].rounds: is missing (Rounds in a row of which none was kept)",
          '21: schedule.stop[3]: 3 is not a table; give one such as { type = "plateau", rounds = 5 }']),
        ('stop = { type = "plateau", rounds = 5 }',
         ["18: schedule.stop: is a single table; write [[schedule.stop]] with double brackets"]),
        ("evry = 3", ["18: schedule.evry: unknown key; the closest is every"]),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line_and_remedy(tmp_path: Path, keys: str, expected: list[str]) -> None:
    assert mistakes_in(tmp_path, f"{VALID}[schedule]\n{keys}\n") == expected


def test_hostile_text_stays_one_printable_line(tmp_path: Path) -> None:
    hostile = '"\\u001b[31m\\u202e\\n' + "9" * 5000 + '"'
    valid = VALID.replace('"demo"', hostile)
    text = "".join(f"{key} = {hostile}\n" for key in ("every", "timezone", "until")) + f"windows = [{hostile}]\n"
    for block in (text, f"cron = {hostile}\n", f'cron = "0 0 * * {"9" * 5000}"\n'):
        name, *lines = mistakes_in(tmp_path, f"{valid}[schedule]\n{block}")
        assert name.isprintable() and len(name) < 250
        assert len(lines) == block.count("=") and all(line.isprintable() and len(line) < 400 for line in lines)


FULL = """\
[schedule]
cron = "0 22 * * *"
timezone = "Europe/Berlin"
windows = ["22:00-07:00", "weekends"]
until = "2026-12-24T08:00"
stop = [{ type = "plateau", rounds = 5 }, { type = "target", value = 0.5 }]
"""


def test_only_what_defines_the_run_changes_its_hash(tmp_path: Path) -> None:
    plain = load_text(tmp_path, VALID).config
    more = "[engine]\nbatch_size = 2\n[grading]\nnum_workers = 3\n"
    full = load_text(tmp_path, f'rounds = 0\nrun_dir = "elsewhere"\n{VALID}{FULL}{more}').config
    assert full.rounds == 0 and [stop.type for stop in full.schedule.stop] == ["plateau", "target"]
    assert config_sha256(plain) == config_sha256(full)
    assert differences(resolved(plain), resolved(full)) == []
    assert config_sha256(load_text(tmp_path, VALID.replace("1.2", "1.1")).config) != config_sha256(plain)


def test_resolved_is_a_config_again(tmp_path: Path) -> None:
    for text in (VALID, VALID + FULL, f'{VALID}[schedule]\nevery = "6h"\n'):
        config = load_text(tmp_path, text).config
        settings = resolved(config)
        assert settings["decide"]["gates"][0]["alpha"] == 0.05
        again = Config.model_validate_json(json.dumps(settings))
        assert resolved(again) == settings and again.schedule == config.schedule
        assert config_sha256(again) == config_sha256(config)


def test_the_commented_schedule_of_the_project_is_valid(tmp_path: Path) -> None:
    block = (ROOT / "loop.toml").read_text().split("# [schedule]")[1].split("\n\n")[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()[1:]]
    keys = [line.split(" = ")[0] for line in lines]
    assert set(keys) == set(ScheduleTable.model_fields)
    for leave_out in ("every", "cron"):
        kept = [line for line, key in zip(lines, keys, strict=True) if key != leave_out]
        load_text(tmp_path, f"{VALID}[schedule]\n" + "\n".join(kept))
