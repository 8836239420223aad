"""Chat engines of several kinds as one: each model is asked where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event

from luthier.engines.base import ChatEngine, ChatRequest, Piece, ServedModel
from luthier.errors import RequestError


class Several:
    """Engines whose models have different ids. Raises RequestError where two have one id."""

    def __init__(self, engines: Sequence[ChatEngine]) -> None:
        self._engines = engines
        self._of_model: dict[str, ChatEngine] = {}
        for engine in engines:
            for model in engine.models():
                if model.id in self._of_model:
                    raise RequestError(f"serve: two models are called {model.id}", "serve one of them alone")
                self._of_model[model.id] = engine

    def models(self) -> list[ServedModel]:
        """Those of the first engine first."""
        return [model for engine in self._engines for model in engine.models()]

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        """As the model's own engine answers. Raises RequestError for a model that none has."""
        if request.model not in self._of_model:
            raise RequestError(f"no model {request.model}", f"ask for one of {', '.join(self._of_model)}")
        return self._of_model[request.model].stream(request, cancel)

    def close(self) -> None:
        """All of them."""
        for engine in self._engines:
            engine.close()
