"""Texts of one meaning, by a model made here: words of one meaning have one vector."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from luthier.data.alike.semantic import Embedder, load_model, semantic
from luthier.errors import DataError, SourceError

model2vec = pytest.importorskip("model2vec")
MEANINGS = (
    ("big", "large"),
    ("quick", "fast"),
    ("car", "automobile"),
    ("begin", "start"),
    ("film", "movie"),
    ("child", "kid"),
)
PLAIN = [f"{a}{b}" for a in "bdfgkl" for b in ("an", "en", "in", "on", "un")] + "Tom Anna 3 4 the a is".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", *(word for group in MEANINGS for word in group), *PLAIN]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(words), 32)).astype(np.float32)
    for n in range(len(MEANINGS)):
        vectors[2 + 2 * n] = vectors[1 + 2 * n]
    vectors[0] = 0.0
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    place = tmp_path_factory.mktemp("model")
    model2vec.StaticModel(vectors, tokenizer, config={}).save_pretrained(str(place))
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load_model(folder)


def found(
    texts: list[str], model: Embedder, threshold: float = 0.95, alive: np.ndarray | None = None
) -> list[tuple[int, int]]:
    answer = semantic([texts[:3], texts[3:]], threshold, model, lambda rows: [texts[i] for i in rows], alive)
    assert all(merge.how == "semantic" and threshold - 1e-5 <= merge.similarity <= 1.0 for merge in answer.merges)
    return [(merge.index, merge.into) for merge in answer.merges]


def test_texts_of_the_same_meaning_become_one(model: Embedder) -> None:
    texts = ["the big car", "ban den fin", "a quick film", "the large automobile", "a fast movie", "the big film"]
    assert found(texts, model) == [(3, 0), (4, 2)]


def test_siblings_are_kept_and_counted(model: Embedder) -> None:
    texts = ["the kid is Tom", "the child is Tom", "the kid is Anna"]
    answer = semantic([texts], 0.5, model, lambda rows: [texts[i] for i in rows])
    assert [(merge.index, merge.into) for merge in answer.merges] == [(1, 0)]
    assert answer.siblings == [(0, 2)]
    assert answer.sibling_count == 1


def test_the_answer_is_that_of_comparing_all_with_all(model: Embedder) -> None:
    rng = random.Random(2)
    lower = [word for group in MEANINGS for word in group] + [word for word in PLAIN if word.islower()]
    texts = [" ".join(rng.choices(lower, k=5)) for _ in range(700)]
    vectors = np.stack([model.encode([text], max_length=None, use_multiprocessing=False)[0] for text in texts]).astype(
        float
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    expected = []
    for row in range(len(texts)):
        first = next((other for other in kept if vectors[other] @ vectors[row] >= 0.8), None)
        kept += [row] if first is None else []
        expected += [] if first is None else [(row, first)]
    assert len(expected) > 20
    assert found(texts, model, 0.8) == expected


def test_rows_that_are_gone_and_texts_without_a_known_word_are_passed_over(model: Embedder) -> None:
    assert found(
        ["the car", "the car", "the car", "", "", "zzz", "yyy"], model, alive=np.array([False] + [True] * 6)
    ) == [(2, 1)]
    assert found([], model) == []


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(SourceError, match=r'pip install "luthier\[semantic\]"'):
        load_model(folder)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(SourceError, match="cannot be read"):
        load_model(tmp_path)


def test_a_threshold_beyond_one_is_refused(model: Embedder) -> None:
    with pytest.raises(DataError, match="not in 0"):
        found(["a"], model, threshold=95)
