"""The report: its choice and Pareto front, its pages, and that Chromium opens it."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import artifact, tools
from coldpress.errors import InputError, UsageError
from coldpress.report import ReportOptions, plan, report, rows
from coldpress.report.compare import paired, pareto, recommend
from tests import made_evaluations

_CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return made_evaluations.write_all(tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(scope="module")
def written(evaluations: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report"
    report(evaluations, out, ReportOptions(title="Demo & co"))
    return out


_points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(_points)
def test_pareto_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert pareto(points) == [not beaten(p) for p in points]


def test_paired_difference_is_the_slow_loop() -> None:
    base = {("continuation", "s", i): i % 4 != 0 for i in range(40)}
    other = {("continuation", "s", i): i % 5 != 0 for i in range(40)} | {("letter", "s", 0): True}
    each = [int(i % 5 != 0) - int(i % 4 != 0) for i in range(40)]
    mean = sum(each) / 40
    spread = (sum((x - mean) ** 2 for x in each) / 39) ** 0.5
    assert paired(base, other) == pytest.approx((mean, 1.96 * spread / 40**0.5))
    assert paired(base, {}) == (None, None)


def test_rows_are_sorted_and_marked(evaluations: list[Path]) -> None:
    table = rows(evaluations)
    assert [row.size_bytes for row in table] == sorted(row.size_bytes for row in table)
    assert [row.name for row in table if row.is_base] == ["bf16"]
    (chosen,) = (row for row in table if row.recommended)
    near = [row for row in table if not row.is_base and row.delta is not None]
    near = [row for row in near if row.delta is not None and row.delta >= -0.01]
    assert chosen.size_bytes == min(row.size_bytes for row in near)
    worst = next(row for row in table if row.name == "Q2_K")
    assert not worst.best_accuracy and not worst.best_kl
    assert table[0].best_accuracy and table[0].best_kl


def test_nothing_is_recommended_when_all_lose_too_much(evaluations: list[Path]) -> None:
    table = [replace(row, recommended=False, delta=-0.2) for row in rows(evaluations)]
    assert not any(row.recommended for row in recommend(table, 1.0))


def test_every_file_has_a_row_everywhere(written: Path) -> None:
    n = len(made_evaluations.DEMO)
    lines = (written / "report.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert len(cells) == n + 2
    assert len({len(line) for line in cells}) == 1
    html = (written / "report.html").read_text(encoding="utf-8")
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    assert table.count('<th scope="row">') == n
    plain = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in plain["rows"]] == re.findall(r"</span>([^<]+?)(?: <|<)", table)
    artifact.verify(written)


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    class Checker(HTMLParser):
        tags: list[str]
        links: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            self.links += [
                value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}
            ]

    checker = Checker()
    checker.tags, checker.links = [], []
    html = (written / "report.html").read_text(encoding="utf-8")
    checker.feed(html)
    assert not {"script", "link", "iframe", "img", "object"} & set(checker.tags)
    assert all(link.startswith("#") for link in checker.links)
    assert "@import" not in html
    assert set(re.findall(r"url\((?!#)", html)) == set()
    assert "Demo &amp; co" in html


def test_equal_inputs_give_equal_bytes(
    written: Path, evaluations: list[Path], tmp_path: Path
) -> None:
    report(evaluations, tmp_path / "again", ReportOptions(title="Demo & co"))
    assert artifact.read(tmp_path / "again").files == artifact.read(written).files
    inputs, options = plan(evaluations, written, ReportOptions(title="Demo & co"))
    assert artifact.is_current(written, "report", inputs, options)


def test_chromium_shows_it(written: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    page = f"file://{written / 'report.html'}"
    argv = [chromium, *_CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}"]
    dom = tools.run([*argv, "--dump-dom", page], timeout_s=120)
    assert "recommended" in dom and dom.count("<svg") == 2
    picture = tmp_path / "page.png"
    tools.run([*argv, "--window-size=390,1200", f"--screenshot={picture}", page], timeout_s=120)
    assert picture.stat().st_size > 20_000


def test_labels_do_not_overlap(evaluations: list[Path]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from coldpress.report.labels import Label, place

    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [Label(i % 3, (i * 7) % 5, f"label {i}", "#000000") for i in range(12)]
    axes.plot([each.x for each in labels], [each.y for each in labels], "o")
    axes.margins(0.3)
    place(axes, labels)
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 12
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[:i])


@pytest.mark.parametrize(
    ("change", "named"), [("questions_digest", "questions"), ("text_digest", "text")]
)
def test_what_cannot_be_compared_is_refused(
    evaluations: list[Path], tmp_path: Path, change: str, named: str
) -> None:
    other = made_evaluations.write(
        tmp_path / "other", made_evaluations.DEMO[3], **{change: "c" * 64}
    )
    with pytest.raises(UsageError, match=f"differ in {named}"):
        report([*evaluations, other], tmp_path / "report", ReportOptions())
    assert not (tmp_path / "report").exists()


def test_no_and_wrong_folders_are_refused(evaluations: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluations"):
        report([], tmp_path / "report", ReportOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no evaluation"):
        report([tmp_path / "empty"], tmp_path / "report", ReportOptions())
    with pytest.raises(UsageError, match="max_loss_points"):
        ReportOptions(max_loss_points=-1)


def test_one_name_twice_is_told_apart(evaluations: list[Path], tmp_path: Path) -> None:
    twin = made_evaluations.write(tmp_path / "twin", made_evaluations.DEMO[1])
    names = [row.name for row in rows([*evaluations, twin])]
    assert len(set(names)) == len(names)
    assert "Q8_0 (twin)" in names
