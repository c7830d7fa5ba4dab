"""A self-contained HTML page: no script, no network, pictures inside."""

import base64
from dataclasses import dataclass, field
from typing import Any

from jinja2 import DictLoader, Environment

_BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #d7dde5; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { color: #17713a; font-weight: 600; } .fail { color: #b3261e; font-weight: 600; }
img { max-width: 100%; display: block; } figure { margin: 0 0 1.2rem; } figcaption { color: #566173; }
pre { background: #f3f5f8; padding: .8rem; overflow-x: auto; } .wide { overflow-x: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
.summary td { vertical-align: top; } .note { color: #566173; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% block body %}{% endblock %}{% for section, pictures in sections.items() %}<h2>{{ section }}</h2>
{% for picture in pictures %}<figure><img alt="{{ picture.caption }}" src="data:image/png;base64,{{ picture.base64 }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}{% endfor %}{% block end %}{% endblock %}</body>
</html>
"""

_TABLES = """{% extends "base" %}{% macro verdict(passed) %}{% if passed is none %}<td></td>{% else %}
<td class="{{ 'pass' if passed else 'fail' }}">{{ 'pass' if passed else 'fail' }}</td>{% endif %}{% endmacro %}
{% block body %}{% for line in verdicts %}
<p class="{{ 'pass' if line.passed else 'fail' }}">{{ line.name }}: {{ line.value }}</p>{% endfor %}
{% if summary %}<div class="wide"><table class="summary">
<thead><tr><th>group</th><th>as wanted</th><th>farthest off</th><th>value [95 % interval]</th><th>real sets</th>
<th></th></tr></thead>
<tbody>
{% for group in summary %}{% for check in group.farthest or [none] %}<tr>
{% if loop.first %}<td rowspan="{{ loop.length }}">{{ group.name }}</td>
<td rowspan="{{ loop.length }}" class="{{ 'pass' if group.passed == group.judged else 'fail' }}">
{{- group.passed }} of {{ group.judged }}</td>{% endif %}
{% if check %}<td>{{ check.name }}</td><td class="number">{{ check.value }}</td><td class="number">{{ check.real }}</td>
{{ verdict(check.passed) }}{% else %}<td class="note">none</td><td></td><td></td><td></td>{% endif %}</tr>
{% endfor %}{% endfor %}</tbody>
</table></div>
{% endif %}<h2>All figures</h2>
{% for group, checks in tables.items() %}<details{{ ' open' if group in opened }}>
<summary>{{ group }} ({{ checks | length }})</summary>
<div class="wide"><table>
<thead><tr><th>figure</th><th>value [95 % interval]</th><th>n</th><th>real sets</th><th>wanted</th><th></th></tr>
</thead>
<tbody>
{% for check in checks %}<tr><td>{{ check.name }}</td><td class="number">{{ check.value }}</td>
<td class="number">{{ check.n }}</td><td class="number">{{ check.real }}</td><td>{{ check.wanted }}</td>
{{ verdict(check.passed) }}</tr>
{% endfor %}</tbody>
</table></div></details>
{% endfor %}{% endblock %}{% block end %}{% if commands %}<h2>How it was made</h2>
<pre>{{ commands | join('\n') }}</pre>
{% endif %}{% endblock %}"""


def render(template: str, **content: Any) -> str:
    """A page in the form of all pages: ``title``, ``lead``, what ``template`` puts into the blocks, and ``sections``.

    Everything that is put in is escaped.
    """
    environment = Environment(loader=DictLoader({"base": _BASE, "page": template}), autoescape=True)
    return environment.get_template("page").render(**content)


@dataclass(frozen=True)
class Check:
    """A figure with what is wanted of it.

    Attributes:
        name: of the figure.
        value: with its interval, or why there is none.
        wanted: in words.
        passed: whether it is so; None if nothing is asked for.
        n: what it rests on.
        real: the same between real sets.
    """

    name: str
    value: str
    wanted: str = ""
    passed: bool | None = None
    n: str = ""
    real: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str

    @property
    def base64(self) -> str:
        """The PNG for a data URI."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Summary:
    """How a group of figures did.

    Attributes:
        name: of the group.
        judged: figures of which something is wanted.
        passed: those that are as wanted.
        farthest: those that are farthest from it, the farthest first.
    """

    name: str
    judged: int
    passed: int
    farthest: list[Check]


@dataclass(frozen=True)
class Page:
    """What the page holds: the verdicts first, a line or a few for each group, all figures folded, pictures by section.

    Attributes:
        opened: tables that are not folded.
    """

    title: str
    lead: str
    verdicts: list[Check]
    tables: dict[str, list[Check]]
    sections: dict[str, list[Picture]]
    commands: list[str] = field(default_factory=list)
    summary: list[Summary] = field(default_factory=list)
    opened: frozenset[str] = frozenset()

    def html(self) -> str:
        """The page; everything that is put in is escaped."""
        return render(_TABLES, **vars(self))
