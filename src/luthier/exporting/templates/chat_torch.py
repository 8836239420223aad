"""The models of this Space: one base in memory, and adapters that take turns on it."""

import queue
import threading
from collections.abc import Iterator

import torch
from files import SETTINGS, base, place, threads
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

BASE = "base, not tuned"
SEES = SETTINGS["sees"]


class Refused(Exception):
    """A sentence for the visitor."""


class Pieces(StoppingCriteria):
    """Takes every new token as `generate` makes it, hands on the text so far, and ends it when it is told to."""

    def __init__(self, tokenizer, begins: int, stops: list[int]) -> None:
        self.tokenizer, self.begins, self.stops = tokenizer, begins, stops
        self.texts: queue.Queue = queue.Queue()
        self.ended = threading.Event()

    def __call__(self, input_ids, scores, **more):
        ids = [token for token in input_ids[0, self.begins :].tolist() if token not in self.stops]
        self.texts.put(self.tokenizer.decode(ids, skip_special_tokens=True))
        return torch.full((len(input_ids),), self.ended.is_set(), dtype=torch.bool, device=input_ids.device)


class Engine:
    """Answers with one model at a time; the queue of the page sees to that."""

    def __init__(self) -> None:
        torch.set_num_threads(threads())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted = SETTINGS["dtype"]
        # A processor computes float16 more slowly than float32, and overflows.
        dtype = torch.float32 if device == "cpu" and wanted == "float16" else getattr(torch, wanted)
        folders = [place(model["source"], model["revision"]) for model in SETTINGS["models"]]
        self.tokenizers = [AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in folders]
        maker = AutoModelForImageTextToText if SEES else AutoModelForCausalLM
        model = maker.from_pretrained(**base(), dtype=dtype, use_safetensors=True)
        self.processor = AutoProcessor.from_pretrained(**base()) if SEES else None
        if SETTINGS["rows"] > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(SETTINGS["rows"], mean_resizing=False)
        ends = model.generation_config.eos_token_id
        self.stops = sorted({*SETTINGS["stop_ids"], *(ends if isinstance(ends, list) else [ends])} - {None})
        # A base's own settings for generation, such as a repetition penalty, were no part of the training.
        model.generation_config = GenerationConfig()
        self.most = int(model.config.get_text_config().max_position_embeddings)
        self.model = PeftModel.from_pretrained(model, folders[0], adapter_name="m0")
        for number, folder in enumerate(folders[1:], 1):
            self.model.load_adapter(folder, adapter_name=f"m{number}")
        self.model.eval().to(device)
        self.names = [model["name"] for model in SETTINGS["models"]]

    @property
    def models(self) -> list[str]:
        return [*self.names, BASE]

    def answer(self, name: str, turns: list[dict], temperature: float) -> Iterator[str]:
        """The answer so far, again and again. `turns`: role and content, the last one the user's."""
        number = self.names.index(name) if name in self.names else 0
        tokenizer = self.tokenizers[number]
        asked = self._asked(tokenizer, turns).to(self.model.device)
        ids = asked["input_ids"]
        room = self.most - SETTINGS["max_new_tokens"]
        if ids.shape[1] > room:
            raise Refused(f"The conversation has {ids.shape[1]:,} tokens, and {room:,} is the most. Begin a new one.")
        pieces = Pieces(tokenizer, ids.shape[1], self.stops)
        drawn = {"do_sample": True, "temperature": temperature, "top_p": 0.9, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=SETTINGS["max_new_tokens"],
            eos_token_id=self.stops or None,
            pad_token_id=tokenizer.pad_token_id or 0,
            **(drawn if temperature > 0 else {"do_sample": False}),
        )
        worker = threading.Thread(target=self._generate, args=(name, number, asked, settings, pieces), daemon=True)
        worker.start()
        try:
            while (piece := pieces.texts.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            pieces.ended.set()  # also where the visitor pressed stop, or left
            worker.join()

    def _asked(self, tokenizer, turns: list[dict]):
        """What the model is given: ids and their mask, with pictures what its eyes take."""
        if not SEES:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")
        self.processor.tokenizer, self.processor.chat_template = tokenizer, tokenizer.chat_template
        return self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(dtype=self.model.dtype)

    def _generate(self, name: str, number: int, asked, settings: GenerationConfig, pieces: Pieces) -> None:
        try:
            model = self.model
            model.set_adapter(f"m{number}")
            options = {"generation_config": settings, "stopping_criteria": StoppingCriteriaList([pieces])}
            with torch.inference_mode():
                if name == BASE:
                    with model.disable_adapter():
                        model.generate(**asked, **options)
                else:
                    model.generate(**asked, **options)
        except Exception as error:  # it belongs to the thread that waits
            pieces.texts.put(error)
        pieces.texts.put(None)
