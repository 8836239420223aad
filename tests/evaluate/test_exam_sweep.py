"""Many candidates on one base: each answers as if it sat alone, none is mistaken for another, and no question that was
answered is asked again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from luthier.data.exams.exam import Exam, ExamItem, exam_digest
from luthier.errors import RequestError
from luthier.evaluate.candidates import Candidate, find_candidates
from luthier.evaluate.exams import Examiner
from luthier.evaluate.journal import NO_CACHE, AnswerCache, Journal
from luthier.evaluate.sweep import BASE, Paper, Sitter, sweep
from luthier.exam_records import ExamPrediction
from luthier.files import read_json, read_jsonl, write_json
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.swap import Seat
from luthier.models.text_base import load_text_base
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import LoraSettings, ModelConfig
from luthier.rundir import ExamDir, SatDir
from luthier.runtime.devices import Devices
from support.children import ROOT, environment
from support.text_cases import attached, config_of, train, write_base

pytest.importorskip("bitsandbytes")
STEPS = ("step-000010", "step-000020", "step-000030")
CONFIG = ModelConfig(base="toy:llama", lora=LoraSettings(r=4, alpha=8, dropout=0.0))


def an_exam(count: int = 30) -> Exam:
    items = [
        ExamItem(f"i{n}", f"What is {n} and {n + 1}?", (f"{2 * n + 1} apples", f"{n * 3} pears"), n % 2)
        for n in range(count)
    ]
    return Exam("sums", items, exam_digest(items), "options", "0")


def paper(place: Path, count: int = 30) -> Paper:
    return Paper(an_exam(count), ExamSettings(), ExamDir(place))


def sit(place: Path, candidates: list[Candidate], config: ModelConfig = CONFIG, cache: AnswerCache = NO_CACHE) -> Paper:
    asked = paper(place)
    sweep(partial(load_text_base, config), candidates, [asked], Devices(config.dtype), cache, place / "features")
    return asked


def answers(asked: Paper, name: str) -> list[list[float]]:
    return [line["logprobs"] for line in read_jsonl(asked.place.candidate(name).predictions)]


def trained(folder: Path, config: ModelConfig = CONFIG, steps: tuple[str, ...] = STEPS) -> Path:
    """Checkpoints of one training."""
    base, model = attached(config)
    for name in steps:
        train(model, base, 1)
        (folder / name).mkdir(parents=True)
        adapters.save(model, folder / name, base.name, base.facts())
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained") / "checkpoints")


@pytest.fixture
def candidates(checkpoints: Path) -> list[Candidate]:
    return [Candidate(BASE), *find_candidates([checkpoints])]


def alone(folder: Path | None) -> list[list[float]]:
    """What plain PEFT's model of one folder answers, in a base of its own."""
    base = load_text_base(CONFIG)
    model = base.model if folder is None else PeftModel.from_pretrained(base.model, str(folder))
    examiner = Examiner.of(an_exam(), ExamSettings(), ChatTemplate.of(base.tokenizer))
    return [one.logprobs for one in examiner.examine(model, Devices("float32")).predictions]


def test_a_sweep_answers_as_each_candidate_alone_under_plain_peft(tmp_path, checkpoints, candidates):
    asked = sit(tmp_path, candidates)
    for candidate in candidates:
        torch.testing.assert_close(
            torch.tensor(answers(asked, candidate.name)), torch.tensor(alone(candidate.adapter)), rtol=0, atol=1e-6
        )
    assert len({str(answers(asked, candidate.name)) for candidate in candidates}) == 4
    assert [candidate.step for candidate in candidates] == [None, 10, 20, 30]


def test_the_base_is_loaded_once_and_the_same_after_its_adapters(tmp_path, candidates):
    loads = []

    def load() -> Any:
        loads.append(load_text_base(CONFIG))
        return loads[-1]

    last = Candidate("base-again")
    asked = paper(tmp_path)
    seat = Seat(load)
    examiner = asked.examiner(seat.base.tokenizer)
    asked.lay_out()
    for candidate in [*candidates, last]:
        if candidate.adapter is None:
            seat.clear()
        else:
            seat.put(candidate.adapter, {})
        Sitter(seat.base, seat.model, Devices("float32")).sit(candidate, examiner, asked.place)
    assert len(loads) == 1
    assert answers(asked, BASE) == answers(asked, "base-again")
    keys = [read_json(asked.place.candidate(one.name).record)["key"] for one in (candidates[0], last)]
    assert keys[0] == keys[1]


