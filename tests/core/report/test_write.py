"""The report says what the runs say, in numbers worked out anew, and nothing that a file makes it say."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import FOUR, make_run, make_study

from rsslcli.core.errors import UserError
from rsslcli.core.report.page import Text, to_markdown
from rsslcli.core.report.write import Report, write_report


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and the cells of its tables by caption."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", [""]
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"th", "td"}:
            self.rows[-1].append("")
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1] == "caption":
            self.rows = self.tables[data] = []
        if self.open[-1] in {"th", "td"}:
            self.rows[-1][-1] += data

    def table(self, begins: str) -> dict[str, dict[str, str]]:
        """A table's cells by row and column."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(begins))
        return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def report(study: Path) -> Report:
    return write_report([study], study / "report")


def accuracy(study: Path, name: str, seeds: int = 3) -> np.ndarray:
    files = [study / f"{name}-s{seed}" / "eval-c.json" for seed in range(seeds)]
    return np.array([100 * json.loads(file.read_text())["mean_accuracy"] for file in files])


def test_table_1(study: Path, report: Report) -> None:
    table = Page(report.page).table("Table 1")
    assert [row["paper (− baseline)"] for row in table.values()] == [
        "74.07", "76.37 (+2.30)", "76.37 (+2.30)", "75.06 (+0.99)", "74.73 (+0.66)", "75.84 (+1.77)",
        "74.69 (+0.62)", "74.15 (+0.08)", "73.41 (−0.66)", "–", "78.68 (+4.61)",
    ]  # fmt: skip
    base, ours = accuracy(study, "baseline"), accuracy(study, "automl")
    row = table["Four tasks, AutoML"]
    assert row["ours, mean ± sd"] == f"{ours.mean():.2f} ± {ours.std(ddof=1):.2f}"
    difference = ours - base
    margin = 4.302652730 * difference.std(ddof=1) / 3**0.5
    numbers = [
        float(n.replace("−", "-")) for n in re.findall(r"[+−][\d.]+", row["− baseline [95 % interval]"])
    ]
    mean = difference.mean()
    assert numbers == pytest.approx([mean, mean - margin, mean + margin], abs=0.0051)
    assert row["exceeds the noise?"] == ("yes, better" if mean > margin else "no")
    assert table["Jigsaw"]["exceeds the noise?"] == "needs 2 seeds or more"
    assert table["Jigsaw"]["ours, mean ± sd"] == f"{accuracy(study, 'jigsaw', 1)[0]:.2f}"
    assert table["Baseline"]["exceeds the noise?"] == "–"


def test_the_other_tables(study: Path, report: Report) -> None:
    page = Page(report.page)
    others = page.table("Other comparisons")
    assert {"Four tasks, AutoML − Four tasks, fixed λ", "Rotation (batch_norm joint) − Rotation"} <= set(
        others
    )
    difference = accuracy(study, "automl") - accuracy(study, "fixed")
    cell = others["Four tasks, AutoML − Four tasks, fixed λ"]["points [95 % interval]"]
    assert float(cell.split()[0].replace("−", "-")) == pytest.approx(difference.mean(), abs=0.0051)

    fog = [
        json.loads((study / f"fixed-s{s}" / "eval-c.json").read_text())["accuracy"]["fog"] for s in range(3)
    ]
    assert (
        page.table("Accuracy in % by corruption")["fog"]["Four tasks, fixed λ"] == f"{100 * np.mean(fog):.2f}"
    )
    severities = page.table("Accuracy in % by severity")
    assert len(severities) == 5
    jigsaw = [float(row["Jigsaw"]) for row in severities.values()]
    assert np.mean(jigsaw) == pytest.approx(accuracy(study, "jigsaw", 1)[0], abs=0.01)

    cost = page.table("Cost")["Four tasks, fixed λ"]
    assert list(cost.values())[1:] == ["3", "48", "320", "3.00"], "8 epochs of 6 s, in a baseline's 2"
    assert len(page.table("Compared")) == 21


