"""A stage's model as one whole: adapter and added tokens merged into the base, as plain transformers loads it.

The merge is computed in float32 and only then cast. What it costs is measured: the largest gap of a logit between the
adapter on its base and the merged model as read back from the disk, over the receipt's prompts; above the limit of the
number format nothing is written. A base that was quantised for training is loaded whole: an adapter cannot be added to
packed weights without rounding it away. Models that judge are merged in `verdict_merged`.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.errors import LuthierError, RequestError
from luthier.exporting.gguf_check import sample_texts
from luthier.exporting.kinds import Subject
from luthier.exporting.receipt import Questions, Readings, max_gap, read, reloaded
from luthier.exporting.sight import fill_processors, refuse_eyes
from luthier.models import adapters, quantized
from luthier.models.chat import ChatTemplate
from luthier.models.load import DTYPES, auto_class, read_config
from luthier.runtime.devices import Devices

SHARD = "4GB"
TEXTS = 300
LIMITS = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.5}
"""The largest logit gap that rounding explains: weights and activations of bfloat16 have 8 bits of precision, those of
float16 have 11, and logits of published models reach some 30."""


@dataclass(frozen=True)
class Merged:
    """What a merge was: `said` are the readings of the model as read back, `gap` its distance from the adapter."""

    said: Readings
    gap: float
    limit: float
    dtype: str
    words: Words

    def as_json(self) -> dict[str, Any]:
        """Of the receipt: the merge itself."""
        return {"gap": self.gap, "limit": self.limit, "dtype": self.dtype}


@dataclass(frozen=True)
class Words:
    """How texts are read by the tokenizer that plain transformers makes of a folder, beside the one trained with."""

    loads_as: str
    """Its class."""
    texts: int
    differ: int

    @classmethod
    def of(cls, tokenizer: Any, trained: Any) -> Words:
        """Some hundred texts through both: prose, code, numbers, many scripts, special tokens amid text."""
        texts = sample_texts(TEXTS, list(trained.added_tokens_encoder))
        read = ((one(text, verbose=False)["input_ids"] for one in (tokenizer, trained)) for text in texts)
        return cls(type(tokenizer).__name__, len(texts), sum(here != there for here, there in read))

    def as_json(self) -> dict[str, Any]:
        return {"loads_as": self.loads_as, "texts": self.texts, "read_otherwise": self.differ}

    def notes(self) -> list[str]:
        """What a reader of the export must know."""
        if not self.differ:
            return []
        return [
            f"transformers goes by the architecture and loads this tokenizer as {self.loads_as}, which reads "
            f"{self.differ} of {self.texts} texts otherwise than in training; as in training: "
            "PreTrainedTokenizerFast.from_pretrained(FOLDER)"
        ]


def refuse_merge(subject: Subject, to: str) -> None:
    """Raise RequestError for a model that cannot be one with its base, or not in the form `to`."""
    task, mend = subject.recipe.task, "export --to adapter or --to space: both keep the read-out"
    if not subject.of_text and to != "merged":
        raise RequestError(
            f"--to {to}: llama.cpp has no read-out of verdicts, and does not hear as this base does", mend
        )
    if not subject.of_text and task.readout != "tokens":
        raise RequestError(
            f"--to merged: the {task.readout} read-out is a head outside the model, which no transformers class has",
            mend,
        )
    if to != "merged":
        refuse_eyes(subject, to)


def merged_dtype(subject: Subject, wanted: str) -> str:
    """The number format of merged weights: as wanted, else the run's."""
    return wanted or subject.recipe.model.dtype


def merge(
    subject: Subject, adapter: Path, out: Path, asked: Questions, ours: Readings, dtype: str, allow_gap: float | None
) -> Merged:
    """Write the merged model of a chat into the folder `out`, which is being filled.

    `adapter` is the exported adapter, `ours` what the trainer's model said. Raises LuthierError where the gap is above
    the limit, or above `allow_gap`.
    """
    settings = subject.recipe.model
    if settings.quantization:
        say(
            f"{settings.base} was trained on in {settings.quantization}; for the merge it is loaded whole, so what is "
            "merged differs from what was trained on by what the quantisation had rounded (see the receipt)"
        )
    whole = replace(settings, quantization="", dtype="float32")
    exact = Devices("float32")
    model, tokenizer = reloaded(subject, adapter, exact, whole)
    if quantized.kind_of(adapters.bare(model)):
        raise RequestError(
            f"{settings.base} is published quantised, and an adapter is not added to packed weights",
            "export --to adapter, or train on the version that is not quantised",
        )
    before = read(model, tokenizer, asked, exact, ours)
    ends = _ends(model, tokenizer)
    model = model.merge_and_unload().to(DTYPES[dtype])
    model.generation_config = ends
    vars(model.config).pop("auto_map", None)  # it names code that does not go along
    model.name_or_path = model.config.name_or_path = ""  # places on this machine are nobody's business
    model.save_pretrained(str(out), max_shard_size=SHARD)
    tokenizer.save_pretrained(str(out))
    fill_processors(settings, out)
    model = None
    gc.collect()
    said, words = read_merged(out, asked, dtype, ours, tokenizer)
    found = Merged(said, max_gap(said, before), LIMITS[dtype] if allow_gap is None else allow_gap, dtype, words)
    say(f"merged in float32, held in {dtype}: largest logit gap {found.gap:.3g} (limit {found.limit:g})")
    if not found.gap <= found.limit:
        raise LuthierError(
            f"the merged model's logits are up to {found.gap:.3g} from the adapter's on its base; for {dtype} "
            f"{found.limit:g} is what rounding explains",
            f"merge with --dtype float32, or take it as it is: --allow-gap {found.gap * 1.01:.3g}",
        )
    return found


def read_merged(
    folder: Path, asked: Questions, dtype: str, reference: Readings, trained: Any
) -> tuple[Readings, Words]:
    """What a merged folder says when plain transformers loads it, and how it reads texts beside `trained`, the
    tokenizer of the adapter."""
    from transformers import AutoTokenizer

    devices = Devices(dtype)
    maker = auto_class(read_config(str(folder), None))
    model = maker.from_pretrained(folder, dtype=DTYPES[dtype], trust_remote_code=False)
    devices.place(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    found = read(model.eval(), tokenizer, asked, devices, reference)
    del model
    gc.collect()
    return found, Words.of(tokenizer, trained)


def _ends(model: Any, tokenizer: Any) -> Any:
    """What ends an answer, so that those who generate need not know; the base's other settings played no part."""
    from transformers import GenerationConfig

    theirs = adapters.bare(model).generation_config
    named = theirs.eos_token_id
    found = {ChatTemplate.of(tokenizer).stop, tokenizer.eos_token_id}
    found.update(named if isinstance(named, list) else [named])
    return GenerationConfig(
        bos_token_id=theirs.bos_token_id,
        eos_token_id=sorted(token for token in found if token is not None),
        pad_token_id=tokenizer.pad_token_id,
    )


def scratch_beside(out: Path) -> Path:
    """A folder beside `out`, a folder that is being filled, for weights that are not kept: as large as they are, they
    may not fit in /tmp. Its name is that of `out` and more, so that both go together where a kill left them."""
    place = out.with_name(f"{out.name}-merged")
    place.mkdir(parents=True)
    return place
