"""Exams on the pages: what is said of them, what is shown, and that both pages open offline at both widths."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.errors import SourceError
from luthier.outcome import pngs
from luthier.outcome.cards import exam_card
from luthier.outcome.exampage import write_exam_page
from luthier.outcome.exams import words as examwords
from luthier.outcome.exams.view import ExamView, read
from luthier.outcome.pagerecords import Records
from luthier.outcome.report import write_report
from support.fakeexams import ATTACK, FakeExam, bases, checkpoints, write_exam

CHROMIUM = Path("/usr/bin/chromium")
TRIVIA = FakeExam(candidates=checkpoints(), overlap=12)
CHARTS = ("curve", "power", "scores", "map", "against-base", "against-best", "groups", "place", "reliability", "cost")


def words(page: str) -> str:
    """The page's text with single blanks, without its charts and style."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def view_of(folder: Path, name: str = "trivia", kept: int | None = None) -> ExamView:
    return read(Records(folder), f"exams/{name}", name, kept)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An examination: 11 checkpoints on 162 questions, and 9 bases on others."""
    folder = tmp_path_factory.mktemp("exam") / "sweep"
    write_exam(folder / "exams/trivia", TRIVIA)
    write_exam(folder / "exams/bases", FakeExam("bases", seed=3, candidates=bases(), chooses=False))
    model = {"name": "toy:llama", "revision": "", "dtype": "float32", "quantization": "nf4", "candidates": ["base"]}
    files.write_json(folder / "exam-run.json", {"command": "luthier exam trivia.json", "models": [model]})
    return folder


@pytest.fixture
def sweep(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in a place where it may be harmed; its pictures are not drawn again."""
    monkeypatch.setattr(pngs, "png", lambda svg: b"")
    return shutil.copytree(made, tmp_path / "sweep")


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return write_exam_page(made).read_text(encoding="utf-8")


def table_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(folder / "exams/trivia/table.json")
    return found


def harm(folder: Path, **keys: Any) -> None:
    files.write_json(folder / "exams/trivia/table.json", {**table_of(folder), **keys})


def test_the_choice_is_said_first_with_its_reason(made: Path, page: str) -> None:
    table = table_of(made)
    chosen, best = (int(table[key].removeprefix("step-")) for key in ("chosen", "best"))
    assert chosen < best, "the fixture plants checkpoints that cannot be told apart"
    scores = {line["step"]: line["scores"]["accuracy"] for line in table["candidates"]}
    low, high = (f"{100 * end:.1f}" for end in scores[best]["ci"])
    said = (
        f"Step {chosen} is chosen: the earliest that cannot be told from the best "
        f"(step {best}, {scores[best]['value']:.1%} [{low}, {high}] right)."
    )
    assert said in words(page)
    assert f"It answers {round(162 * scores[chosen]['value'])} of 162 rightly" in words(page)
    assert "after correction for 11 comparisons" in words(page)


def test_the_notes_of_the_table_are_said_once_and_with_peoples_names(made: Path, page: str) -> None:
    text = words(page)
    assert "162 questions can never tell a gap below 3.7 points" in text
    assert "Training touches 12 of 162 questions" in text
    assert text.count(" is chosen: the earliest") == 2, "in the headline and in the exam's own box"
    assert "step-000" not in text


def test_every_candidate_has_a_line_and_so_have_guessing_and_one_place(made: Path, page: str) -> None:
    text = words(page)
    rows = re.findall(r'<th scope="row" class="stick">([^<]+)', page)
    assert rows.count("base") == 2, "in the scores and in the costs"
    assert rows.count("step 550") == 2
    majority = table_of(made)["majority"]
    assert f"always the same place {majority:.1%}" in text
    assert "guessing 50.0%" in text
    for column in ("Against base", "Group", "Right in both", "Takes the first", "Untouched", "Log loss"):
        assert f'class="num">{column}</th>' in page


def test_every_chart_is_on_the_page_and_beside_it(made: Path, page: str) -> None:
    assert page.count("<svg") == page.count('role="img"') == page.count("<desc") == 18
    ids = re.findall(r' id="(c[0-9a-f]{10}[tdm])"', page)
    assert len(ids) == len(set(ids))
    there = {path.name for path in made.glob("*.png")}
    assert {f"report-trivia-{name}.png" for name in CHARTS} <= there
    assert len(there) == 18


def test_flips_show_the_text_of_both_kinds_and_count_all(made: Path, page: str) -> None:
    exam = made / "exams/trivia"
    before, after = (
        {row["id"]: row["correct"] for row in files.read_jsonl(exam / name / "predictions.jsonl")}
        for name in ("base", table_of(made)["chosen"])
    )
    fixed = [name for name in before if after[name] and not before[name]]
    broken = [name for name in before if before[name] and not after[name]]
    text = words(page)
    assert f"Fixed: {len(fixed)}, the first 20 shown" in text
    assert f"Broken: {len(broken)}" in text
    items = {item["id"]: item for item in files.read_jsonl(exam / "items.jsonl")}
    for name in [*fixed[:20], *broken[:20]]:
        item = items[name]
        right = f"{'AB'[item['answer']]}: {item['options'][item['answer']]}"
        assert f"{item['question']} {right}" in text
    assert items[fixed[20]]["question"] not in text.split("Questions that turned")[-1]