def test_the_page_stands_alone_and_can_be_read_aloud(report: Report) -> None:
    page = Page(report.page)
    assert page.open == [""], "every tag is closed"
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object", "embed", "a", "form"}
    source = report.page.read_text()
    assert "http:" not in source
    assert "https:" not in source
    assert not re.search(r"url\(|@import|\son\w+=", source)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(report.figures) == 7
    for image in images:
        assert len(str(image["alt"])) > 60
        svg = base64.b64decode(str(image["src"]).removeprefix("data:image/svg+xml;base64,"))
        assert b"</svg>" in svg
        assert b'href="http' not in svg
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert max(np.diff(levels)) == 1
    assert {"prefers-color-scheme: dark", "@media print"} <= set(
        re.findall(r"prefers-color-scheme: dark|@media print", source)
    )


def test_a_telephone_gets_pictures_of_its_width_and_tables_without_columns(report: Report) -> None:
    """Of 375 pixels the margins and the frame leave 332: text of 9 points is shown with 12 pixels."""
    page = Page(report.page)
    sources = [attributes for tag, attributes in page.tags if tag == "source"]
    assert len(sources) == 7
    for source in sources:
        assert source["media"] == "screen and (max-width: 40rem)"
        svg = base64.b64decode(str(source["srcset"]).removeprefix("data:image/svg+xml;base64,"))
        (width,) = re.findall(rb'<svg [^>]*?\bwidth="([\d.]+)pt"', svg)
        assert float(width) * 96 / 72 == pytest.approx(332, abs=1)
    stacked = report.page.read_text().split('<div class="stacked"')
    captions = [re.findall(r"<caption>(\w+)", part)[0] for part in stacked[1:]]
    assert captions == ["Table", "Other", "Provenance", "Settings", "Cost"]
    assert '<td class="words" data-column="exceeds the noise?">needs 2 seeds or more</td>' in stacked[1]


def test_where_the_corrupted_set_is_from_stands_before_and_in_table_1(tmp_path: Path) -> None:
    make_run(tmp_path / "study" / "run", origin="generated")
    report = write_report([tmp_path / "study"], tmp_path / "out")
    said = "a corrupted set generated by rssl, not a published one; 990 images in each cell"
    page = Page(report.page)
    (caption,) = (caption for caption in page.tables if caption.startswith("Table 1"))
    assert said in caption
    assert f"Evaluated on {said}" in page.text.partition("Table 1")[0]
    assert "the published CIFAR-10-C: with other settings or images, compare the differences" in page.text
    before, _, after = report.markdown.read_text().partition("**Table 1")
    assert f"Evaluated on {said}" in before
    assert said in after.partition("**")[0]
    assert page.table("Compared")["run"]["corrupted set"] == "generated, bbbbbbbb"


def test_the_paper_s_settings_on_its_images_need_no_caution(tmp_path: Path) -> None:
    make_run(tmp_path / "run", epochs=100, depth=40, width=2, train_size=None, steps_per_epoch=1)
    page = Page(write_report([tmp_path / "run"], tmp_path / "out").page)
    assert "All settings are those of the preset paper." in page.text
    assert "compare the differences to the baseline rather" not in page.text


def test_a_mean_that_lacks_corruptions_is_a_dash(tmp_path: Path) -> None:
    run = make_run(tmp_path / "study" / "run")
    content = json.loads((run / "eval-c.json").read_text())
    content["accuracy"] = {name: content["accuracy"][name] for name in ("fog", "spatter")}
    (run / "eval-c.json").write_text(json.dumps(content))
    page = Page(write_report([tmp_path / "study"], tmp_path / "out").page)
    table = page.table("Table 1. Accuracy in %, mean over 2 of 19 corruptions (fog, spatter) at 5 severities")
    assert table["Baseline"]["the usual 15"] == "–"
    assert "saturate: run. So there is no mean over all 19 corruptions, and none over the usual" in page.text
    assert page.table("Compared")["run"]["mean of"] == "2 of 19 (fog, spatter)"


def test_the_markdown_says_the_same(report: Report) -> None:
    text = report.markdown.read_text()
    for name in re.findall(r"\]\(([^)]*)\)", text):
        with Image.open(report.markdown.parent / name) as picture:
            assert picture.format == "PNG"
    rows = [line for line in text.splitlines() if line.startswith("| Four tasks, AutoML | 78.68")]
    cells = [cell.strip().replace("\\", "") for cell in rows[0].strip("| ").split(" | ")]
    assert cells == list(Page(report.page).table("Table 1")["Four tasks, AutoML"].values())
    assert {path.name for path in report.markdown.parent.iterdir()} == {
        "report.html", "report.md", "accuracy.png", "difference.png", "figure-2a.png", "figure-2b.png",
        "corruptions.png", "severities.png", "training.png",
    }  # fmt: skip


