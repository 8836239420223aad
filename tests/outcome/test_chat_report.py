"""The report of chat stages, made-up and mixed with verdicts: what it says of learning, and that it opens offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.outcome import chatpart
from luthier.outcome.report import write_report

CHROMIUM = Path("/usr/bin/chromium")
ATTACK = "<script>alert('x')</script>"
LONG = "a_name_without_any_blank_" * 12


def figure(value: float, half: float = 0.04, n: int = 66) -> dict[str, Any]:
    return {"value": value, "ci": [value - half, value + half], "n": n}


def losses(gain: float, n: int) -> dict[str, Any]:
    return {"loss": figure(2.1 - gain, n=n), "before.loss": figure(2.1, n=n), "gain.loss": figure(gain, n=n)}


def sample(number: int, text: str, stopped: bool = True) -> dict[str, Any]:
    turns = [{"role": "system", "text": "Be brief."}, {"role": "user", "text": f"{ATTACK} question {number} {LONG}"}]
    said = {"text": text, "stopped": stopped, "tokens": 1234}
    return {
        "id": f"row-{number}",
        "source": "finetome",
        "turns": turns,
        "reference": "word " * 400,
        "before": {**said, "text": ""},
        "after": said,
    }


def write_chat(run: Path, name: str, gain: float = 0.3, **trained: Any) -> None:
    """The records of a finished chat stage."""
    base = run / "stages" / name
    learning = {"tensors": 14, "moved": 14, "still": [], "silent": []}
    norms = {
        "modules": 7,
        "median": 1.2957,
        "smallest": {"module": "layers.0.v_proj", "norm": 0.684},
        "largest": {"module": "layers.9.gate_proj", "norm": 1.945},
    }
    about = {
        "name": name,
        "kind": "chat",
        "base": "toy:llama",
        "start_from": "",
        "trained": {
            "steps": 60,
            "epochs": 0.75,
            "seconds": 754.2,
            "rows": 480,
            "tokens": 24010,
            "halvings": 0,
            "best": {"step": 40, "validation_loss": 1.803},
            "stopped_early": True,
            "learning": learning,
            "effect": 1.2599,
            "delta_norms": norms,
            **trained,
        },
        "trainable_parameters": 8192,
        "total_parameters": 1235814400,
        "rows": 592,
        "tokens": 29199,
        "target_tokens": 13355,
        "dropped_at_encoding": {"too_many_tokens": 3, "template_refuses": 1},
        "dropped_first": {"too_many_tokens": f"row 17: 9,000 tokens {ATTACK}"},
        "shortened": 5,
        "unstopped": 2,
        "tokens_per_second": 6504.2,
        "peak_memory": 2_345_000_000,
    }
    files.write_json(base / "stage.json", about)
    files.write_json(
        base / "scores.json",
        {
            **losses(gain, 66),
            "perplexity": figure(6.05),
            "bits_per_byte": figure(0.9),
            "before.bits_per_byte": figure(1.0),
            "gain.bits_per_byte": figure(0.1),
            "sources": {"finetome": losses(0.5, 40), "sharegpt": losses(0.01, 15), "ultra": losses(-0.2, 11)},
        },
    )
    files.write_jsonl(
        base / "metrics.jsonl",
        (
            {
                "step": step,
                "loss": 2.0 - step / 100,
                "learning_rate": 2e-4 * (1 - step / 61),
                **({"validation_loss": 1.9 - step / 300} if step % 20 == 0 else {}),
            }
            for step in range(1, 61)
        ),
    )
    files.write_jsonl(base / "samples.jsonl", [sample(1, f"{LONG} <b>fine</b>"), sample(2, "cut", stopped=False)])


def write_run(run: Path, *stages: str) -> Path:
    files.write_json(run / "run.json", {"name": "chats", "status": "finished", "stages": list(stages), "seed": 17})
    files.write_text(run / "recipe.yaml", "task: {kind: chat}\nstages: {graded: {task: {kind: verdict}}}\n")
    files.write_jsonl(
        run / "data/ledger.jsonl", [{"source": "finetome", "in": 9, "kept": 8, "merged": 1, "dropped": {}}]
    )
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_chat(tmp_path, "main")
    return write_run(tmp_path, "main")


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a reader reads: no style, no tags, one blank between words."""
    body = page[page.index("<body>") :].replace("\u202f", "")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_whole_story_of_a_chat_stage_is_there(run: Path) -> None:
    page = page_of(run)
    text = words(page)
    for expected in (
        "Stage main: the loss on held-out answers is 1.800 [1.760, 1.840] nats a token after training and was 2.100 "
        "[2.060, 2.140] before. On the same 66 rows the gain is +0.300 [0.260, 0.340]: it learned.",
        "steps 60, stopped early",
        "best step, by validation loss 40 (1.803)",
        "12 min 34 s",
        "tokens a second 6504",
        "peak memory 2.35 GB",
        "of them learned 13355, 46%",
        "8192 of 1235814400",
        "rows shortened to whole turns 5",
        "answers without a stop token 2",
        "Perplexity after training: 6.05",
        "Tensors that moved 14 of 14",
        "changes log-probabilities by 1.260 nats",
        "median 1.296 over 7 matrices; least 0.684 (layers.0.v_proj), most 1.945 (layers.9.gate_proj)",
        "too_many_tokens 3 row 17: 9,000 tokens",
        "template_refuses 1 –",
        "must not be compared",
        "question 2",
        "ended by itself after 1234 tokens",
        "cut off after 1234 tokens",
        "finetome 9 8 1 0",
    ):
        assert expected in text, expected
    assert page.count("<svg") == page.count('role="img"') == 2
    assert "Loss of stage main" in page
    assert "from 1.97e-04 at step 1 to 3.28e-06 at step 60" in page
    assert "not run" not in text
    for absent in ("hear the recordings", "AUROC", "Calibration", "Worst errors", "no gradient", "Memory ran out"):
        assert absent not in text, absent


