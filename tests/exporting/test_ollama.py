"""Ollama folders: Go templates that write what the model's own template writes, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.errors import RequestError
from luthier.exporting.gotemplate import go_template, probes, render
from luthier.exporting.ollama import OllamaSettings, write_ollama
from luthier.models.chat import ChatTemplate, load_tokenizer
from support.templates import FAMILIES, STOPLESS, family, tokenizer_of

LLAMA31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "<|start|>system<|stop|>\n\nCutting Knowledge Date: December 2023\n\n{{ s }}<|eot|>"
    "{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
COUNTING = "{% for m in messages %}{{ loop.index }}: {{ m.content }}<|end|>{% endfor %}"
OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def toy_folder(folder: Path) -> Path:
    load_tokenizer("toy:llama").save_pretrained(str(folder))
    (folder / "model.gguf").write_bytes(b"GGUF")
    return folder


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_familys_chats_are_written_in_go_as_in_jinja(name: str) -> None:
    found = go_template(ChatTemplate.of(family(name)))
    carried = name not in ("gemma", "mistral")
    assert found.system is carried
    assert found.proved == (6 if carried else 3)


def test_the_toys_chats_are_written_in_go() -> None:
    found = go_template(ChatTemplate.of(load_tokenizer("toy:llama")))
    chat = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Why?"}]
    assert render(found.text, chat) == "<|system|>Short.<|end|><|user|>Why?<|end|><|assistant|>"
    assert render(found.text, chat[1:]) == "<|user|>Why?<|end|><|assistant|>"


def test_a_system_turn_that_is_always_there_is_kept() -> None:
    found = go_template(ChatTemplate.of(tokenizer_of(LLAMA31, "<|bos|>")))
    text = render(found.text, [{"role": "user", "content": "Hi"}])
    assert text.startswith("<|start|>system<|stop|>\n\nCutting Knowledge")


@pytest.mark.parametrize(
    ("template", "words"), [(COUNTING, "where the model knows"), (OPENING, "begins an answer otherwise")]
)
def test_templates_that_are_more_than_turns_are_refused_with_the_mend(template: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        go_template(ChatTemplate.of(tokenizer_of(template)))
    assert "--template FILE" in caught.value.mend


def test_words_in_braces_do_not_become_go() -> None:
    with pytest.raises(RequestError, match="braces"):
        go_template(ChatTemplate.of(tokenizer_of("{{ '{{' }}" + STOPLESS)))


def test_the_small_reading_of_go_follows_its_rules() -> None:
    text = (
        "A {{- if not .System }} none {{ else }} {{ .System }}! {{- end }}\n{{ range .Messages -}}\n "
        '{{ if ne .Role "user" }}({{ .Role }}){{ else if eq .Content "b" }}B{{ else }}{{ .Content }}{{ end }}{{ end }}'
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    assert render(text, turns) == "A none \na(assistant)B"
    assert render(text, [{"role": "system", "content": "s"}]) == "A s!\n(system)"
    for broken in ("{{ .Name }}", "{{ if .Tools }}x{{ end }}", "{{ range .Messages }}", "x{{ end }}", "{{ with . }}"):
        with pytest.raises(RequestError):
            render(broken, turns)


def test_the_folder_holds_the_modelfile_and_the_hubs_files(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path)
    settings = OllamaSettings("Be brief.", "Apache-2.0", parameters={"temperature": 0.2, "num_ctx": 4096})
    record = write_ollama(folder, folder / "model.gguf", folder, settings)
    text = (folder / "Modelfile").read_text()
    assert text.startswith(
        'FROM ./model.gguf\nPARAMETER temperature 0.2\nPARAMETER num_ctx 4096\nPARAMETER stop "<|end|>"'
    )
    assert f'TEMPLATE """{record.template}"""' in text
    assert 'SYSTEM """Be brief."""' in text
    assert (folder / "template").read_text() == record.template
    assert (folder / "system").read_text() == "Be brief."
    params = json.loads((folder / "params").read_text())
    assert params == {"temperature": 0.2, "num_ctx": 4096, "stop": ["<|end|>", "<|endoftext|>"]}
    assert record.stops == ("<|end|>", "<|endoftext|>")
    assert record.proved == len(list(probes(True)))


def test_a_given_template_is_proved_or_told_not_to_be(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path)
    given = tmp_path / "given"
    given.write_text("{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>")
    record = write_ollama(folder, folder / "model.gguf", folder, OllamaSettings(template_file=given))
    assert record.proved == 6
    given.write_text("{{ range $i, $m := .Messages }}{{ $m.Content }}{{ end }}")
    notes = write_ollama(folder, folder / "model.gguf", folder, OllamaSettings(template_file=given)).notes
    assert "not proved" in notes[0]
    with pytest.raises(RequestError, match="no such file"):
        write_ollama(folder, folder / "model.gguf", folder, OllamaSettings(template_file=tmp_path / "none"))


def test_words_that_a_modelfile_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path)
    with pytest.raises(RequestError, match="system: has"):
        write_ollama(folder, folder / "model.gguf", folder, OllamaSettings('say """'))
    family("gemma").save_pretrained(str(folder))
    with pytest.raises(RequestError, match="no place for a system message"):
        write_ollama(folder, folder / "model.gguf", folder, OllamaSettings("Be kind."))
    notes = write_ollama(folder, folder / "model.gguf", folder).notes
    assert "system messages are left out" in notes[0]
