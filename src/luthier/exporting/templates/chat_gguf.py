"""The models of this Space: GGUF files read by llama.cpp on a processor, one of them in memory at a time."""

from collections.abc import Iterator

from files import SETTINGS, place, threads
from llama_cpp import Llama
from transformers import AutoTokenizer


class Refused(Exception):
    """A sentence for the visitor."""


class Engine:
    """Answers with one model at a time; the queue of the page sees to that.

    Templates are rendered in the sandbox of transformers, never by llama.cpp's own bindings.
    """

    def __init__(self) -> None:
        self.files = {model["name"]: model for model in SETTINGS["models"]}
        wanted = ["*.gguf", "tokenizer*", "*.jinja"]
        self.places = {name: place(model["source"], model["revision"], wanted) for name, model in self.files.items()}
        self.tokenizers = {name: AutoTokenizer.from_pretrained(folder) for name, folder in self.places.items()}
        self.loaded: tuple[str, Llama] | None = None

    @property
    def models(self) -> list[str]:
        return list(self.files)

    def answer(self, name: str, turns: list[dict], temperature: float) -> Iterator[str]:
        """The answer so far, again and again. `turns`: role and content, the last one the user's."""
        name = name if name in self.files else self.models[0]
        model, tokenizer = self._load(name), self.tokenizers[name]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = SETTINGS["context"] - SETTINGS["max_new_tokens"]
        if len(ids) > room:
            raise Refused(f"The conversation has {len(ids):,} tokens, and {room:,} is the most. Begin a new one.")
        stops, said = {*SETTINGS["stop_ids"], tokenizer.eos_token_id}, []
        for token in model.generate(ids, temp=temperature, top_p=0.9, top_k=0, min_p=0.0, repeat_penalty=1.0):
            if token in stops or len(said) == SETTINGS["max_new_tokens"]:
                break
            said.append(token)
            yield tokenizer.decode(said, skip_special_tokens=True)
        if not said:
            yield ""

    def _load(self, name: str) -> Llama:
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None  # two of them need not fit at once
            path = f"{self.places[name]}/{self.files[name]['file']}"
            model = Llama(model_path=path, n_ctx=SETTINGS["context"], n_threads=threads(), verbose=False)
            self.loaded = (name, model)
        return self.loaded[1]
