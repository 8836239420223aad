"""One base in memory, and the adapters that take turns on it.

An adapter with the settings of the one before is written over it; another one is put on after that one was taken off
again, and the base is then what it was, bit for bit. Any PEFT folder of LoRA's kind can take a seat, of ours or from
elsewhere. Whether it belongs to this base was asked before: this module knows nothing of that, nor of what is asked.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from luthier.errors import CheckpointError
from luthier.models import adapters
from luthier.models.chat import first_line
from luthier.models.text_base import TextBase
from luthier.models.tokens import add_text_tokens

_ASIDE = ("inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type")
"""Settings of adapter_config.json that say nothing of the adapter's shape or scale."""


Weights = Mapping[str, torch.Tensor]
"""An adapter's weights by PEFT's saved names, in main memory."""


def read_weights(folder: Path) -> Weights:
    """The weights of a PEFT folder. Raises SafetensorError for a torn file, ValueError for a folder without one."""
    from peft.utils.save_and_load import load_peft_weights

    found: Weights = load_peft_weights(str(folder), device="cpu")
    return found


class Seat:
    """A base, alone or with one adapter on it: `model` is what is to be asked, in evaluation mode.

    `load` gives the base. It is called once, and again only where rows that were added to the vocabulary for one
    adapter must go for the next.
    """

    def __init__(self, load: Callable[[], TextBase]) -> None:
        self._load = load
        self.base = load()
        self.model: Any = self.base.model
        self._settings: dict[str, Any] = {}
        self._own: dict[str, torch.nn.Parameter] = {}
        """Parameters of the adapter on the seat, by name; a tied one under each of its names."""
        self._resting = False

    def clear(self, tokens: Mapping[str, int] | None = None) -> None:
        """The base alone, with its own vocabulary; or with the rows that `tokens` will have, not yet trained."""
        self._take_off()
        self._give_tokens(tokens or {})

    def rest(self) -> None:
        """The base alone while the adapter stays on the seat, switched off: quicker than `clear` where it comes back.

        Where an adapter has added rows to the vocabulary they go, as in `clear`.
        """
        if self.base.added_tokens:
            self.clear()
        elif self.model is not self.base.model and not self._resting:
            self.model.base_model.disable_adapter_layers()
            self._resting = True

    def put(self, folder: Path, tokens: Mapping[str, int], weights: Weights | None = None) -> None:
        """Put a saved adapter on; `tokens` are the ids of the tokens that it added to the base's. `weights` are what
        `read_weights` gave of it before; without them its file is read.

        Raises CheckpointError for one that does not fit the model or cannot be read; the base is alone then.
        """
        from peft import PeftConfig

        try:
            settings = _shape(adapters.read(folder / adapters.CONFIG))
            if settings != self._settings or dict(tokens) != self.base.added_tokens:
                self._take_off()
                self._give_tokens(tokens)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of names that differ, and of ties that our folders save whole
                    self._put_on(PeftConfig.from_pretrained(str(folder)))
                self._settings = settings
            elif self._resting:
                self.model.base_model.enable_adapter_layers()
            self._resting = False
            self._fill(folder, read_weights(folder) if weights is None else weights)
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            self._take_off()
            raise CheckpointError(
                f"{folder}: PEFT cannot put it on {self.base.name}: {first_line(error)}",
                "take the folder from its origin again, and the base that it was trained on",
            ) from error
        except CheckpointError:
            self._take_off()
            raise

    def _put_on(self, settings: Any) -> None:
        from peft import get_peft_model

        known = {id(parameter) for parameter in self.base.model.parameters()}
        self.base.model.name_or_path = self.base.name
        settings.inference_mode = True
        with torch.random.fork_rng(devices=[]):
            self.model = get_peft_model(self.base.model, settings).eval()
        named = self.model.named_parameters(remove_duplicate=False)
        self._own = {name: parameter for name, parameter in named if id(parameter) not in known}
        for parameter in self._own.values():
            parameter.data = parameter.data.float()  # as it was trained, whatever the base is held in
            parameter.requires_grad_(False)

    def _fill(self, folder: Path, weights: Weights) -> None:
        """Write the folder's weights into the adapter on the seat."""
        from peft import set_peft_model_state_dict

        found = set_peft_model_state_dict(self.model, dict(weights))  # it takes keys out of what it is given
        missing = set(found.missing_keys)
        filled = {id(parameter) for name, parameter in self._own.items() if name not in missing}
        unfilled = sorted(name for name, parameter in self._own.items() if id(parameter) not in filled)
        wrong = [*unfilled, *sorted(found.unexpected_keys)]
        if wrong:
            raise CheckpointError(
                f"{folder / adapters.WEIGHTS}: {len(unfilled)} weights are missing and {len(found.unexpected_keys)} "
                f"have no place in {self.base.name}, such as {wrong[0]}",
                "take the base that it was trained on",
            )

    def _take_off(self) -> None:
        """Give the base back as it was. PEFT by itself would leave modules that were trained whole in it."""
        if self.model is self.base.model:
            return
        from peft.utils.other import ModulesToSaveWrapper

        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])  # what is not active is left out, and the base's own module returns
        self.model.unload()
        self.model, self._settings, self._own, self._resting = self.base.model, {}, {}, False

    def _give_tokens(self, tokens: Mapping[str, int]) -> None:
        if dict(tokens) == self.base.added_tokens:
            return
        if self.base.added_tokens:
            del self.model, self.base  # or two bases would be in memory
            gc.collect()
            self.base = self._load()
            self.model = self.base.model
        if tokens and add_text_tokens(self.base, sorted(tokens, key=lambda name: tokens[name]), seed=0) != dict(tokens):
            raise CheckpointError(
                f"the tokenizer of {self.base.name} gives the tokens that were added other ids than in training",
                "take the tokenizer that it was trained with",
            )


def _shape(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for weights to be written over others. Lists were sets: their order is chance."""
    return {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in settings.items()
        if key not in _ASIDE
    }