def test_text_of_others_is_escaped_and_nothing_is_fetched(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert ATTACK in words(page)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page


def test_the_page_says_how_to_do_it_again(page: str) -> None:
    text = words(page)
    assert "luthier exam trivia.json" in text
    assert "toy:llama float32, nf4, base" in text


def test_bases_are_compared_without_a_choice_among_them(made: Path, page: str) -> None:
    view = view_of(made, "bases")
    best = max(view.candidates, key=lambda one: one.accuracy["value"])
    equal = [one for one in view.candidates if one is not best and set(one.group) & set(best.group)]
    said = examwords.verdict(view)
    assert len(said) == 1
    assert said[0].startswith(f"{best.name} is the best of 9, with {best.accuracy['value']:.1%}")
    assert equal
    assert all(one.name in said[0] for one in equal[:4])
    assert said[0] in words(page)
    runner_up = max((one for one in view.candidates if one is not best), key=lambda one: one.accuracy["value"])
    assert f"From {runner_up.name} to {best.name}, of 162 questions" in words(page)


def test_an_exam_that_only_reports_is_about_the_checkpoint_that_was_kept(tmp_path: Path) -> None:
    write_exam(tmp_path / "exams/trivia", FakeExam(candidates=checkpoints(), chooses=False))
    view = view_of(tmp_path, kept=200)
    kept = view.named("step-000200")
    assert kept is not None
    said = examwords.verdict(view)
    assert said[0].startswith(f"Step 200 is kept, with {kept.accuracy['value']:.1%}")
    assert "does not flatter" in said[0]
    assert said[1].startswith(f"It answers {kept.right} of 162 rightly")
    assert not any("is chosen" in sentence for sentence in [*said, *examwords.bears(view)])


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.0004, ", p < 0.001 after correction for 11 comparisons."),
        (0.031, ", p = 0.031 after correction for 11 comparisons."),
        (0.25, "; the two cannot be told apart (p = 0.25 after correction for 11 comparisons)."),
    ],
)
def test_a_difference_is_called_one_only_below_alpha(sweep: Path, p: float, said: str) -> None:
    table = table_of(sweep)
    line = next(line for line in table["candidates"] if line["name"] == table["chosen"])
    line["against_base"]["p_adjusted"] = p
    harm(sweep, candidates=table["candidates"])
    assert examwords.verdict(view_of(sweep))[1].endswith(said)


def test_an_adapter_without_effect_is_an_alarm(tmp_path: Path) -> None:
    write_exam(tmp_path / "exams/trivia", FakeExam(items=60, candidates=checkpoints(3), same="step-000050"))
    page = write_exam_page(tmp_path).read_text(encoding="utf-8")
    assert "The adapter of step 50 moves no answer" in words(page)
    assert 'class="hears deaf"' in page


def test_written_answers_have_no_reliability_and_no_log_loss(tmp_path: Path) -> None:
    folder = tmp_path / "exams/trivia"
    write_exam(folder, FakeExam(items=60, candidates=checkpoints(3)))
    for sat in folder.glob("*/predictions.jsonl"):
        rows = [{**row, "logprobs": [], "text": "No idea <b>at all"} for row in files.read_jsonl(sat)]
        files.write_jsonl(sat, [{**row, "choice": -1} if not row["correct"] else row for row in rows])
    page = write_exam_page(tmp_path).read_text(encoding="utf-8")
    assert "none of them: No idea <b>at all" in words(page)
    assert "<b>at all" not in page
    assert "<h4>Reliability</h4>" not in page


@pytest.mark.parametrize(
    "gone",
    ["exam.json", "items.jsonl", "table.json", "base", "step-000150/predictions.jsonl", "step-000150/candidate.json"],
)
def test_what_is_missing_breaks_nothing(sweep: Path, gone: str) -> None:
    path = sweep / "exams/trivia" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = words(write_exam_page(sweep).read_text(encoding="utf-8"))
    assert "How to reproduce" in text
    if gone == "table.json":
        assert "Nobody has sat this exam to its end." in text
    if gone == "items.jsonl":
        assert "its text is not recorded" in text


def test_broken_records_are_named(sweep: Path) -> None:
    (sweep / "exams/trivia/step-000100/candidate.json").write_text('{"name": ')
    (sweep / "exams/trivia/step-000150/predictions.jsonl").write_text('{"id":\n{}\n')
    table = table_of(sweep)
    harm(sweep, candidates=[*table["candidates"], {"name": "../../other", "scores": {}}, {"name": "x"}, 3])
    text = words(write_exam_page(sweep).read_text(encoding="utf-8"))
    assert "exams/trivia/step-000100/candidate.json cannot be read" in text
    assert "exams/trivia/step-000150/predictions.jsonl cannot be read" in text
    assert text.count("a candidate without a name or an accuracy is left out") == 3