def test_every_source_has_its_own_line_and_verdict(run: Path) -> None:
    text = words(page_of(run))
    assert "finetome 2.100 2.060 – 2.140 1.600 1.560 – 1.640 0.500 0.460 – 0.540 better 40" in text
    assert "0.010 -0.030 – 0.050 cannot be told apart 15" in text
    assert "-0.200 -0.240 – -0.160 worse 11" in text


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.3, ": it learned."),
        (0.01, "cannot be told apart"),
        (-0.01, "cannot be told apart"),
        (-0.3, "training made it worse."),
    ],
)
def test_the_headline_says_no_more_than_the_interval(run: Path, gain: float, said: str) -> None:
    write_chat(run, "main", gain)
    assert said in words(page_of(run))


def test_without_an_interval_or_a_before_nothing_is_claimed(run: Path) -> None:
    path = run / "stages/main/scores.json"
    scores = files.read_json(path)
    scores["gain.loss"]["ci"] = None
    files.write_json(path, scores)
    assert "there is no interval to judge it by" in words(page_of(run))
    files.write_json(path, {"loss": figure(1.8)})
    assert "how it was before is not recorded" in words(page_of(run))
    files.write_json(path, {})
    assert "Nothing was held out, so nothing says whether it learned." in words(page_of(run))


def test_one_row_alone_has_no_interval_to_judge_by() -> None:
    scores = {"loss": figure(1.8, 0.0, 1), "before.loss": figure(2.1, 0.0, 1), "gain.loss": figure(0.3, 0.0, 1)}
    said = chatpart.headline([{"name": "main", "scores": scores, "about": {}}])
    assert said.endswith("On the same row the gain is +0.300 [0.300, 0.300]: there is no interval to judge it by.")


