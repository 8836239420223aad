"""`luthier exam` as a person meets it: files of questions in, a folder with tables and a report out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from luthier import examverbs
from luthier.cli import main
from luthier.errors import DataError, ExistsError, Interrupted, RecipeError, RequestError
from luthier.evaluate.exams import Examiner
from luthier.evaluate.journal import Journal
from luthier.examrequest import ExamRequest
from luthier.examverbs import exam
from luthier.files import read_json, read_jsonl
from luthier.models import adapters
from luthier.outcome.looks import count_looks
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import LoraSettings, ModelConfig
from support.text_cases import attached, train

STEPS = ("step-000010", "step-000020", "step-000030")
RECIPE = """
model: {base: "toy:llama", max_tokens: 120, lora: {r: 4, alpha: 8}}
data: {sources: {chats: {path: chats.jsonl}}, train: [chats]}
task: {kind: chat}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exams and the checkpoints of one training."""
    folder = tmp_path_factory.mktemp("work")
    piqa = [
        {
            "goal": f"How do {n} and {n + 1} add up?",
            "sol1": f"to {2 * n + 1}",
            "sol2": f"to {3 * n} or less",
            "label": n % 2,
        }
        for n in range(40)
    ]
    winogrande = [
        {
            "sentence": f"The cup {n} fell on the tray {n}, and _ broke.",
            "option1": "cup",
            "option2": "tray",
            "answer": str(1 + n % 2),
        }
        for n in range(20)
    ]
    for name, rows in (("piqa", piqa), ("winogrande", winogrande)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base, model = attached(ModelConfig(base="toy:llama", lora=LoraSettings(r=4, alpha=8, dropout=0.0)))
    for name in STEPS:
        train(model, base, 1)
        (folder / "checkpoints" / name).mkdir(parents=True)
        adapters.save(model, folder / "checkpoints" / name, base.name, base.facts())
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def request(work: Path, *, exams: tuple[str, ...] = ("piqa",), **more: Any) -> ExamRequest:
    return ExamRequest(exams=[work / f"{name}.jsonl" for name in exams], **more)


def test_checkpoints_are_examined_and_the_folder_tells_it_all(work, tmp_path, capsys):
    words = [work / "piqa.jsonl", work / "winogrande.jsonl", "--model", "toy:llama", "--adapter", work / "checkpoints"]
    assert main(["exam", *map(str, words), "--out", "out", "--json"]) == 0
    told = capsys.readouterr()
    figures = json.loads(told.out.splitlines()[-1])
    names = ["base", *STEPS]
    out = tmp_path / "out"
    for exam_name, count in (("piqa", 40), ("winogrande", 20)):
        table = read_json(out / "exams" / exam_name / "table.json")
        assert table == figures["exams"][exam_name]
        assert [one["name"] for one in table["candidates"]] == names
        for one in table["candidates"]:
            lines = read_jsonl(out / "exams" / exam_name / one["name"] / "predictions.jsonl")
            assert one["scores"]["accuracy"]["value"] == sum(line["correct"] for line in lines) / count
    assert figures["exams"]["piqa"]["chosen"] in STEPS
    assert figures["exams"]["winogrande"]["chosen"] is None, "the first exam chooses, the others report"
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["exam"], row["candidate"]) for row in rows] == [(e, n) for e in ("piqa", "winogrande") for n in names]
    assert (out / "table.md").read_text().count("| (guessing) | 50.0% |") == 2
    assert "<html" in (out / "report.html").read_text()
    assert (Path(figures["report"]), figures["out"]) == (Path("out/report.html"), "out")
    assert "can never show a gap under 15.0 points" in " ".join(told.err.split())
    assert max(map(len, told.err.splitlines())) <= 100
    record = read_json(out / "exam-run.json")
    assert (record["status"], record["models"][0]["candidates"]) == ("finished", names)
    assert "--adapter" in record["command"]


def test_looks_at_an_exam_are_counted_once_a_candidate(work):
    exam(request(work, models=["toy:llama"], adapters=[work / "checkpoints"]))
    digest = read_json(Path("exams/piqa/exams/piqa/exam.json"))["digest"]
    assert count_looks(digest) == 4
    exam(request(work, models=["toy:llama"], cache=False))
    assert count_looks(digest) == 4, "the base was looked at before"
    assert Path("exams/piqa-2/table.md").is_file(), "nothing that exists is overwritten"


def test_several_bases_make_one_table_with_groups(work, capsys):
    figures = exam(request(work, models=["toy:llama", "toy:qwen2", "toy:gemma2"], out=Path("bases")))
    found = figures["exams"]["piqa"]["candidates"]
    assert sorted(one["name"] for one in found) == ["toy-gemma2", "toy-llama", "toy-qwen2"]
    assert all(one["group"] for one in found)
    assert (
        len({read_json(Path("bases/exams/piqa") / one["name"] / "candidate.json")["base_sha256"] for one in found}) == 3
    )
    assert "against best" in capsys.readouterr().err


def test_a_cut_examination_goes_on_with_the_line_that_is_printed(work, tmp_path, monkeypatch, capsys):
    keep, kept = Journal.keep, []

    def interrupt(self: Journal, prediction: Any) -> None:
        keep(self, prediction)
        kept.append(prediction.id)
        if len(kept) == 60:
            raise KeyboardInterrupt

    words = ["exam", str(work / "piqa.jsonl"), "--model", "toy:llama", "--adapter", str(work / "checkpoints")]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", interrupt)
        assert main([*words, "--out", "cut"]) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.split()[-3:] == ["--out", "cut", "--resume"]
    assert read_json(tmp_path / "cut" / "exam-run.json")["status"] == "interrupted"
    assert main([*words, "--out", "cut"]) == 2, "what exists is not overwritten"
    assert main([*words, "--out", "cut", "--one-order", "--resume"]) == 2, "nor gone on with in another way"
    assert main(line.split()[line.split().index("exam") :]) == 0
    assert main([*words, "--out", "whole", "--no-cache"]) == 0
    for name in ("base", *STEPS):
        cut, whole = (tmp_path / run / "exams/piqa" / name / "predictions.jsonl" for run in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes()
    assert read_json(tmp_path / "cut/exams/piqa/table.json") == read_json(tmp_path / "whole/exams/piqa/table.json")


def test_a_run_is_examined_by_its_name(work, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(work / "checkpoints", run / "stages" / "main" / "checkpoints")
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "run.json").write_text("{}")
    figures = exam(request(work, run=f"{run}:main", out=Path("a")))
    assert [one["name"] for one in figures["exams"]["piqa"]["candidates"]] == ["base", *STEPS]
    monkeypatch.setattr(Examiner, "examine", lambda *_: pytest.fail("the cache holds these answers"))
    again = exam(request(work, run=str(run), out=Path("b")))
    assert again["exams"]["piqa"]["candidates"] == figures["exams"]["piqa"]["candidates"]
    with pytest.raises(RequestError, match="has no stage 'other'"):
        exam(request(work, run=f"{run}:other"))


def test_solved_questions_and_wordings_reach_the_model(work):
    settings = ExamSettings(shots=2, pool=str(work / "winogrande.jsonl"), prompts=["question", "exam"])
    figures = exam(request(work, models=["toy:llama"], settings=settings, out=Path("shots")))
    scores = figures["exams"]["piqa"]["candidates"][0]["scores"]
    assert {"prompt.question.accuracy", "prompt.exam.accuracy", "prompt.spread"} <= set(scores)
    with pytest.raises(RequestError, match="is the exam itself"):
        exam(request(work, models=["toy:llama"], settings=ExamSettings(shots=2, pool=str(work / "piqa.jsonl"))))


def test_questions_with_sound_are_put_to_a_base_that_hears(work, tmp_path):
    for name, flipped in (("sounds", False), ("swapped", True)):
        lines = []
        for n in range(6):
            tone = 0.3 * np.sin(2 * np.pi * (150 + 90 * n) * np.arange(8000 + 1500 * n) / 16_000)
            soundfile.write(tmp_path / f"{n}.wav", tone, 16_000)
            heard = 5 - n if flipped else n
            lines.append({"question": "High?", "audio": f"{heard}.wav", "options": ["yes", "no"], "answer": n % 2})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    exams = [tmp_path / "sounds.jsonl", tmp_path / "swapped.jsonl"]
    exam(ExamRequest(exams=exams, models=["toy:phi4-multimodal"], out=Path("out")))
    heard, swapped = (
        [line["logprobs"] for line in read_jsonl(Path("out/exams") / path.stem / "base/predictions.jsonl")]
        for path in exams
    )
    assert heard != swapped
    torch.testing.assert_close(torch.tensor(heard), torch.tensor(swapped[::-1]), rtol=0, atol=1e-5)
    [index] = Path("out/features").rglob("index.jsonl")
    assert len(read_jsonl(index)) == 6, "each recording is encoded once, whichever exams ask about it"
    with pytest.raises(RequestError, match="audio"):
        exam(ExamRequest(exams=exams, models=["toy:llama"], out=Path("deaf")))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "--model, --run"),
        ({"models": ["toy:llama"], "run": "x"}, "--model, --run"),
        ({"models": ["toy:llama", "toy:qwen2"], "adapters": [Path("a")]}, "exactly one --model"),
        ({"models": ["toy:llama"], "resume": True}, "--resume"),
        ({"models": ["toy:llama"], "settings": ExamSettings(normalization="bytes")}, "goes with method: text"),
        ({"models": ["toy:llama"], "settings": ExamSettings(shots=2)}, "--shots: go with a pool"),
        ({"models": ["toy:llama"], "settings": ExamSettings(prompts=["sonnet"])}, "--prompts: one or more of"),
        ({"models": ["toy:llama"], "exams": ("absent",)}, "absent.jsonl: is not there"),
        ({"models": ["toy:llama"], "table": Path("nowhere")}, "nowhere: is not there"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_read(work, more, reason):
    with pytest.raises(RecipeError, match=reason):
        exam(request(work, **more))
    assert not Path("exams").exists()


def test_bases_that_cannot_be_asked_are_all_named_before_one_is_loaded(work, monkeypatch):
    monkeypatch.setattr(examverbs, "load_text_base", lambda *_: pytest.fail("a base was loaded"))
    with pytest.raises(RequestError) as caught:
        exam(request(work, models=["toy:llama", "toy:none", "toy:nobody"]))
    assert "toy:none" in str(caught.value)
    assert "toy:nobody: no such toy (choose one of toy:gemma2" in str(caught.value)
    assert "--plain" not in str(caught.value)


def test_to_resume_what_was_never_begun_or_begun_otherwise_is_refused(work):
    with pytest.raises(RequestError, match="no examination was begun there"):
        exam(request(work, models=["toy:llama"], out=Path("out"), resume=True))
    exam(request(work, models=["toy:llama"], out=Path("out")))
    with pytest.raises(ExistsError, match="--resume"):
        exam(request(work, models=["toy:llama"], out=Path("out")))
    with pytest.raises(RequestError, match=r"begun with other exams.*--model toy:llama --out out"):
        exam(request(work, models=["toy:qwen2"], out=Path("out"), resume=True))


def test_the_page_of_an_exam_is_written_again_from_its_records(work):
    exam(request(work, models=["toy:llama"], out=Path("out")))
    page = Path("out/report.html")
    before = page.read_bytes()
    page.unlink()
    assert main(["report", "out"]) == 0
    assert page.read_bytes() == before


def test_a_request_that_fails_at_once_leaves_its_folder_free(work, checkpoints_of_another_base):
    asked = request(work, models=["toy:llama"], adapters=[checkpoints_of_another_base], out=Path("out"))
    with pytest.raises(RequestError, match="trained on other weights"):
        exam(asked)
    exam(request(work, models=["toy:llama"], out=Path("out")))


@pytest.fixture
def checkpoints_of_another_base(tmp_path: Path) -> Path:
    base, model = attached(ModelConfig(base="toy:qwen2", lora=LoraSettings(r=4)))
    (tmp_path / "qwen" / "step-000001").mkdir(parents=True)
    adapters.save(model, tmp_path / "qwen" / "step-000001", base.name, base.facts())
    return tmp_path / "qwen"


def test_an_ambiguous_exam_is_refused_with_exit_code_two(tmp_path, capsys):
    rows = [{"question": f"q{n}", "options": ["a", "b"], "answer": 1} for n in range(9)]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["exam", "exam.jsonl", "--model", "toy:llama"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(DataError):
        exam(ExamRequest(exams=[tmp_path / "exam.jsonl"], models=["toy:llama"]))
    assert main(["exam", "exam.jsonl", "--model", "toy:llama", "--answers", "0", "--plain"]) == 0


def test_an_interrupt_is_told_with_the_line_that_goes_on(work, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(examverbs, "sweep", stop)
    with pytest.raises(Interrupted, match="--resume"):
        exam(request(work, models=["toy:llama"]))
