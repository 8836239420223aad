"""Chats answered by transformers and PEFT: a base loaded once, adapters that take turns, an answer token by token.

The loop is our own: a forward pass, a choice, a piece of text. Beside `transformers.generate` it leaves out what an
answer at a time does not need, gives each token out at once, and stops between any two. Greedy answers are those of
`evaluate/generate.py`, token for token. Knows no HTTP and no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from threading import Event, Lock

from luthier.engines.base import ChatRequest, Finish, Piece, ServedModel
from luthier.engines.chat_base import ChatBase
from luthier.engines.conversations import Conversations
from luthier.engines.finding import model_called, run_recipes
from luthier.engines.pieces import StopTexts, TextPieces
from luthier.engines.sampling import Chooser
from luthier.errors import RequestError
from luthier.models.load import read_config
from luthier.models.senses.base import kinds_read
from luthier.models.toys import build_toy
from luthier.recipe_model import ModelConfig
from luthier.rundir import RunDir
from luthier.schema import canonical

_HOW_HELD = ("base", "revision", "dtype", "quantization")
"""Settings that make a base another one in memory."""


class TorchChat:
    """A `ChatEngine` over the chat models among `models`; a base is loaded when it is first asked.

    Asked from two threads at once, the second waits until the first answer is whole or its iterator closed. Where the
    base sees or hears, a question may hold pictures, sound and videos (films).
    """

    def __init__(self, models: Sequence[ServedModel], threads: int = 0) -> None:
        chats = [model for model in models if model.kind == "chat"]
        self._settings = _settings(chats)
        reads = {key: _reads(settings) for key, settings in {_key(s): s for s in self._settings.values()}.items()}
        self._models = {model.id: replace(model, reads=reads[_key(self._settings[model.id])]) for model in chats}
        self._threads = threads
        self._bases: dict[str, ChatBase] = {}
        self._conversations = Conversations()
        self._lock = Lock()

    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        """The answer as it is written. Raises RequestError and CheckpointError before the first piece."""
        model = model_called(request.model, self._models)
        if not request.messages or request.messages[-1].role == "assistant":
            raise RequestError("there is no question in it", "end the conversation with a turn of the user")
        with self._lock:
            base = self._base(model)
            base.put_on(model)
            writer = _Writer(base, model, request, cancel or Event())
            yield from writer.write(self._conversations)

    def close(self) -> None:
        with self._lock:
            for base in self._bases.values():
                base.close()
            self._bases.clear()
            self._conversations.clear()

    def _base(self, model: ServedModel) -> ChatBase:
        settings = self._settings[model.id]
        if _key(settings) not in self._bases:
            self._bases[_key(settings)] = ChatBase(settings, self._threads)
        return self._bases[_key(settings)]


@dataclass
class _Writer:
    """One answer of the model that is on its base."""

    base: ChatBase
    model: ServedModel
    request: ChatRequest
    cancel: Event

    def write(self, conversations: Conversations) -> Iterator[Piece]:
        base, sampling = self.base, self.request.sampling
        choose = Chooser(sampling, base.devices.device)
        prompt = base.read(self.request.messages, self.request.media)
        room = min(sampling.max_new_tokens, base.longest - len(prompt))
        if room < 1:
            raise RequestError(
                f"the conversation has {len(prompt):,} tokens, and {base.seat.base.name} reads {base.longest:,} "
                "together with the answer",
                "begin a new one, or leave its first turns out",
            )
        reading = conversations.begin(self.model.id, prompt, base.model.config)
        pieces, stops = TextPieces(base.template.tokenizer), StopTexts(sampling.stop)
        ids, written = prompt[len(reading.ids) :], 0
        finish: Finish = "cancelled" if self.cancel.is_set() else ""
        while not finish:
            token = choose(base.logits(ids, reading))
            ids, written = [token], written + 1
            ended = token in base.stops
            if not ended:
                text = stops.add(pieces.add(token))
                if text:
                    yield Piece(text)
                ended = stops.found
            at_end: Finish = "length" if written == room else "cancelled" if self.cancel.is_set() else ""
            finish = "stop" if ended else at_end
        tail = "" if stops.found else stops.add(pieces.rest())
        tail += "" if stops.found else stops.rest()
        yield Piece(tail, "stop" if stops.found else finish, len(prompt), written)


def _settings(models: Sequence[ServedModel]) -> dict[str, ModelConfig]:
    """How each model's base is held, by the model's id: as its recipe says. A base alone is held as the first of those
    that were tuned on it."""
    recipes = {run: run_recipes(RunDir(run)) for run in {model.run for model in models if model.run is not None}}
    found = {m.id: recipes[m.run][m.stage].model for m in models if m.run is not None}
    held = {settings.base: settings for settings in reversed(found.values())}
    return {m.id: found.get(m.id) or held.get(m.base) or ModelConfig(base=m.base) for m in models}


def _key(settings: ModelConfig) -> str:
    """Equal where one base in memory serves both."""
    return canonical({name: value for name, value in asdict(settings).items() if name in _HOW_HELD})


def _reads(settings: ModelConfig) -> tuple[str, ...]:
    """What a question to this base may hold, beside videos, which clients cannot send."""
    if settings.base.startswith("toy:"):
        config = build_toy(settings.base)[0].config
    else:
        config = read_config(settings.base, settings.revision or None)
    return ("text", *(kind for kind in kinds_read(config.model_type) if kind != "video"))