def test_files_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>|`[a](b)*$x_$ \x1b[31m"
    hostile = '</style><script>alert("1")</script>&\n| $\\frac'
    study = tmp_path / "study"
    make_run(study / name, dataset=hostile)
    make_run(study / "ir", tasks=("ir",), dataset=hostile)
    (make_run(study / "<b>bad") / "config.yaml").write_text("'<i>': 1")
    report = write_report([study], tmp_path / "out")
    page = Page(report.page)
    assert not {"script", "i", "b"} & {tag for tag, _ in page.tags}
    assert [attributes["src"][:5] for tag, attributes in page.tags if tag == "img"] == ["data:"] * 6
    assert "<img src=x onerror=alert(1)>|`[a](b)*$x_$" in page.text
    assert "\x1b" not in page.text
    markdown = report.markdown.read_text()
    assert not re.search(r"(?<!\\)<", markdown)
    assert "\x1b" not in markdown
    tables = [line for line in markdown.splitlines() if "onerror" in line]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in tables] == [9], (
        "a row with as many cells as the others"
    )
    assert "[a](b)" not in markdown


def test_one_run_several_studies_and_what_is_left_out(tmp_path: Path) -> None:
    study = tmp_path / "study"
    make_run(study / "automl", tasks=FOUR, weighting="automl")
    (make_run(study / "unfinished", seed=1) / "eval-c.json").unlink()
    report = write_report([study], tmp_path / "out")
    page = Page(report.page)
    assert page.table("Table 1")["Four tasks, AutoML"]["exceeds the noise?"] == "no baseline"
    assert "None of these runs is a baseline (a run without tasks and AugMix)" in page.text
    assert page.table("Left out")[str(study / "unfinished")]["why"] == "not evaluated: it has no eval-c.json"
    assert {path.name for path in report.figures} == {
        "accuracy.png", "figure-2a.png", "figure-2b.png", "severities.png", "training.png",
    }  # fmt: skip
    make_run(study / "other", epochs=9, dataset="mine")
    report = write_report([study], tmp_path / "out")
    assert "The runs of this report differ in settings" in Page(report.page).text
    assert "study-2-training.png" in {path.name for path in report.figures}
    assert "The paper has no numbers for these images" in report.markdown.read_text()


def test_nothing_to_report(tmp_path: Path) -> None:
    (make_run(tmp_path / "run") / "eval-c.json").unlink()
    with pytest.raises(UserError, match=r"no run is finished and evaluated \(.*run: not evaluated"):
        write_report([tmp_path], tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder, but it is a file"):
        write_report([tmp_path], tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"], "nothing is left behind"


def test_a_text_of_the_user_is_not_taken_for_an_earlier_report(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "report.md").write_text("my notes ![](accuracy.png)")
    (tmp_path / "accuracy.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"report\.md is not a report by rssl: move it away"):
        write_report([tmp_path / "runs"], tmp_path)
    assert (tmp_path / "accuracy.png").read_bytes() == b"mine"


def test_names_with_underscores_stay_as_they_are_in_markdown() -> None:
    said = to_markdown([Text("__background__, batch_norm, _x and y_")])
    assert said.strip() == r"\_\_background\_\_, batch_norm, \_x and y\_"


def test_a_new_report_leaves_the_user_s_own_pictures(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    write_report([tmp_path / "runs"], tmp_path / "report")
    report = tmp_path / "report" / "report.md"
    for name in ("camera.jpg", "study-2-accuracy.png"):
        report.with_name(name).write_bytes(b"a picture")
        report.write_text(f"{report.read_text()}\n![shown]({name})\n")
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert report.with_name("camera.jpg").read_bytes() == b"a picture"
    assert not report.with_name("study-2-accuracy.png").exists(), "of an earlier report"
    assert report.with_name("accuracy.png").exists()
