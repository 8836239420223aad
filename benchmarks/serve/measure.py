"""One measurement each: chats beside `generate`, swaps, verdicts beside written ones, a server under load.

Both sides of a comparison have the same weights, threads and number format, and their answers are compared before their
times are. Knows no tables.
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import GenerationConfig

from luthier.data.media import load_audio
from luthier.data.table import read_table
from luthier.engines.base import ChatRequest, Recording, Sampling, ServedModel
from luthier.engines.chat_base import ChatBase
from luthier.engines.finding import find_models
from luthier.engines.torch_chat import TorchChat
from luthier.engines.torch_verdict import TorchVerdict
from luthier.evaluate.generate import prompt_ids
from luthier.models.load import load_base
from luthier.recipe_data import Limits
from luthier.recipe_model import ModelConfig
from luthier.schema import Message, Part

WRITTEN = re.compile(r"(\d+),(\d+\.\d+)")
NEW_TOKENS = 7
"""Of a written verdict: "0,0.70" and the end of the turn."""
Measured = dict[str, Any]


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of this process on its processors: the latter hardly know of other work."""

    wall: float
    cpu: float


def spent(work: Callable[[], None]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def chat(model: ServedModel, words: int, tokens: int, repeats: int, threads: int) -> list[Measured]:
    """Seconds to the first token and tokens a second of the engine and of bare `generate`, which is given the ids.

    Raises ValueError where the answers differ.
    """
    engine = TorchChat([model], threads)
    question = Message("user", (Part("text", " ".join(["the answer of one speaker"] * (words // 5))),))
    request = ChatRequest(model.id, [question], Sampling(max_new_tokens=tokens, temperature=0))
    list(engine.stream(request))  # loads
    base = engine._bases[next(iter(engine._bases))]
    ids = prompt_ids(base.template, [question])

    def ours() -> tuple[Spent, Spent, str]:
        pieces: list[str] = []

        def answer(most: int) -> None:
            engine._conversations.clear()
            asked = replace(request, sampling=replace(request.sampling, max_new_tokens=most))
            pieces[:] = [piece.text for piece in engine.stream(asked)]

        return spent(lambda: answer(1)), spent(lambda: answer(tokens)), "".join(pieces)

    def bare() -> tuple[Spent, Spent, str]:
        ids_written: list[int] = []

        def answer(most: int) -> None:
            ids_written[:] = generated(base, ids, most)

        first, whole = spent(lambda: answer(1)), spent(lambda: answer(tokens))
        return first, whole, base.template.tokenizer.decode(ids_written, skip_special_tokens=True)

    found = []
    for repeat in range(-1, repeats):
        (first, whole, text), (their_first, theirs, their_text) = alternately(repeat, ours, bare)
        if text != their_text:
            raise ValueError(f"{model.id}: {text!r} beside {their_text!r}")
        if repeat >= 0:  # the first round warms both up
            found.append(
                {
                    **{"first": first.wall, "rate": tokens / whole.wall, "cpu": whole.cpu},
                    **{"their first": their_first.wall, "their rate": tokens / theirs.wall, "their cpu": theirs.cpu},
                }
            )
    return found


def generated(base: ChatBase, ids: list[int], tokens: int) -> list[int]:
    """What plain transformers writes, with as many threads and in the format of the engine."""
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=sorted(base.stops), pad_token_id=0
    )
    with torch.no_grad(), base._pass():
        out = base.model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=settings
        )
    return list(out[0, len(ids) :].tolist())


def alternately(repeat: int, *sides: Callable[[], Any]) -> list[Any]:
    """What each side gives, in the order of the sides, whichever was first this time."""
    order = range(len(sides))
    found = {side: sides[side]() for side in (order if repeat % 2 else reversed(order))}
    return [found[side] for side in order]


def swaps(models: Sequence[ServedModel], rounds: int, threads: int) -> list[float]:
    """Milliseconds from one adapter to another that was there before."""
    base = ChatBase(ModelConfig(base=models[0].base), threads)
    for model in models:
        base.put_on(model)
    found = []
    for model in list(models) * rounds:
        begin = time.perf_counter()
        base.put_on(model)
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def verdicts(run: Path, count: int, repeats: int, threads: int) -> list[Measured]:
    """Verdicts a second of the engine, one recording a call and 32, beside verdicts that are written and parsed."""
    table = read_table(run / "data")
    rows = [item.row for item in table.select(["form-1764-test"], "test")][:count]
    recordings = [Recording(row.id, load_audio(table.media_bytes(row.media[0]), Limits())) for row in rows]
    question = rows[0].text
    engine = TorchVerdict(find_models([run]), threads)
    base = load_base(ModelConfig(base="toy:phi4-multimodal"))

    def together() -> None:
        engine.judge(f"{run.name}/1764", recordings, question)

    def singly() -> None:
        for recording in recordings:
            engine.judge(f"{run.name}/1764", [recording], question)

    def written() -> None:
        torch.set_num_threads(max(1, threads))
        for recording in recordings:
            written_verdict(base, recording, question)

    found = []
    for repeat in range(-1, repeats):
        rounds = alternately(repeat, *(partial(spent, side) for side in (together, singly, written)))
        if repeat >= 0:
            names = ("together", "singly", "written")
            pairs = list(zip(names, rounds, strict=True))
            rates = {name: len(recordings) / one.wall for name, one in pairs}
            found.append(rates | {f"{name} cpu": one.cpu for name, one in pairs})
    return found


@torch.no_grad()
def written_verdict(base: Any, recording: Recording, question: str) -> float | None:
    """The users' way: log-mel, the prompt, a greedy answer of 7 tokens, a regular expression."""
    tokenizer = base.tokenizer
    sound = base.extractor([recording.wave], sampling_rate=16_000, return_tensors="pt")
    audio = base.family.audio_token_id(base.model)
    content = f"Judge the answer.\n{question}\n{tokenizer.convert_ids_to_tokens(audio)}"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    at, length = ids.index(audio), int(sound["audio_embed_sizes"][0])
    ids = torch.tensor([[*ids[:at], *[audio] * length, *ids[at + 1 :]]])
    out = base.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        audio_input_features=sound["audio_input_features"],
        audio_embed_sizes=sound["audio_embed_sizes"],
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,  # an untuned toy would end early or late by chance
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    found = WRITTEN.search(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return None if found is None else float(found[2])


def load(run: Path, folder: Path, requests: int, at_once: int) -> Measured:
    """A server in a process of its own, asked by `at_once` clients: how many were answered, and how soon."""
    command = [sys.executable, "-m", "luthier.cli", "serve", str(run), "--port", "0", "--json", "--no-app"]
    server = subprocess.Popen(
        [*command, "--store", str(folder / "store.sqlite")],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        body = {"model": f"{run.name}/main", "max_tokens": 16, "messages": [{"role": "user", "content": "the score?"}]}
        with httpx.Client(base_url=url, timeout=60) as client:

            def ask(_: int) -> tuple[int, float]:
                begin = time.perf_counter()
                status = client.post("/v1/chat/completions", json=body).status_code
                return status, time.perf_counter() - begin

            ask(0)  # loads the base
            begin = time.perf_counter()
            with ThreadPoolExecutor(at_once) as pool:
                answers = list(pool.map(ask, range(requests)))
            seconds = time.perf_counter() - begin
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
    times = [1e3 * one for _, one in answers]
    return {
        "answered": sum(status == 200 for status, _ in answers),
        "requests": requests,
        "at once": at_once,
        "a second": requests / seconds,
        "median ms": statistics.median(times),
        "p95 ms": float(np.percentile(times, 95)),
    }
