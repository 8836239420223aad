"""Questions with sound and pictures: held against the model's own forward pass with its own encoders."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalImageProcessor

from luthier.data.exams.exam import Exam, ExamItem, exam_digest
from luthier.data.media import load_audio
from luthier.errors import RequestError
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exam_prompts import Asker
from luthier.evaluate.exams import Examiner, Sitting
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.families import PHI4_MULTIMODAL
from luthier.models.senses.phi4_multimodal import Phi4Senses
from luthier.models.senses.spelling import Speller
from luthier.models.text_base import TextBase, load_text_base
from luthier.recipe_data import Limits
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Part


@pytest.fixture
def base() -> TextBase:
    return load_text_base(ModelConfig(base="toy:phi4-multimodal"))


def sound(seed: int, seconds: float = 0.9) -> bytes:
    rng = np.random.default_rng(seed)
    time = np.arange(int(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 300 * (seed + 1) * time) + 0.01 * rng.normal(size=len(time))
    out = io.BytesIO()
    soundfile.write(out, wave, 16_000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def picture(seed: int, width: int = 70, height: int = 40) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def exam_of(kind: str, media: list[bytes], name: str = "shown") -> Exam:
    """One question a medium."""
    references = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in media]
    items = [
        ExamItem(
            f"{name}-{n}", "What is it?", ("a low tone", "a high tone", "noise"), n % 3, media=(Part(kind, media=ref),)
        )
        for n, ref in enumerate(references)
    ]
    return Exam(name, items, exam_digest(items), "options", "0", blobs=dict(zip(references, media, strict=True)))


def reader(base: TextBase, *exams: Exam, folder: Path = Path()) -> MediaReader:
    found = MediaReader.of(base, exams, folder, Limits())
    assert found is not None
    return found


def speller(base: TextBase, *exams: Exam) -> Speller:
    return reader(base, *exams).speller


def sit(base: TextBase, exam: Exam, folder: Path, model: Any = None, pool: Exam | None = None, **more: Any) -> Sitting:
    media = MediaReader.of(base, [exam, *([pool] if pool else [])], folder, Limits())
    settings = ExamSettings(**more)
    examiner = Examiner.of(exam, settings, ChatTemplate.of(base.tokenizer), pool, media)
    return examiner.examine(base.model if model is None else model, Devices("float32"))


def natively(base: TextBase, kind: str, media: list[bytes], context: str, answer: str) -> float:
    """The reference: ids with placeholders repeated, and the encoders within the model's own forward pass."""
    tokenizer, config = base.tokenizer, base.model.config
    if kind == "audio":
        extractor = Phi4MultimodalFeatureExtractor()
        mels = [PHI4_MULTIMODAL.mel(extractor, load_audio(data, Limits())) for data in media]
        assert len({len(mel) for mel in mels}) == 1
        counts = [PHI4_MULTIMODAL.sound_tokens(base.model, len(mel)) for mel in mels]
        given = {"audio_input_features": torch.stack(mels), "audio_embed_sizes": torch.tensor(counts)}
        token = config.audio_config.audio_token_id
    else:
        processor = Phi4MultimodalImageProcessor(size={"height": 28, "width": 28}, patch_size=14)
        given = dict(processor([Image.open(io.BytesIO(data)) for data in media], return_tensors="pt"))
        # Crops of one feature each: the picture's own, one to end each of its rows, and two with one between.
        rows, columns = given["image_sizes"][0] // 28
        del given["num_img_tokens"]
        counts = [int(rows * (columns + 1)) + 3] * len(media)
        token = config.vision_config.image_token_id
    mark = re.escape(tokenizer.convert_ids_to_tokens(token))
    context = re.sub(f"({mark})+", lambda run: run[1], context)  # the slots are counted anew
    queue, ids = iter(counts), []
    whole = tokenizer(context + answer, add_special_tokens=False)["input_ids"]
    for one in whole:
        ids += [one] * (next(queue) if one == token else 1)
    start = len(ids) - (len(whole) - len(tokenizer(context, add_special_tokens=False)["input_ids"]))
    with torch.no_grad():
        logits_LV = base.model(input_ids=torch.tensor([ids]), **given, use_cache=False).logits[0, start - 1 : -1]
    logprobs_LV = logits_LV.double().log_softmax(-1)
    return float(logprobs_LV.gather(1, torch.tensor(ids[start:])[:, None]).sum())


@pytest.mark.parametrize("method", ["letters", "text"])
@pytest.mark.parametrize("kind", ["audio", "image"])
def test_options_have_the_log_likelihoods_of_the_models_own_forward_pass(
    base: TextBase, tmp_path: Path, kind: str, method: str
) -> None:
    media = [(sound if kind == "audio" else picture)(seed) for seed in range(3)]
    exam = exam_of(kind, media)
    found = sit(base, exam, tmp_path, method=method)
    asker = Asker.of(exam, ExamSettings(method=method), ChatTemplate.of(base.tokenizer), None, speller(base, exam))
    for item, data, prediction in zip(exam.items, media, found.predictions, strict=True):
        for asked, way in zip(asker.ask(item), [prediction, *prediction.more], strict=True):
            expected = [
                natively(base, kind, [data], context, answer)
                for context, answer in zip(asked.contexts, asked.answers, strict=True)
            ]
            assert way.logprobs == pytest.approx(expected, abs=2e-5)


