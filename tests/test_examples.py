"""Examples run, and the dashboard shows metrics that exist."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from visrec.publication import prometheus


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_notebook_runs_from_its_first_to_its_last_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process, on the cluster of the tests, as a kernel would: one cell after another."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((CHECKOUT / "examples" / "quickstart.ipynb").read_text())
    names: dict[str, object] = {}
    values = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        *statements, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert (tmp_path / "runs/quickstart/evaluation/report.html").exists()
    published = values[-1]
    assert list(published.columns) == ["user_id", "rank", "item_id", "score", "because_item_id"]
    assert not published.empty


def test_dashboard_shows_metrics_that_a_night_writes() -> None:
    dashboard = json.loads((CHECKOUT / "docs" / "grafana.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        (target,) = panel["targets"]
        shown |= set(re.findall(r"visrec_\w+", target["expr"]))
    assert shown
    assert shown <= set(prometheus._HELP)