def test_adapters_of_different_shapes_and_vocabularies_sit_one_exam(tmp_path):
    """Plain, with tokens in spare rows, with a grown vocabulary, and every weight: on one base, whatever the order."""
    root = tmp_path / "made"
    write_base(root / "tied")
    for case in ("lora", "rslora", "tokens, tied", "grown, tied", "full"):
        base, model = attached(config_of(root, case))
        train(model, base, 1)
        (root / case).mkdir()
        adapters.save(model, root / case, base.name, base.facts())
    config = config_of(root, "lora")
    folders = [root / case for case in ("grown, tied", "full", "tokens, tied", "lora", "rslora")]
    together = sit(tmp_path / "together", [Candidate(BASE), *find_candidates(folders)], config)
    for folder in folders:
        by_itself = sit(tmp_path / folder.name / "alone", find_candidates([folder]), config)
        assert answers(by_itself, folder.name) == answers(together, folder.name)
    only = sit(tmp_path / "base", [Candidate(BASE)], config)
    assert answers(only, BASE) == answers(together, BASE)


def test_a_quantised_base_is_examined_with_its_adapters(tmp_path):
    config = ModelConfig(base="toy:llama", quantization="nf4", lora=CONFIG.lora)
    folder = trained(tmp_path / "nf4", config, STEPS[:2])
    asked = sit(tmp_path / "out", [Candidate(BASE), *find_candidates([folder])], config)
    assert len({str(answers(asked, name)) for name in (BASE, *STEPS[:2])}) == 3
    with pytest.raises(RequestError, match="quantization is 'nf4'"):
        sit(tmp_path / "whole", find_candidates([folder]), CONFIG)


def test_all_adapters_of_another_base_are_named_before_a_question_is_asked(tmp_path, checkpoints):
    other = trained(tmp_path / "other", ModelConfig(base="toy:qwen2", lora=CONFIG.lora), STEPS[:2])
    torn = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "torn"))
    (torn / adapters.CONFIG).write_text("{")
    pickled = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "pickled"))
    (pickled / adapters.WEIGHTS).rename(pickled / "adapter_model.bin")
    soft = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "soft"))
    write_json(soft / adapters.CONFIG, {**read_json(soft / adapters.CONFIG), "peft_type": "PROMPT_TUNING"})
    found = find_candidates([checkpoints, other, tmp_path / "pickled", soft])
    with pytest.raises(RequestError) as caught:
        sit(tmp_path / "out", [Candidate(BASE), *found, Candidate("torn", torn)])
    text = str(caught.value)
    assert "5 adapters cannot be examined" in text
    assert text.count("trained on other weights") == 2
    assert "pickle" in text
    assert "PROMPT_TUNING" in text
    assert "torn" in text
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_changes_nothing_raises_the_alarm(tmp_path, checkpoints, capsys):
    idle = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "idle"))
    weights = load_file(idle / adapters.WEIGHTS)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()}, idle / adapters.WEIGHTS)
    asked = sit(tmp_path / "out", [Candidate(BASE), *find_candidates([idle, checkpoints / STEPS[1]])])
    assert read_json(asked.place.candidate("idle").record)["same_as_base"] is True
    assert read_json(asked.place.candidate(STEPS[1]).record)["same_as_base"] is False
    assert capsys.readouterr().err.count("ALARM: idle") == 1


def test_plain_peft_folders_from_elsewhere_are_examined_and_their_base_is_named(tmp_path, checkpoints, capsys):
    plain = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "plain"))
    (plain / adapters.FACTS).unlink()
    settings = read_json(plain / adapters.CONFIG)
    write_json(plain / adapters.CONFIG, {**settings, "base_model_name_or_path": "someone/else"})
    asked = sit(tmp_path / "out", find_candidates([plain, checkpoints / STEPS[0]]))
    assert answers(asked, "plain") == answers(asked, STEPS[0])
    assert "names someone/else as its base" in capsys.readouterr().err


def test_an_adapter_reads_with_the_tokenizer_that_it_brought(tmp_path, checkpoints):
    plain = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "plain"))
    (plain / adapters.FACTS).unlink()
    tokenizer = load_text_base(CONFIG).tokenizer
    tokenizer.save_pretrained(plain)
    same = sit(tmp_path / "same", find_candidates([plain]))
    tokenizer.chat_template = tokenizer.chat_template.replace("message['role']", "'score'")
    tokenizer.save_pretrained(plain)
    other = sit(tmp_path / "other", find_candidates([plain]))
    assert answers(same, "plain") != answers(other, "plain")