def test_a_folder_without_exams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no examination"):
        write_exam_page(tmp_path)


def write_stage(run: Path) -> None:
    """A stage that kept step 150 by one exam, was reported on by another, and never sat a third."""
    base = run / "stages/main"
    write_exam(base / "exams/trivia", FakeExam(items=80, candidates=checkpoints(4)))
    write_exam(base / "exams/held", FakeExam("held", items=80, candidates=checkpoints(4), chooses=False))
    rows = [
        {"step": step, "loss": 2 - step / 200, "learning_rate": 1e-4, "seconds": step * 3.0} for step in range(1, 201)
    ]
    files.write_jsonl(base / "metrics.jsonl", rows)
    files.write_json(base / "stage.json", {"kind": "exam", "trained": {"steps": 200, "kept_step": 150}})
    files.write_text(run / "recipe.yaml", "task: {kind: exam}\nevaluate: {exams: {trivia: {}, held: {}, third: {}}}\n")
    files.write_json(run / "run.json", {"name": "expert", "status": "finished", "stages": ["main"]})


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_stage(run)
    return write_report(run)


def test_exams_stand_in_the_report_of_their_run(reported: Path) -> None:
    page = reported.read_text(encoding="utf-8")
    text = words(page)
    assert "Exam held: Step 150 is kept" in text
    assert re.search(r"Exam trivia: Step \d+ is chosen", text)
    assert "Exam third not run" in text
    held, trivia = page.split("Exam trivia</h3>")[0], page.split("Exam trivia</h3>")[1]
    assert re.search(r'step 150<small class="tag">kept', held)
    assert "chosen" in trivia
    assert 'class="tag">chosen' not in held
    assert "Nothing was held out" not in text, "exams judge this stage"
    assert "hear the recordings" not in text
    assert "minutes of training" in page, "its log tells what a checkpoint cost"
    assert (reported.parent / "report-main-held-curve.png").is_file()
    assert (reported.parent / "report-main-loss.png").is_file()


def test_the_card_says_what_the_exams_say_and_counts_the_looks(tmp_path: Path) -> None:
    write_stage(tmp_path)
    stage = tmp_path / "stages/main"
    table = files.read_json(stage / "exams/held/table.json")
    files.write_json(stage / "exams/held/table.json", {**table, "looks": 37})
    card = exam_card(stage)
    kept = next(line["scores"]["accuracy"] for line in table["candidates"] if line["step"] == 150)
    line = next(line for line in card.splitlines() if line.startswith("| held |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    low, high = (f"{100 * end:.1f}" for end in kept["ci"])
    assert cells[1] == "80"
    assert cells[2] == f"{kept['value']:.1%} [{low}, {high}] (step 150)"
    assert cells[-1] == "37"
    assert card.count("is flattered") == 1, "of the exam that chose"
    assert exam_card(tmp_path / "stages/other") == ""


def test_words_of_others_draw_no_table_on_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "exams/trivia"
    write_exam(folder, FakeExam(items=40, candidates=checkpoints(2)))
    table = files.read_json(folder / "table.json")
    files.write_json(folder / "table.json", {**table, "notes": ["a | b\n# <script>"]})
    assert "- a \\| b # &lt;script>" in exam_card(tmp_path)


@pytest.mark.slow
def test_3137_questions_and_22_candidates_make_a_small_page(tmp_path: Path) -> None:
    write_exam(tmp_path / "exams/trivia", FakeExam(items=3137, candidates=checkpoints(21)))
    path = write_exam_page(tmp_path)
    assert path.stat().st_size < 300_000


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (1440, 900, "light")])
@pytest.mark.parametrize("kind", ["page", "report"])
def test_both_open_offline_at_both_widths(
    made: Path, page: str, reported: Path, kind: str, width: int, height: int, scheme: str
) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    asked: list[str] = []
    path = made / "report.html" if kind == "page" else reported
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.resolve().as_uri())
        closed = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        tab.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true; })")
        opened = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        unreachable = tab.evaluate(
            "() => [...document.querySelectorAll('.wide')].filter(part => part.scrollWidth > part.clientWidth"
            " && part.tabIndex < 0).map(part => part.textContent.slice(0, 60))"
        )
        # getBBox has no halo and no neighbours' room in it: words inside of their own chart are whole.
        clipped = tab.evaluate(
            "() => [...document.querySelectorAll('.chart text')].filter(part => { const b = part.getBBox();"
            " const v = part.ownerSVGElement.viewBox.baseVal; return b.x < -1 || b.x + b.width > v.width + 1"
            " || b.y < -1 || b.y + b.height > v.height + 1; }).map(part => part.textContent)"
        )
        letters = tab.evaluate(
            "() => Math.min(...[...document.querySelectorAll('.chart')].map("
            "c => 12 * c.getBoundingClientRect().width / 360))"
        )
        tab.set_viewport_size({"width": 718, "height": 1000})
        tab.emulate_media(media="print")
        printed = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert max(closed, opened, printed) <= 0
    assert unreachable == []
    assert clipped == []
    assert letters >= 9
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