def test_a_solved_question_brings_its_own_recording(base: TextBase, tmp_path: Path) -> None:
    pool, exam = exam_of("audio", [sound(7)], "pool"), exam_of("audio", [sound(1), sound(2)])
    pool.items[0] = replace(pool.items[0], question="What was it?")
    found = sit(base, exam, tmp_path, pool=pool, shots=1)
    settings = ExamSettings(shots=1, pool="pool")
    asker = Asker.of(exam, settings, ChatTemplate.of(base.tokenizer), pool, speller(base, exam, pool))
    asked = next(asker.ask(exam.items[1]))
    expected = [
        natively(base, "audio", [sound(7), sound(2)], context, answer)
        for context, answer in zip(asked.contexts, asked.answers, strict=True)
    ]
    assert found.predictions[1].logprobs == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["audio", "image"])
def test_another_recording_or_picture_changes_the_answers(base: TextBase, tmp_path: Path, kind: str) -> None:
    made = sound if kind == "audio" else picture
    one, other = (sit(base, exam_of(kind, [made(seed)]), tmp_path).predictions[0].logprobs for seed in (0, 1))
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


def test_vectors_are_made_once_and_read_once_for_all_options(
    base: TextBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam = exam_of("audio", [sound(0), sound(1)])
    first = sit(base, exam, tmp_path)
    assert first.read_tokens < first.prompt_tokens / 3

    def never(*_: Any) -> None:
        raise AssertionError("was encoded again")

    monkeypatch.setattr(Phi4Senses, "encode", never)
    assert sit(base, exam, tmp_path).predictions == first.predictions


def test_adapters_share_the_vectors_but_one_that_tunes_the_encoder(base: TextBase, tmp_path: Path) -> None:
    exam = exam_of("audio", [sound(0)])
    alone = sit(base, exam, tmp_path)
    config = ModelConfig(base="toy:phi4-multimodal")
    model = adapters.attach(base, config, {}, 1)
    assert sit(base, exam, tmp_path, model).predictions == alone.predictions, "a new adapter changes nothing"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    ours = sit(base, exam, tmp_path, model).predictions
    assert ours != alone.predictions
    before = sorted(path.name for path in tmp_path.iterdir())
    examiner = Examiner.of(
        exam, ExamSettings(), ChatTemplate.of(base.tokenizer), None, reader(base, exam, folder=tmp_path)
    )
    with torch.no_grad():
        base.model.get_submodule(PHI4_MULTIMODAL.projector[0]).weight.mul_(2)
    tuned = examiner.examine(model, Devices("float32")).predictions
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "its vectors are not kept"
    assert tuned == sit(base, exam, tmp_path / "other", model).predictions
    assert tuned != ours


def test_what_cannot_be_shown_is_refused(base: TextBase, tmp_path: Path) -> None:
    exam = exam_of("audio", [sound(0)])
    item = exam.items[0]
    template = ChatTemplate.of(base.tokenizer)

    def refused(changed: ExamItem, match: str, **settings: Any) -> None:
        made = replace(exam, items=[changed], blobs={**exam.blobs, "sha256:p": picture(0)})
        with pytest.raises(RequestError, match=match):
            sit(base, made, tmp_path, **settings)

    refused(item, "stands only in a chat", chat_template=False)
    refused(replace(item, question="Hear <|audio|>?"), "has '<|audio|>' in its words")
    with pytest.raises(RequestError, match="which this base does not read"):
        Examiner.of(exam, ExamSettings(), template)
    with pytest.raises(RequestError, match="reads text alone, and questions have audio in them"):
        MediaReader.of(load_text_base(ModelConfig(base="toy:phi3")), [exam], tmp_path, Limits())
    with pytest.raises(RequestError, match=r"empty|not a known"):
        sit(base, replace(exam, blobs=dict.fromkeys(exam.blobs, b"RIFF")), tmp_path / "other")
    assert MediaReader.of(load_text_base(ModelConfig(base="toy:phi3")), [], tmp_path, Limits()) is None


def test_the_recordings_of_solved_questions_are_part_of_the_digest(base: TextBase, tmp_path: Path) -> None:
    """Ids number the vectors alone: another recording of the same length has the same ids."""
    made, digests = exam_of("audio", [sound(1)]), []
    for seed in (2, 3):
        pool = exam_of("audio", [sound(seed)], "pool")
        media = MediaReader.of(base, [made, pool], tmp_path, Limits())
        settings = ExamSettings(shots=1, pool="pool", both_orders=False)
        digests.append(Examiner.of(made, settings, ChatTemplate.of(base.tokenizer), pool, media).digest)
    assert digests[0] != digests[1]
