"""An exam is sat: predictions held against the model's own forward pass, whatever is asked and however it is cut."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.data.exams.exam import Exam, ExamItem
from luthier.errors import LuthierError, RequestError
from luthier.evaluate import exam_encoded, exams, marking
from luthier.evaluate.exam_prompts import Asker
from luthier.evaluate.exams import Examiner, Sitting
from luthier.evaluate.generate import Answer, Generator
from luthier.exam_records import ExamPrediction
from luthier.models.chat import ChatTemplate
from luthier.models.text_base import load_text_base
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from support.children import environment
from support.questions import exam, exam_of

BASE = load_text_base(ModelConfig(base="toy:qwen2"))
TEMPLATE = ChatTemplate.of(BASE.tokenizer)


def examiner(made: Exam, shots_from: Exam | None = None, **settings: Any) -> Examiner:
    return Examiner.of(made, ExamSettings(**settings), TEMPLATE, shots_from)


def sit(made: Exam, shots_from: Exam | None = None, **settings: Any) -> Sitting:
    return examiner(made, shots_from, **settings).examine(BASE.model, Devices("float32"))


def plainly(context: str, answer: str, chat: bool) -> tuple[float, int]:
    """The reference: the log-likelihood of what is encoded beyond the context, by one whole forward pass."""
    encoded = [BASE.tokenizer(text, add_special_tokens=not chat)["input_ids"] for text in (context, context + answer)]
    ids, start = torch.tensor([encoded[1]]), len(encoded[0])
    with torch.no_grad():
        logprobs_LV = BASE.model(input_ids=ids).logits[0, start - 1 : -1].double().log_softmax(-1)
    return float(logprobs_LV.gather(1, ids[0, start:, None]).sum()), len(encoded[1]) - start


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("method", "normalization"), [("letters", "none"), ("text", "bytes"), ("text", "tokens")])
def test_every_option_has_the_log_likelihood_of_a_forward_pass(
    method: str, normalization: str, chat: bool, shots: int
) -> None:
    made, pool = exam(9), exam(4, seed=1, name="pool")
    settings = ExamSettings(
        method=method,
        normalization=normalization,
        chat_template=chat,
        prompts=["instruction", "question"],
        shots=shots,
        pool="pool" * bool(shots),
    )
    found = Examiner.of(made, settings, TEMPLATE, pool).examine(BASE.model, Devices("float32"))
    asker = Asker.of(made, settings, TEMPLATE, pool)
    assert [prediction.id for prediction in found.predictions] == [item.id for item in made.items]
    for item, prediction in zip(made.items, found.predictions, strict=True):
        ways = [prediction, *prediction.more]
        for asked, way in zip(asker.ask(item), ways, strict=True):
            expected = []
            for context, answer in zip(asked.contexts, asked.answers, strict=True):
                total, tokens = plainly(context, answer, chat)
                divisor = {"none": 1, "tokens": tokens, "bytes": len(answer.strip().encode())}[normalization]
                expected.append(total / divisor)
            assert way.logprobs == pytest.approx(expected, abs=1e-5)
            assert way.choice == expected.index(max(expected))
        assert [(way.prompt, way.reversed) for way in prediction.more] == (
            [("instruction", True), ("question", False), ("question", True)]
            if method == "letters"
            else [("question", False)]
        )
        assert prediction.correct == (prediction.choice == prediction.answer)


def test_tokens_read_are_far_fewer_than_tokens_asked() -> None:
    made, pool = exam(12), exam(5, seed=1, name="pool")
    found = sit(made, pool, shots=5, pool="pool")
    assert found.read_tokens < found.prompt_tokens / 10
    assert found.seconds > 0


def test_a_sitting_goes_on_where_it_was_cut() -> None:
    made = examiner(exam(20))
    whole = made.examine(BASE.model, Devices("float32")).predictions
    kept: list[ExamPrediction] = []

    def keep(prediction: ExamPrediction) -> None:
        if len(kept) == 7:
            raise KeyboardInterrupt
        kept.append(ExamPrediction.from_json(json.loads(json.dumps(prediction.to_json()))))

    attention = BASE.model.config._attn_implementation
    with pytest.raises(KeyboardInterrupt):
        made.examine(BASE.model, Devices("float32"), keep=keep)
    assert BASE.model.config._attn_implementation == attention
    done = {prediction.id: prediction for prediction in kept}
    later: list[str] = []
    resumed = made.examine(BASE.model, Devices("float32"), done, lambda prediction: later.append(prediction.id))
    assert sorted([*later, *done]) == sorted(item.id for item in made.exam.items)
    assert resumed.predictions == whole, "bit for bit"
    nothing = made.examine(BASE.model, Devices("float32"), {prediction.id: prediction for prediction in whole})
    assert (nothing.predictions, nothing.read_tokens, nothing.prompt_tokens) == (whole, 0, resumed.prompt_tokens)


def test_however_the_lines_are_cut_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sit(exam(20)).predictions
    monkeypatch.setattr(exams, "LINE", {"cpu": 64})
    for one, other in zip(whole, sit(exam(20)).predictions, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.choice == other.choice


def test_where_memory_runs_out_fewer_items_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sit(exam(20)).predictions
    inner, sizes = marking.Marker._sums, []

    def sums(self: marking.Marker, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > room:
            raise torch.OutOfMemoryError("no room")
        return inner(self, items)

    monkeypatch.setattr(marking.Marker, "_sums", sums)
    room = 6
    for one, other in zip(whole, sit(exam(20)).predictions, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert sizes == [20, 10, 5, 5, 5, 5]
    room = 0
    with pytest.raises(LuthierError, match="memory ran out while one question was read"):
        sit(exam(3))


def test_ties_go_to_the_first_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking.Marker, "_sums", lambda self, items: torch.zeros(2 * 2 * len(items)).numpy())
    made = exam_of([ExamItem(f"i{n}", f"Which {n}?", ("one", "two"), 1) for n in range(3)])
    assert {prediction.choice for prediction in sit(made).predictions} == {0}


def test_a_digest_changes_with_all_that_is_asked_and_with_nothing_else() -> None:
    made, pool = exam(5), exam(3, seed=1, name="pool")
    digest = examiner(made).digest
    assert digest == examiner(exam(5)).digest
    others = [
        examiner(exam(5, seed=2)).digest,
        examiner(made, prompts=["exam"]).digest,
        examiner(made, both_orders=False).digest,
        examiner(made, chat_template=False).digest,
        examiner(made, method="text").digest,
        examiner(made, method="text", normalization="bytes").digest,
        examiner(made, pool, shots=1, pool="pool").digest,
        examiner(made, exam(3, seed=3, name="pool"), shots=1, pool="pool").digest,
        Examiner.of(made, ExamSettings(method="generate"), TEMPLATE).digest,
    ]
    assert len({digest, *others}) == 10


def test_a_question_longer_than_the_base_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BASE.model.config, "max_position_embeddings", 60)
    made = exam_of([ExamItem("short", "Who?", ("a", "b"), 0), ExamItem("long", "x " * 60, ("a", "b"), 0)])
    with pytest.raises(RequestError, match=r"item long has \d+ tokens, and the base reads 60"):
        sit(made)


def test_options_that_are_the_same_ids_are_refused() -> None:
    made = exam_of([ExamItem("twin", "Who?", ("it is", "it  is", "they are"), 0)])
    assert sit(made, method="text").predictions
    with pytest.raises(RequestError, match="two options of item twin are the same ids"):
        sit(exam_of([ExamItem("twin", "Who?", ("me", "me"), 0)]), method="text")


def test_an_option_without_a_token_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = exam_encoded.encode
    merged = lambda *given: [replace(text, start=len(text.ids)) for text in inner(*given)]
    monkeypatch.setattr(exam_encoded, "encode", merged)
    with pytest.raises(RequestError, match="an option of item made-0 melts into the question"):
        sit(exam(2), chat_template=False)


def test_media_are_refused_where_the_base_reads_text_alone() -> None:
    from luthier.schema import Part

    with pytest.raises(RequestError, match="item made-0 has audio, which this base does not read"):
        sit(exam(2, media=(Part("audio", media="sha256:0"),)))


def test_written_answers_are_read_strictly_in_the_order_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    made = exam_of([ExamItem("one", "Which?", ("cat", "dog"), 0), ExamItem("two", "Who?", ("me", "you"), 1)])
    asked: list[str] = []

    def answers(self: Generator, prompts: Any, decoding: Any, label: str) -> list[Answer]:
        assert decoding.max_new_tokens == 5
        asked.extend(BASE.tokenizer.decode(prompt) for prompt in prompts)
        return [Answer([1, 2], text, True) for text in ("A", "A", "(B)", "both")]

    monkeypatch.setattr(Generator, "__call__", answers)
    found = sit(made, method="generate", max_new_tokens=5)
    first, second = found.predictions
    assert (first.choice, first.correct, first.text, first.logprobs) == (0, True, "A", [])
    assert [(way.choice, way.text) for way in first.more] == [(1, "A")]
    assert (second.choice, second.correct, second.more[0].choice) == (1, True, -1)
    assert asked[0].endswith("Answer with the letter of the right option.<|end|><|assistant|>")
    assert found.read_tokens == sum(len(BASE.tokenizer(text)["input_ids"]) for text in asked) + 8


@pytest.mark.parametrize("chat", [True, False])
def test_written_answers_are_those_of_the_generator(chat: bool) -> None:
    found = sit(exam(5), method="generate", chat_template=chat, both_orders=False, max_new_tokens=3)
    generator = Generator(BASE.model, TEMPLATE, Devices("float32"))
    asker = Asker.of(exam(5), ExamSettings(method="generate", chat_template=chat), TEMPLATE, None)
    for item, prediction in zip(exam(5).items, found.predictions, strict=True):
        prompt = BASE.tokenizer(next(asker.ask(item)).contexts[0], add_special_tokens=not chat)["input_ids"]
        [answer] = generator([prompt], exams.Decoding(3))
        assert (prediction.text, prediction.logprobs) == (answer.text, [])


def test_a_base_without_turns_answers_in_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "__call__", lambda *_: [Answer([1], " B\n\nQuestion: more", False)])
    made = exam_of([ExamItem("one", "Which?", ("cat", "dog"), 1)])
    settings = {"method": "generate", "both_orders": False}
    assert sit(made, chat_template=False, **settings).predictions[0].correct
    assert sit(made, chat_template=True, **settings).predictions[0].choice == -1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_log_likelihood_that_is_no_number_stops_the_exam(
    wrong: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = marking.Marker._sums

    def sums(self: marking.Marker, items: Any) -> Any:
        found = inner(self, items)
        found[place] = wrong
        return found

    monkeypatch.setattr(marking.Marker, "_sums", sums)
    with pytest.raises(LuthierError, match=r"item made-\d+: a log-likelihood is not finite"):
        sit(exam(4))


def test_a_digest_says_which_items_are_meant_and_how_they_are_grouped() -> None:
    """Records of a cache name them: a renamed item or another group is another sitting."""
    first = ExamItem("one", "Which?", ("cat", "dog"), 0, group="pets")
    others = [exam_of([first]), exam_of([replace(first, id="two")]), exam_of([replace(first, group="wild")])]
    assert len({other.digest for other in others}) == 1
    assert len({examiner(other).digest for other in others}) == 3


def test_written_answers_that_were_cut_go_on_in_the_same_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision what is padded together may decide a token."""
    monkeypatch.setattr(exams, "WRITTEN", 4)
    inner, asked = Generator.__call__, []

    def answer(self: Generator, prompts: Any, *rest: Any) -> Any:
        asked.append([list(prompt) for prompt in prompts])
        return inner(self, prompts, *rest)

    monkeypatch.setattr(Generator, "__call__", answer)
    made = examiner(exam(12), method="generate", max_new_tokens=2)
    whole = made.examine(BASE.model, Devices("float32")).predictions
    done = {one.id: one for one in (*whole[:4], whole[5])}
    later: list[str] = []
    resumed = made.examine(BASE.model, Devices("float32"), done, lambda one: later.append(one.id))
    assert asked[3:] == asked[1:3]
    assert resumed.predictions == whole
    assert later == [one.id for one in whole if one.id not in done]


