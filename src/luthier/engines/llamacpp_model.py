"""llama.cpp's C interface through llama-cpp-python: a model, its context and adapters, and one answer at a time.

Used in a process of its own (`llamacpp_child`), and by tests that look at logits. Of llama-cpp-python the bindings
alone are used: its own class would compile the template that comes with a file. Knows ids and bytes, no chats.
"""

from __future__ import annotations

import codecs
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 512
_ERROR = 4
"""ggml's level of a log line."""
_RANDOM = 0xFFFFFFFF
"""llama.cpp's seed for another draw each time."""


class Model:
    """Weights, one context and its adapters. Answers one request at a time; keys and values of the beginning that a
    request shares with the one before are kept, for the same adapters alone.

    `exact` computes attention in float32 instead of float16. Raises RuntimeError for a file that llama.cpp refuses.
    """

    def __init__(
        self,
        path: Path,
        context: int = 0,
        threads: int = 1,
        adapters: Sequence[Path] = (),
        *,
        vocab_only: bool = False,
        exact: bool = False,
    ) -> None:
        from llama_cpp import llama_cpp as api

        self._api = api
        self._log = quiet(api)
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.vocab_only = vocab_only
        self._model = api.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self._vocab = api.llama_model_get_vocab(self._model)
        self._read: list[int] = []
        self.adapters = len(adapters)
        self._applied = (0.0,) * len(adapters)
        self._loaded = [api.llama_adapter_lora_init(self._model, str(file).encode()) for file in adapters]
        if not all(self._loaded):
            broken = adapters[self._loaded.index(None)]
            raise RuntimeError(f"{broken}: llama.cpp cannot put this adapter on {path}")
        if vocab_only:
            return
        chosen = api.llama_context_default_params()
        chosen.n_ctx = context
        chosen.n_batch = chosen.n_ubatch = _BATCH
        chosen.n_threads = chosen.n_threads_batch = threads
        if exact:
            chosen.type_k = chosen.type_v = api.GGML_TYPE_F32
            chosen.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = api.llama_init_from_model(self._model, chosen)
        if not self._context:
            raise RuntimeError(f"{path}: no room for a context of {context:,} tokens")
        self.length = int(api.llama_n_ctx_seq(self._context))
        self._memory = api.llama_get_memory(self._context)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of a text."""
        data = text.encode()
        ids = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        if count < 0:
            raise RuntimeError("llama.cpp cannot tokenize this text")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """What a token adds to an answer; special tokens add nothing."""
        room = ctypes.create_string_buffer(256)
        count = self._api.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        if count < 0:
            room = ctypes.create_string_buffer(-count)
            count = self._api.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        return room.raw[:count]

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def adapt(self, scales: Sequence[float]) -> None:
        """Put adapters on, by their scales; 0 leaves one out."""
        if tuple(scales) == self._applied:
            return
        on = [(adapter, scale) for adapter, scale in zip(self._loaded, scales, strict=True) if scale]
        handles = (self._api.llama_adapter_lora_p_ctypes * len(on))(*(adapter for adapter, _ in on))
        strengths = (ctypes.c_float * len(on))(*(scale for _, scale in on))
        self._api.llama_set_adapters_lora(self._context, handles, len(on), strengths)
        self._applied = tuple(scales)
        self._forget(0)

    def read(self, ids: Sequence[int]) -> None:
        """Read a prompt; of what was read before, the common beginning is not read again."""
        shared = 0
        # The last token is always read: its scores are asked for next.
        while shared < min(len(self._read), len(ids) - 1) and self._read[shared] == ids[shared]:
            shared += 1
        self._forget(shared)
        for start in range(shared, len(ids), _BATCH):
            self.go_on(ids[start : start + _BATCH])

    def go_on(self, ids: Sequence[int]) -> None:
        """Read some more tokens, at most a batch."""
        tokens = (self._api.llama_token * len(ids))(*ids)  # the batch holds its address and no reference
        failed = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids)))
        if failed:
            self._forget(0)
            raise RuntimeError(f"llama.cpp stopped with code {failed}")
        self._read.extend(ids)

    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Scores of the token after the last one read: one number a token of the vocabulary."""
        count = int(self._api.llama_vocab_n_tokens(self._vocab))
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), shape=(count,)).copy()

    def _forget(self, start: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, -1, start, -1)
        del self._read[start:]

    def tokens(self, ask: dict[str, Any]) -> Iterator[int]:
        """The tokens of an answer, the one that ends it included."""
        api = self._api
        seed = int(ask.get("seed", -1))
        sampler = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        if float(ask.get("temperature", 0.0)) <= 0:
            api.llama_sampler_chain_add(sampler, api.llama_sampler_init_greedy())
        else:
            # The order of transformers: temperature, then the cuts, so that the same settings mean the same.
            api.llama_sampler_chain_add(sampler, api.llama_sampler_init_temp(float(ask["temperature"])))
            if int(ask.get("top_k", 0)) > 0:
                api.llama_sampler_chain_add(sampler, api.llama_sampler_init_top_k(int(ask["top_k"])))
            api.llama_sampler_chain_add(sampler, api.llama_sampler_init_top_p(float(ask.get("top_p", 1.0)), 1))
            api.llama_sampler_chain_add(
                sampler, api.llama_sampler_init_dist(_RANDOM if seed < 0 else seed & 0x7FFFFFFF)
            )
        try:
            for _ in range(int(ask["n_predict"])):
                token = int(api.llama_sampler_sample(sampler, self._context, -1))
                yield token
                if self.ends(token):
                    return
                self.go_on([token])
        finally:
            api.llama_sampler_free(sampler)


def quiet(api: Any) -> Any:
    """Let llama.cpp write its errors alone. The callback lives as long as what is returned."""

    def tell(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    callback = api.llama_log_callback(tell)
    api.llama_log_set(callback, None)
    return callback


def answer(model: Model, ask: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events of one completion: `content` and `tokens` of each, and at the end why and after how many it stopped.

    A text that may be the beginning of a stop text is held back until it is known not to be one.
    """
    prompt = [int(token) for token in ask["prompt"]]
    room = model.length - len(prompt)
    if not prompt or room < 1:
        raise ValueError(f"a prompt of {len(prompt):,} tokens, and the context has {model.length:,}")
    strengths = {int(one["id"]): float(one["scale"]) for one in ask.get("lora", ())}
    model.adapt([strengths.get(number, 0.0) for number in range(model.adapters)])
    model.read(prompt)
    stops = [str(text) for text in ask.get("stop", ()) if text]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held, written, why = "", 0, "limit"
    ask = {**ask, "n_predict": min(int(ask["n_predict"]), room)}
    for token in model.tokens(ask):
        written += 1
        if model.ends(token):
            why = "eos"
            yield {"content": "", "tokens": [token], "stop": False}
            break
        held += decoder.decode(model.piece(token))
        found = min((held.find(text) for text in stops if text in held), default=-1)
        if found >= 0:
            held, why = held[:found], "word"
            yield {"content": "", "tokens": [token], "stop": False}
            break
        keep = max((_overlap(held, text) for text in stops), default=0)
        content, held = held[: len(held) - keep], held[len(held) - keep :]
        yield {"content": content, "tokens": [token], "stop": False}
    rest = held + (decoder.decode(b"", True) if why != "word" else "")
    yield {"content": rest, "tokens": [], "stop": True, "stop_type": why} | {
        "tokens_predicted": written,
        "tokens_evaluated": len(prompt),
    }


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
