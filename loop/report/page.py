"""Facts as one page that opens from disk without a network: script, styles, figures and texts are all in it.

Texts from models, problem files and configurations are hostile. They reach the page by jinja's escaping, or as JSON in
which nothing can end a script and which report.js shows as text. Characters that do not show as themselves are made
visible before that. The page's policy (Content-Security-Policy) lets nothing run but the scripts that it names by hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from loop import words
from loop.config.toml_text import toml_value
from loop.report import comparison_figures, experiment_figures, run_figures
from loop.report.charts import Figure, themed
from loop.report.run_figures import measured_on
from policies.diagnosis import in_words, summary_of
from store.records import Json

# What moves, hides or reorders other characters, and what has no form of its own.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
_NAMED = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what reorders text
_SHOWN = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "␡"}
_SHOWN |= {character: f"[{unicodedata.name(character)}]" for character in _NAMED}


def visible(text: str) -> str:
    """The text with control, bidirectional and invisible characters shown: ␀, [RIGHT-TO-LEFT OVERRIDE], [U+200B]."""
    if text.isascii() and text.isprintable():
        return text
    return _ODD.sub(lambda match: _SHOWN.get(match[0]) or f"[U+{ord(match[0]):04X}]", text)


def made_visible(value: Any) -> Any:
    """The same JSON with every text in it `visible`, keys too."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key) if isinstance(key, str) else key: made_visible(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [made_visible(entry) for entry in value]
    return value


def script_json(value: Any) -> str:
    """JSON for inside a script element: nothing in it can end the element, begin another, or end a line."""
    plain = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(facts: Json, *, live: bool = False) -> str:
    """The whole page. `live`: it asks /events for news and /body for what takes the place of its <main>."""
    return _template("report.html.j2").render(
        title=visible(str(facts["name"] or "no run")),
        live=live,
        policy=content_security_policy(live=live),
        scripts=[Markup(script) for script in _scripts()],
        styles=Markup(_resource("report.css")),
        main=Markup(body(facts)),
    )


def body(facts: Json) -> str:
    """What is inside the page's <main>."""
    facts = made_visible(facts)
    by_name = {figure.name: figure for figure in figures(facts)}
    drawn = {
        name: [themed(panel, width="container", height=260 if len(figure.panels) == 1 else 190)
               for panel in figure.panels]
        for name, figure in by_name.items()
    }  # fmt: skip
    template = _template(f"{facts['kind']}.html.j2")
    return template.render(
        facts=facts,
        figures=by_name,
        specifications=Markup(script_json(drawn)),
        texts=Markup(script_json(facts.get("browser"))),
        configuration=json.dumps(facts.get("config"), indent=2, ensure_ascii=False),
        yardstick=measured_on,
    )


def content_security_policy(*, live: bool = False) -> str:
    """What the page may do: run its own scripts, use its own styles; when live, ask where it came from."""
    scripts, styles = " ".join(map(_hash, _scripts())), _hash(_resource("report.css"))
    policy = f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; base-uri 'none'; form-action 'none'"
    return policy + ("; connect-src 'self'" if live else "")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@functools.cache
def _scripts() -> tuple[str, str]:
    """vega, vega-lite and vega-embed, and ours."""
    return _inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")), _inline(_resource("report.js"))


def _inline(script: str) -> str:
    """A script that does not end the element that it stands in. In strings and patterns, \\/ is / and \\! is !."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", r"<\!--")


@functools.cache
def _resource(name: str) -> str:
    return (importlib.resources.files("loop.report") / name).read_text(encoding="utf-8")


@functools.cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("loop.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {
        **{
            name: getattr(words, name)
            for name in ("rate", "signed", "interval", "duration", "size", "count", "number", "round_name", "fate")
        },
        "decoding": words.decoding_words,
        "candidates": words.candidates_words,
        "nodes": words.nodes_words,
        "figure": lambda value: "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value),
        "time": lambda at: at[:19].replace("T", " ") + " UTC" if at else "-",
        "short": lambda sha256: (sha256 or "-")[:12],
        "toml": toml_value,
        "flat": _flat,
        "diagnosis": lambda diagnosis: in_words(
            summary_of({key: diagnosis[key] for key in diagnosis if key != "probe"})
        ),
    }
    return environment.get_template(name)


def _flat(table: Json, *above: str) -> list[tuple[str, Any]]:
    """Settings by their dotted names."""
    settings: list[tuple[str, Any]] = []
    for key, value in table.items():
        settings += _flat(value, *above, key) if isinstance(value, dict) else [(".".join((*above, key)), value)]
    return settings


def figures(facts: Json) -> list[Figure]:
    """The figures of a run, an experiment or a comparison; a figure with nothing to draw is left out."""
    makers: Sequence[Callable[[Json], Figure | None]]
    if facts["kind"] == "experiment":
        makers = experiment_figures.FIGURES
    elif facts["kind"] == "comparison":
        makers = comparison_figures.FIGURES
    else:
        makers = run_figures.FIGURES if facts["suites"] else ()  # nothing was run yet
    made = (make(facts) for make in makers)
    return [figure for figure in made if figure is not None and figure.panels]