def test_an_answer_that_would_be_written_beyond_what_the_base_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BASE.model.config, "max_position_embeddings", 60)
    made = exam_of([ExamItem("one", "Who?", ("a", "b"), 0)])
    assert sit(made, method="generate", max_new_tokens=2).predictions
    with pytest.raises(RequestError, match=r"item one has \d+ tokens, and the base reads 60"):
        sit(made, method="generate", max_new_tokens=59)


def process() -> None:
    """What each of two processes does."""
    made = examiner(exam(20))
    kept: list[str] = []
    exams.LINE["cpu"] = 256
    devices = Devices("float32")
    found = made.examine(BASE.model, devices, keep=lambda prediction: kept.append(prediction.id))
    print(json.dumps([[prediction.to_json() for prediction in found.predictions], kept, found.read_tokens]))


@pytest.mark.slow
def test_two_processes_share_the_lines_and_both_know_all_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    tests = Path(__file__).parents[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", "from evaluate.test_exam_sitting import process; process()"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tests,
            env=environment(**place, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]
    (first, kept, read), (second, nothing, rest) = (
        json.loads(child.communicate(timeout=120)[0].splitlines()[-1]) for child in children
    )
    whole = sit(exam(20))
    assert first == second
    assert [item["choice"] for item in first] == [prediction.choice for prediction in whole.predictions]
    for item, prediction in zip(first, whole.predictions, strict=True):
        assert item["logprobs"] == pytest.approx(prediction.logprobs, abs=1e-5)
    assert (sorted(kept), nothing) == (sorted(item.id for item in exam(20).items), [])
    assert min(read, rest) > 0.3 * whole.read_tokens