def test_weights_that_have_no_place_in_the_base_are_refused(tmp_path, checkpoints):
    plain = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "plain"))
    (plain / adapters.FACTS).unlink()
    weights = load_file(plain / adapters.WEIGHTS)
    save_file(
        {name.replace("base_model.model.", "model."): value for name, value in weights.items()},
        plain / adapters.WEIGHTS,
    )
    with pytest.raises(Exception, match="weights are missing"):
        sit(tmp_path / "out", find_candidates([plain]))


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from evaluate import test_exam_sweep as t
place, checkpoints = Path(sys.argv[1]), Path(sys.argv[2])
keep, count = t.Journal.keep, [0]
def keep_and_die(self, prediction):
    keep(self, prediction)
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
t.Journal.keep = keep_and_die
import luthier.evaluate.exams as exams
exams.LINE = {"cpu": 600}  # several passes
t.sit(place, [t.Candidate(t.BASE), *t.find_candidates([checkpoints])])
"""


def _run_until(place: Path, checkpoints: Path, items: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(place), str(checkpoints), str(items)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=100,
    )
    return done.returncode


def test_a_killed_sweep_goes_on_and_leaves_the_same_bytes(tmp_path, checkpoints, monkeypatch):
    assert _run_until(tmp_path / "killed", checkpoints, 44) == -signal.SIGKILL
    part = tmp_path / "killed" / STEPS[0] / "predictions.part.jsonl"
    assert len(part.read_text().splitlines()) == 1 + 14
    with part.open("a") as stream:
        stream.write('{"seconds": 1, "predic')  # torn by a power cut
    asked_again = []
    monkeypatch.setattr("luthier.evaluate.exams.LINE", {"cpu": 600})
    keep = Journal.keep
    monkeypatch.setattr(
        Journal, "keep", lambda self, one: (asked_again.append(one.id in self.done), keep(self, one))[1]
    )
    candidates = [Candidate(BASE), *find_candidates([checkpoints])]
    sit(tmp_path / "killed", candidates)
    assert 60 < len(asked_again) < 90  # 16 and two whole exams, and what shared a line with the last item
    sit(tmp_path / "whole", candidates)
    for name in (BASE, *STEPS):
        parts = [(tmp_path / run / name / "predictions.jsonl").read_bytes() for run in ("killed", "whole")]
        assert parts[0] == parts[1]
    assert not part.exists()


def test_answers_under_other_weights_are_never_mixed(tmp_path, checkpoints):
    place = tmp_path / "out"
    sit(place, [Candidate("one", checkpoints / STEPS[0])])
    with pytest.raises(RequestError, match="is finished, with other weights"):
        sit(place, [Candidate("one", checkpoints / STEPS[1])])
    seat = ExamDir(place).candidate("one")
    seat.record.unlink()  # as if killed before the end, and begun by another adapter
    journal = Journal(SatDir(seat.path), "another key")
    journal.keep(ExamPrediction("i0", 0, 1, [-9.0, -8.0], False))
    journal.close()
    asked = sit(place, [Candidate("one", checkpoints / STEPS[1])])
    fresh = sit(tmp_path / "fresh", [Candidate("one", checkpoints / STEPS[1])])
    assert answers(asked, "one") == answers(fresh, "one")


def test_a_folder_goes_on_with_the_same_exam_alone(tmp_path):
    sit(tmp_path, [Candidate(BASE)])
    other = Paper(an_exam(12), ExamSettings(both_orders=False), ExamDir(tmp_path))
    with pytest.raises(RequestError, match="another digest and settings"):
        sweep(partial(load_text_base, CONFIG), [Candidate(BASE)], [other], Devices("float32"), NO_CACHE, tmp_path)


def test_the_cache_gives_equal_keys_their_answers_and_misses_a_changed_adapter(tmp_path, checkpoints, monkeypatch):
    cache = AnswerCache(tmp_path / "cache")
    changed = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "changed"))
    first = sit(tmp_path / "first", [Candidate(BASE), Candidate("one", checkpoints / STEPS[0])], cache=cache)
    examined = []
    examine = Examiner.examine
    monkeypatch.setattr(Examiner, "examine", lambda self, *rest: (examined.append(1), examine(self, *rest))[1])
    again = sit(tmp_path / "again", [Candidate(BASE), Candidate("two", changed)], cache=cache)
    assert not examined
    assert answers(first, "one") == answers(again, "two")
    record = read_json(again.place.candidate("two").record)
    assert (record["name"], record["adapter"]) == ("two", str(changed))
    weights = load_file(changed / adapters.WEIGHTS)
    name = next(iter(weights))
    weights[name][0, 0] += 1e-3
    save_file(weights, changed / adapters.WEIGHTS)
    third = sit(tmp_path / "third", [Candidate("two", changed)], cache=cache)
    assert len(examined) == 1
    assert answers(third, "two") != answers(again, "two")


def test_a_torn_cache_is_not_used(tmp_path):
    cache = AnswerCache(tmp_path / "cache")
    sit(tmp_path / "first", [Candidate(BASE)], cache=cache)
    (kept,) = (tmp_path / "cache").iterdir()
    (kept / "predictions.jsonl").write_text("")
    asked = sit(tmp_path / "second", [Candidate(BASE)], cache=cache)
    assert len(answers(asked, BASE)) == 30


def test_a_folder_goes_on_with_the_same_names_and_groups_alone(tmp_path):
    first = paper(tmp_path)
    first.lay_out()
    items = [replace(item, group="all") for item in first.exam.items]
    with pytest.raises(RequestError, match="another ids or groups"):
        replace(first, exam=replace(first.exam, items=items)).lay_out()
    first.lay_out()


def test_a_cache_that_cannot_be_written_stops_no_sweep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    asked = sit(tmp_path / "out", [Candidate(BASE)], cache=AnswerCache(tmp_path / "file" / "cache"))
    assert len(answers(asked, BASE)) == 30
    assert "cannot be written" in capsys.readouterr().err


def test_equal_weights_that_work_in_another_way_have_another_key(tmp_path):
    base = load_text_base(CONFIG)
    examiner = paper(tmp_path).examiner(base.tokenizer)
    sitter = Sitter(base, base.model, Devices("float32"))
    keys = [sitter.key("", examiner)]
    base.model.config.use_cache = False  # as training does
    assert sitter.key("", examiner) == keys[0]
    base.model.config.rope_parameters = {**base.model.config.rope_parameters, "rope_theta": 500.0}
    keys.append(sitter.key("", examiner))
    base.model.generation_config.eos_token_id = 3
    keys.append(sitter.key("", examiner))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "works behind certain tokens alone"),
        ({"kasa_config": {"beta": 1e-4}}, "truncates the base's own weights"),
        ({"arrow_config": {"top_k": 2}}, "chooses among several"),
        ({"init_lora_weights": "lora_ga"}, "takes a part out of the base"),
    ],
)
def test_an_adapter_that_is_no_sum_with_its_base_is_refused(tmp_path, checkpoints, setting, what):
    folder = Path(shutil.copytree(checkpoints / STEPS[0], tmp_path / "other"))
    write_json(folder / adapters.CONFIG, {**read_json(folder / adapters.CONFIG), **setting})
    with pytest.raises(RequestError, match=what):
        sit(tmp_path / "out", find_candidates([folder]))


def test_folders_whose_names_join_to_the_same_are_refused(tmp_path, checkpoints):
    folders = [tmp_path / name for name in ("a/b-c", "a-b/c", "z/c")]
    for folder in folders:
        shutil.copytree(checkpoints / STEPS[0], folder)
    with pytest.raises(RequestError, match="would be called the same"):
        find_candidates(folders)


def test_a_model_in_training_has_the_key_of_its_checkpoint(tmp_path):
    """So a run's own examination and a later one of its folders know each other's answers."""
    base, model = attached(CONFIG)
    train(model, base, 1)
    (tmp_path / "step-000001").mkdir()
    adapters.save(model, tmp_path / "step-000001", base.name, base.facts())
    examiner = paper(tmp_path).examiner(base.tokenizer)
    seat = Seat(partial(load_text_base, CONFIG))
    seat.put(tmp_path / "step-000001", {})
    in_training, on_the_seat = (
        Sitter(base, model, Devices("float32")),
        Sitter(seat.base, seat.model, Devices("float32")),
    )
    saved = on_the_seat.key(adapters.digest(seat.model), examiner)
    assert in_training.key(adapters.digest(model), examiner) == saved
    train(model, base, 1)
    assert in_training.key(adapters.digest(model), examiner) != saved


def test_candidates_are_found_in_order_and_told_apart_by_name(tmp_path, checkpoints):
    copy = Path(shutil.copytree(checkpoints, tmp_path / "runs" / "b" / "checkpoints"))
    (copy / "step-000010").rename(copy / "step-1000000")
    other = Path(shutil.copytree(checkpoints, tmp_path / "runs" / "a" / "checkpoints"))
    assert [one.step for one in find_candidates([copy])] == [20, 30, 1000000]
    found = find_candidates([other, copy])
    assert len({one.name for one in found}) == 6
    assert found[0].name == "a-checkpoints-step-000010"
    with pytest.raises(RequestError, match="given twice"):
        find_candidates([copy, copy / "step-000020"])
    with pytest.raises(RequestError, match="neither an adapter"):
        find_candidates([tmp_path])


def test_the_records_say_who_sat_and_what_it_cost(tmp_path, checkpoints, candidates):
    asked = sit(tmp_path, candidates)
    record = read_json(asked.place.candidate(STEPS[1]).record)
    assert record["adapter"] == str(checkpoints / STEPS[1])
    assert record["base_sha256"] == load_text_base(CONFIG).digest
    assert 0 < record["read_tokens"] < record["prompt_tokens"]
    assert record["peak_memory"] > 10_000_000
    assert asked.place.candidates() == sorted([BASE, *STEPS])
    exam = json.loads(asked.place.exam.read_text())
    assert (exam["items"], exam["chance"], exam["settings"]["method"]) == (30, 0.5, "letters")
