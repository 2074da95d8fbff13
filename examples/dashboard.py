"""Writes dashboard.html: a table of all runs, the best first, with links to their reports.

pip install pandas && python examples/dashboard.py
"""

import html
from dataclasses import asdict
from pathlib import Path

import pandas

from flowers_torch import list_runs

table = pandas.DataFrame(map(asdict, list_runs(Path("runs")))).sort_values("accuracy", ascending=False)
table["interval_95"] = [f"{i[0]:.3f} .. {i[1]:.3f}" if i else "" for i in table["interval_95"]]
cells = table.map(lambda value: html.escape(f"{value:.4f}" if isinstance(value, float) else str(value)))
cells["name"] = [f'<a href="runs/{name}/report.html">{name}</a>' for name in cells["name"]]
Path("dashboard.html").write_text(cells.to_html(index=False, escape=False), encoding="utf-8")
print(f"dashboard.html: {len(table)} of runs/, best accuracy {table['accuracy'].max():.3f}")
