"""Exams with pictures, sound and video on every family: held against the library and against lessons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier.data.exams.exam import Exam, ExamItem, exam_digest
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exams import Examiner
from luthier.evaluate.generate import Decoding, Generator
from luthier.evaluate.seeing import Prompt
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import collate
from luthier.models.senses import toy_gemma3, toy_qwen_vl
from luthier.models.text_base import TextBase, load_text_base
from luthier.recipe_data import Frames, Limits
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Part
from support import seeing

FRAMES = Frames(rate=2.0)


def exam_of(*shown: tuple[Part, ...], name: str = "shown") -> Exam:
    """A question of three options for each group of media, and one of words alone."""
    items = [
        ExamItem(f"{name}-{n}", "What is it?", ("one two", "answer two", "a long answer"), n % 3, media=media)
        for n, media in enumerate([*shown, ()])
    ]
    blobs = {str(part.media): seeing.BLOBS[str(part.media)] for media in shown for part in media}
    return Exam(name, items, exam_digest(items), "options", "0", blobs=blobs)


def media_for(base: TextBase) -> list[tuple[Part, ...]]:
    found = [
        (seeing.image(61, 47),),
        (seeing.image(61, 47, 1),),
        (seeing.image(40, 44), seeing.image(25, 70)),
        (seeing.video(),),
    ]
    return [*found, (seeing.image(30, 30), seeing.sound(0.7))] if "audio" in base.senses.kinds else found  # type: ignore[union-attr]


def examiner_of(base: TextBase, exam: Exam, folder: Path, **settings: Any) -> Examiner:
    media = MediaReader.of(base, [exam], folder, Limits(), FRAMES)
    return Examiner.of(exam, ExamSettings(**settings), ChatTemplate.of(base.tokenizer), None, media)


@pytest.fixture(scope="module", params=seeing.TOYS)
def base(request: pytest.FixtureRequest) -> TextBase:
    return load_text_base(ModelConfig(base=request.param))


def test_options_have_the_log_likelihoods_of_lessons_that_end_with_them(base: TextBase, tmp_path: Path) -> None:
    exam = exam_of(*media_for(base))
    examiner = examiner_of(base, exam, tmp_path, method="text")
    found = examiner.examine(base.model, Devices("float32"))
    twin = seeing.Seeing.of(base.name)
    for item, [encoded], prediction in zip(exam.items, examiner.asked, found.predictions, strict=True):
        asked = [*item.media, f"Question: {item.question}"]
        lessons = twin.lessons([seeing.asked(n, asked, option) for n, option in enumerate(item.options)])
        sums = [twin.model.log_likelihoods(collate([lesson], False, 0, twin.supply)) for lesson in lessons]
        expected = [float(one[: text.count].sum()) for one, text in zip(sums, encoded.texts, strict=True)]
        assert prediction.logprobs == pytest.approx(expected, abs=5e-5), item.id


@pytest.mark.parametrize("name", ["toy:qwen3-vl", "toy:gemma3-vision"])
def test_options_have_the_log_likelihoods_of_the_librarys_own_processor_and_forward(name: str, tmp_path: Path) -> None:
    base = load_text_base(ModelConfig(base=name))
    exam = exam_of((seeing.image(61, 47),), (seeing.image(90, 50), seeing.image(40, 44)))
    found = examiner_of(base, exam, tmp_path).examine(base.model, Devices("float32"))
    kind = base.model.config.model_type
    if kind == "gemma3":
        (images,) = toy_gemma3.processors(kind)
        processor = transformers.Gemma3Processor(images, base.tokenizer, image_seq_length=toy_gemma3.TOKENS_PER_IMAGE)
    else:
        images, films = toy_qwen_vl.processors(kind)
        processor = transformers.Qwen3VLProcessor(images, base.tokenizer, films)
    for item, prediction in zip(exam.items[:2], found.predictions, strict=False):
        words = "Question: What is it?\nA. one two\nB. answer two\nC. a long answer\n"
        words += "Answer with the letter of the right option."
        content = [*({"type": "image"} for _ in item.media), {"type": "text", "text": words}]
        asked = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pictures = [seeing.SOURCE.load("image", str(part.media)) for part in item.media]
        inputs = processor(images=pictures, text=asked, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logprobs_V = base.model(**inputs).logits[0, -1].double().log_softmax(-1)
        letters = [base.tokenizer.convert_tokens_to_ids(letter) for letter in "ABC"]
        assert prediction.logprobs == pytest.approx(logprobs_V[letters].tolist(), abs=5e-5)


def test_answers_to_questions_with_media_are_written_as_our_generator_writes_them(
    base: TextBase, tmp_path: Path
) -> None:
    exam = exam_of(*media_for(base))
    examiner = examiner_of(base, exam, tmp_path, method="generate", max_new_tokens=4, both_orders=False)
    devices = Devices("float32")
    found = examiner.examine(base.model, devices)
    twin = seeing.Seeing.of(base.name)
    prompts = [examiner.media.read(one.texts[0].ids[: one.texts[0].start]) for [one] in examiner.asked]  # type: ignore[union-attr]
    generate = Generator(base.model, examiner.template, devices, 1, twin.supply)
    answers = generate([Prompt(ids.tolist(), media) for ids, media in prompts], Decoding(4))
    assert [prediction.text for prediction in found.predictions] == [answer.text for answer in answers]


def test_what_another_medium_or_order_of_media_says_is_another_answer(base: TextBase, tmp_path: Path) -> None:
    first, second = seeing.image(40, 44), seeing.image(40, 44, 1)
    exam = exam_of((first,), (second,), (first, second), (second, first))
    found = examiner_of(base, exam, tmp_path).examine(base.model, Devices("float32"))
    sums = [prediction.logprobs for prediction in found.predictions]
    assert len({tuple(round(value, 3) for value in one) for one in sums}) == len(sums)


def test_the_key_of_an_answer_does_not_hang_on_the_exams_beside_it(base: TextBase, tmp_path: Path) -> None:
    exam, other = exam_of((seeing.image(61, 47),)), exam_of((seeing.image(90, 50),), name="other")
    alone = examiner_of(base, exam, tmp_path).digest
    media = MediaReader.of(base, [other, exam], tmp_path, Limits(), FRAMES)
    template = ChatTemplate.of(base.tokenizer)
    Examiner.of(other, ExamSettings(), template, None, media)
    assert Examiner.of(exam, ExamSettings(), template, None, media).digest == alone
    fewer = MediaReader.of(base, [exam], tmp_path, Limits(), Frames(rate=1.0))
    assert Examiner.of(exam, ExamSettings(), template, None, fewer).digest != alone, "frames are part of what is seen"
