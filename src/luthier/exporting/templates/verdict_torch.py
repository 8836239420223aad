"""The judges of this Space: one base that hears, adapters that take turns on it, and how a verdict is read.

A verdict is one forward pass: instruction, question and sound go in, and the state at the last position is scored.
Nothing is generated. The sound is put in by hand: the model's own way is deaf to it when it is given embeddings.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from files import SETTINGS, base, place, threads
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForCausalLM, AutoTokenizer

RATE, QUANTUM = 16_000, 10_240
"""Recordings are padded with silence to a multiple of 0.64 s, as they were in training."""


class Refused(Exception):
    """A sentence for the visitor."""


class Engine:
    """Judges one recording at a time; the queue of the page sees to that."""

    def __init__(self) -> None:
        torch.set_num_threads(threads())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted = SETTINGS["dtype"]
        self.dtype = torch.float32 if self.device == "cpu" and wanted == "float16" else getattr(torch, wanted)
        self.extractor = AutoFeatureExtractor.from_pretrained(**base())
        model = AutoModelForCausalLM.from_pretrained(**base(), dtype=self.dtype, use_safetensors=True)
        if SETTINGS["builtin_adapter"]:
            model = self._with_speech(model)
        self.judges = {judge["name"]: judge for judge in SETTINGS["models"]}
        folders = [place(judge["source"], judge["revision"]) for judge in SETTINGS["models"]]
        self.model = PeftModel.from_pretrained(model, folders[0], adapter_name="m0")
        for number, folder in enumerate(folders[1:], 1):
            self.model.load_adapter(folder, adapter_name=f"m{number}")
        self.model.eval().to(self.device)
        self.tokenizers = [AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in folders]
        self.heads = [
            {name: value.to(self.device) for name, value in load_file(f"{folder}/verdict_head.safetensors").items()}
            if judge["readout"] != "tokens"
            else {}
            for judge, folder in zip(SETTINGS["models"], folders, strict=True)
        ]

    def _with_speech(self, model):
        """Merge the base's own speech adapter. Some copies of it lack the beginning of every key."""
        folder = f"{place(SETTINGS['base'], SETTINGS['revision'], [SETTINGS['builtin_adapter'] + '/*'])}"
        folder = f"{folder}/{SETTINGS['builtin_adapter']}"
        state = load_file(f"{folder}/adapter_model.safetensors")
        prefix = "base_model.model."
        state = {key if key.startswith(prefix) else prefix + key: value for key, value in state.items()}
        wrapped = get_peft_model(model, LoraConfig.from_pretrained(folder), adapter_name="speech")
        found = set_peft_model_state_dict(wrapped, state, adapter_name="speech")
        if found.unexpected_keys:
            raise RuntimeError(f"{folder} does not fit the base: {found.unexpected_keys[0]}")
        return wrapped.merge_and_unload()

    @property
    def models(self) -> list[str]:
        return list(self.judges)

    @torch.inference_mode()
    def judge(self, name: str, wave: np.ndarray, question: str) -> dict:
        """p_pass, and what the read-out tells beside it."""
        name = name if name in self.judges else self.models[0]
        number, judge = self.models.index(name), self.judges[name]
        self.model.set_adapter(f"m{number}")
        bare = self.model.get_base_model()
        mel = self._mel(wave)
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            sound = self._encode(bare, mel[None])
            ids, at = self._prompt(bare, self.tokenizers[number], judge, question, sound.shape[1])
            embeds = bare.get_input_embeddings()(ids)
            embeds[:, at : at + sound.shape[1]] = sound.to(embeds.dtype)
            places = torch.arange(ids.shape[1], device=self.device)[None]
            hidden = bare.model(inputs_embeds=embeds, position_ids=places, use_cache=False).last_hidden_state
        return self._read_out(bare, judge, self.heads[number], hidden[0, -1].float())

    def _mel(self, wave: np.ndarray) -> torch.Tensor:
        padded = np.zeros(-(-len(wave) // QUANTUM) * QUANTUM, dtype=np.float32)
        padded[: len(wave)] = wave
        found = self.extractor([padded], sampling_rate=RATE, return_tensors="pt")["audio_input_features"]
        return found[0].float()

    def _encode(self, bare, mel: torch.Tensor) -> torch.Tensor:
        """(1, frames, bins) -> (1, sound tokens, width): encoder and projector for speech."""
        audio = bare.model.embed_tokens_extend.audio_embed
        weight = audio.down_proj_for_speech.weight
        hidden = audio.encoder(mel.to(device=weight.device, dtype=weight.dtype), None)
        return audio.down_proj_for_speech(F.gelu(audio.up_proj_for_speech(hidden)))

    def _prompt(self, bare, tokenizer, judge: dict, question: str, sounds: int) -> tuple[torch.Tensor, int]:
        audio = bare.config.audio_config.audio_token_id
        if any(str(token) in question for token in tokenizer.added_tokens_decoder.values()):
            raise Refused("The question has a word that the model keeps for itself.")
        soft = "".join(judge["soft_prompt"])
        content = f"{judge['instruction']}\n{question}\n{soft}{tokenizer.convert_ids_to_tokens(audio)}"
        turns = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text + judge["readout_token"], add_special_tokens=False)
        at = ids.index(audio)
        ids = [*ids[:at], *[audio] * sounds, *ids[at + 1 :]]
        if len(ids) > judge["max_tokens"]:
            raise Refused("Question and recording are too long together.")
        return torch.tensor([ids], device=self.device), at

    def _read_out(self, bare, judge: dict, head: dict, state: torch.Tensor) -> dict:
        """In float32: in bfloat16 probabilities fall on steps."""
        if judge["readout"] == "tokens":
            rows = bare.get_output_embeddings().weight[[judge["answers"]["pass"], judge["answers"]["fail"]]].float()
            score = (rows @ state).double()
            found = {"p_pass": float(torch.sigmoid(score[0] - score[1]))}
        else:
            score = (head["score.weight"][0].float() @ state + head["score.bias"][0].float()).double()
            if judge["readout"] == "head":
                found = {"p_pass": float(torch.sigmoid(score))}
            else:
                found = self._ordinal(judge, head, score)
        p = min(max(found["p_pass"], 1e-7), 1 - 1e-7)
        calibrated = 1 / (1 + math.exp(-math.log(p / (1 - p)) / judge["temperature"]))
        return {**found, "p_pass_calibrated": calibrated, "passed": found["p_pass"] > 0.5, "event": judge["event"]}

    def _ordinal(self, judge: dict, head: dict, score: torch.Tensor) -> dict:
        """A proportional-odds model (McCullagh 1980): P(grade above k) = sigmoid(score - threshold k)."""
        low, _, step, mark = judge["scale"]
        first = head["first"].double()
        cuts = torch.cat([first, first + torch.cumsum(F.softplus(head["gaps"].float()).double() + 1e-4, 0)])
        above = torch.cat([torch.ones_like(first), torch.sigmoid(score - cuts), torch.zeros_like(first)])
        p_grade = above[:-1] - above[1:]
        grades = torch.tensor([low + step * k for k in range(len(p_grade))], dtype=torch.float64, device=score.device)
        panel = float(p_grade[grades >= mark - 1e-9].sum())
        below = float(p_grade[grades >= mark - step - 1e-9].sum())
        rater = (panel + below) / 2
        mean = float((p_grade * grades).sum())
        p_pass = panel if judge["event"] == "panel" else rater
        return {"p_pass": p_pass, "p_panel": panel, "p_rater": rater, "grade_mean": mean}
