"""Chats with a GGUF file through llama.cpp, with adapter GGUFs as further models.

Chats are written by their template in the sandbox of transformers, on our side, and sent as ids: neither llama.cpp nor
llama-cpp-python ever sees a template. Knows no torch and no HTTP server of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Any

from luthier.engines.base import ChatRequest, Piece, Sampling, ServedModel
from luthier.engines.gguf_header import GgufHeader, read_header
from luthier.engines.llamaserver import LlamaServer, Loading
from luthier.engines.threads import answering_threads
from luthier.errors import RequestError

LONGEST_CONTEXT = 8192
"""Tokens of context by default at most: keys and values of 128,000 tokens would take gigabytes."""

_SMALL_BYTES = 2**22
"""Of a file whose model is not worth a second thread."""


class LlamaCpp:
    """A ChatEngine over one GGUF. `tokenizer` is a folder whose template and tokenizer are taken; without it the
    GGUF's own are. Raises DataError for a file that is no GGUF, RequestError where it cannot be run.
    """

    def __init__(
        self,
        gguf: Path,
        threads: int = 0,
        *,
        adapters: Sequence[Path] = (),
        tokenizer: Path | None = None,
        context: int = 0,
    ) -> None:
        from luthier.models.chat import ChatTemplate, load_tokenizer

        header = read_header(gguf)
        longest = header.context_length or LONGEST_CONTEXT
        self._context = min(context or min(LONGEST_CONTEXT, header.even_length or LONGEST_CONTEXT), longest)
        self._server = LlamaServer(Loading(gguf, tuple(adapters), _threads(gguf, threads), self._context))
        self._turn = Lock()
        base = f"gguf:{gguf.stem}"
        self._models = [ServedModel(base, "chat", gguf.name)]
        self._models += [
            ServedModel(f"{base}+{adapter.stem}", "chat", gguf.name, adapter=adapter) for adapter in adapters
        ]
        try:
            words = load_tokenizer(str(tokenizer)) if tokenizer else _GgufTokenizer(self, header, gguf.name)
            self._template = ChatTemplate.of(words)
            self._template.require_chats()
        except BaseException:
            self.close()
            raise

    def models(self) -> list[ServedModel]:
        """The GGUF itself, then it with each adapter."""
        return list(self._models)

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        """The answer as it is written. A process that has crashed is started again."""
        from luthier.evaluate.generate import prompt_ids

        numbers = [number for number, model in enumerate(self._models) if model.id == request.model]
        if not numbers:
            names = ", ".join(model.id for model in self._models)
            raise RequestError(f"{request.model}: there is no such model", f"ask one of {names}")
        if request.media or any(part.type != "text" for turn in request.messages for part in turn.content):
            raise RequestError(f"{request.model}: reads text alone", "leave pictures and sound out")
        ids = prompt_ids(self._template, request.messages)
        if len(ids) >= self._context:
            raise RequestError(
                f"the question has {len(ids):,} tokens, and {request.model} reads {self._context - 1:,}",
                "ask for less, or begin a new conversation",
            )
        room = self._context - len(ids)
        settings = _settings(request.sampling, room) | {
            "lora": [
                {"id": number, "scale": float(number == numbers[0] - 1)} for number in range(len(self._models) - 1)
            ]
        }
        return self._pieces(ids, settings, cancel)

    def _pieces(self, ids: list[int], settings: dict[str, Any], cancel: Event | None) -> Iterator[Piece]:
        written = 0
        with self._turn:
            for event in self.server().complete(ids, settings, cancel):
                written += len(event.get("tokens", ()))
                if event.get("stop"):
                    finish = "length" if event.get("stop_type") == "limit" else "stop"
                    count = int(event.get("tokens_predicted", written))
                    yield Piece(event.get("content", ""), finish, len(ids), count)  # type: ignore[arg-type]
                    return
                if event.get("content"):
                    yield Piece(event["content"])
            yield Piece("", "cancelled", len(ids), written)

    def server(self) -> LlamaServer:
        """The process, a new one where the last one has crashed."""
        if not self._server.alive:
            loading = self._server.loading
            self._server.close()
            self._server = LlamaServer(loading)
        return self._server

    def close(self) -> None:
        """End the process."""
        self._server.close()


def _threads(gguf: Path, asked: int = 0) -> int:
    return answering_threads(gguf.stat().st_size < _SMALL_BYTES, asked)


def gguf_answers(
    gguf: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, adapter: Path | None = None
) -> list[list[int]]:
    """Greedy answers to prompts of ids, as ids; the token that ends an answer is its last one, as it is in
    `evaluate.generate.Answer`. Attention is computed in float32, so that only the file's own format makes a difference.

    Raises RequestError where there is no llama.cpp, or it refuses the file.
    """
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    adapters = (adapter,) if adapter else ()
    server = LlamaServer(Loading(gguf, adapters, _threads(gguf), longest, exact=True))
    settings = _settings(Sampling(max_new_tokens=max_new_tokens, temperature=0.0), max_new_tokens) | {
        "cache_prompt": False,
        "lora": [{"id": 0, "scale": 1.0}] if adapter else [],
    }
    try:
        return [server.answer(prompt, settings) for prompt in prompts]
    finally:
        server.close()


def gguf_ids(gguf: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts as llama.cpp reads them, special tokens and what is added to every text included.

    Raises RequestError where there is no llama.cpp, or it refuses the file.
    """
    server = LlamaServer(Loading(gguf, vocab_only=True))
    try:
        return [server.tokenize(text, add_special=True) for text in texts]
    finally:
        server.close()


def _settings(sampling: Sampling, room: int) -> dict[str, Any]:
    """Sampling in llama-server's words. What it would do besides (penalties, min_p) is switched off."""
    return {
        "n_predict": min(sampling.max_new_tokens, room),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "samplers": ["temperature", "top_k", "top_p"],
        "seed": -1 if sampling.seed is None else sampling.seed,
        "stop": list(sampling.stop),
    }


class _GgufTokenizer:
    """A GGUF's own vocabulary and template with the few words that `ChatTemplate` asks of a tokenizer."""

    is_fast = True

    def __init__(self, engine: LlamaCpp, header: GgufHeader, name: str) -> None:
        self._engine = engine
        self.name_or_path = name
        self.chat_template = header.template
        tokens = header.tokens
        kinds = header.values.get("tokenizer.ggml.token_type", ())
        self.added_tokens_decoder = {
            number: token for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind in (3, 4)
        }
        self.bos_token_id, self.eos_token_id = header.special("bos"), header.special("eos")
        self.bos_token = None if self.bos_token_id is None else tokens[self.bos_token_id]
        eos = None if self.eos_token_id is None else tokens[self.eos_token_id]
        names = {"bos_token": self.bos_token, "eos_token": eos}
        self.special_tokens_map = {name: token for name, token in names.items() if token is not None}

    def get_chat_template(self, name: str | None = None, tools: Any = None) -> str:
        return self.chat_template

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._engine.server().tokenize(text, add_special_tokens)}