def test_silent_and_still_tensors_and_halvings_are_said(run: Path) -> None:
    learning = {"tensors": 14, "moved": 13, "still": ["lora_B.7"], "silent": ["lora_A.3", "lora_A.4"]}
    write_chat(run, "main", learning=learning, halvings=2)
    text = words(page_of(run))
    assert "Some of what is trained had no gradient in the first steps." in text
    assert "lora_A.3, lora_A.4" in text
    assert "13 of 14; not lora_B.7" in text
    assert "micro-batches were halved 2 times" in text


def test_text_of_others_is_escaped_and_nothing_is_fetched(run: Path) -> None:
    page = page_of(run)
    assert "<script" not in page
    assert "<b>fine" not in page
    assert page.count("&lt;script&gt;alert") == 3
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_long_texts_are_folded_and_whole(run: Path) -> None:
    page = page_of(run)
    assert page.count("<details><summary class") == 2
    assert words(page).count(" word") == 800


@pytest.mark.parametrize("gone", ["stage.json", "scores.json", "metrics.jsonl", "samples.jsonl", ""])
def test_what_is_missing_reads_as_not_run(run: Path, gone: str) -> None:
    import shutil

    shutil.rmtree(run / "stages/main") if not gone else (run / "stages/main" / gone).unlink()
    text = words(page_of(run))
    assert re.search("not run|nothing was held out", text)
    assert "Stage main" in text
    assert "hear the recordings" not in text


def test_a_stage_that_still_trains_shows_its_first_answers(run: Path) -> None:
    base = run / "stages/main"
    (base / "stage.json").unlink()
    (base / "scores.json").unlink()
    files.write_jsonl(base / "samples.jsonl", [{**sample(1, "x"), "after": None}])
    text = words(page_of(run))
    assert "No chat has been scored yet." in text
    assert "after not run" in text


def test_broken_records_are_named(run: Path) -> None:
    (run / "stages/main/samples.jsonl").write_text('{"id": \n{}\n')
    assert "stages/main/samples.jsonl cannot be read" in page_of(run)


def test_chats_and_verdicts_share_a_page(run: Path) -> None:
    scores = {"accuracy": figure(0.8), "auroc": figure(0.9)}
    files.write_json(run / "stages/graded/scores.json", scores)
    write_run(run, "graded", "main")
    text = words(page_of(run))
    assert "Stage graded ranks a pass above a fail with AUROC 0.900" in text
    assert "Stage main: the loss on held-out answers" in text
    assert text.count("Worst errors") == text.count("Answers before and after") == 1
    assert "Stage main on" not in text
    assert "Did the model hear the recordings?" in text


@pytest.mark.parametrize(
    ("recipe", "kind"), [("task: {kind: chat}", "chat"), ("", "verdict"), ("a: [", "verdict"), ("- 1", "verdict")]
)
def test_the_kind_of_an_unfinished_stage_is_the_recipes(recipe: str, kind: str) -> None:
    assert chatpart.kinds(recipe, ["main"]) == {"main": kind}


@pytest.mark.parametrize("points", [[], [(1.0, 0.0)]])
def test_a_rate_that_was_never_above_zero_has_no_chart(points: list[tuple[float, float]]) -> None:
    assert chatpart.rate_chart("rate", points) == ""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (1440, 900, "light")])
def test_it_opens_offline_at_both_widths(run: Path, width: int, height: int, scheme: str) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    asked: list[str] = []
    write_chat(run, "main", learning={"tensors": 2, "moved": 1, "still": [LONG], "silent": [LONG]}, halvings=1)
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(write_report(run).resolve().as_uri())
        overflow = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        tops = page.evaluate(
            "() => [...document.querySelector('.answers').children].map(part => part.getBoundingClientRect().top)"
        )
        page.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true; })")
        opened = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        page.emulate_media(media="print")
        printed = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert max(overflow, opened, printed if width > 600 else 0) <= 0
    assert len(set(tops)) == (3 if width == 390 else 1), "answers stand side by side, or below one another on a phone"
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
