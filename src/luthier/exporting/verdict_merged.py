"""A model that judges, as one whole: the base's own speech adapter, ours and the learned tokens in one set of weights.

Only for the read-out by tokens: what is scored is then the model's own head. The merge is computed in float32 and
cast; its cost is the largest difference of a probability, over the receipt's recordings, read back from the disk.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.console import say
from luthier.errors import LuthierError
from luthier.exporting.adapter import READING
from luthier.exporting.kinds import ExportRequest, Subject
from luthier.exporting.merged import SHARD, merged_dtype
from luthier.exporting.verdict_receipt import Recordings, judged, reloaded_judge
from luthier.files import read_json, write_json
from luthier.models import package
from luthier.models.load import DTYPES, load_base
from luthier.models.verdict import VerdictModel

LIMITS = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""The largest difference of a probability that rounding explains."""


def merge_verdict(request: ExportRequest, subject: Subject, adapter: Path, out: Path, asked: Recordings) -> Any:
    """Write the merged model into the folder `out`, which is being filled. Returns its probabilities and the gap.

    Raises LuthierError where the gap is above the limit, or above --allow-gap.
    """
    dtype = merged_dtype(subject, request.dtype)
    exact = replace(subject, recipe=replace(subject.recipe, model=replace(subject.recipe.model, dtype="float32")))
    base, model = reloaded_judge(exact, adapter)
    before = judged(base, model, exact.recipe, asked)
    whole = model.language_model.merge_and_unload().to(DTYPES[dtype])
    whole.name_or_path = whole.config.name_or_path = ""
    whole.save_pretrained(str(out), max_shard_size=SHARD)
    base.tokenizer.save_pretrained(str(out))
    base.extractor.save_pretrained(str(out))
    write_json(out / package.NAME, {**read_json(adapter / package.NAME), "builtin_adapter": "", "tuning": "merged"})
    shutil.copyfile(adapter / READING, out / READING)
    del base, model, whole
    gc.collect()
    settings = replace(subject.recipe.model, base=str(out), revision="", builtin_adapter="", dtype=dtype)
    base = load_base(settings)
    answers = read_json(out / package.NAME)["answers"]
    again = VerdictModel(base.model.eval(), base.family, subject.recipe.task, answers)
    after = judged(base, again, replace(subject.recipe, model=settings), asked)
    gap = float(np.abs(after - before).max(initial=0.0))
    limit = LIMITS[dtype] if request.allow_gap is None else request.allow_gap
    say(f"merged in float32, held in {dtype}: largest difference of p_pass {gap:.3g} (limit {limit:g})")
    if not gap <= limit:
        raise LuthierError(
            f"the merged model's probabilities are up to {gap:.3g} from the adapter's on its base; for {dtype} "
            f"{limit:g} is what rounding explains",
            f"merge with --dtype float32, or take it as it is: --allow-gap {gap * 1.01:.3g}",
        )
    return after, {"gap": gap, "limit": limit, "dtype": dtype}
