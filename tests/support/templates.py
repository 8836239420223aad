"""Chat templates in the manner of well-known families, written for these tests, on one small tokenizer.

Each is as short as the habit that it stands for allows.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from luthier.models.toy_tokenizer import train_tokenizer
from luthier.schema import Message, Part, Provenance, Row, Target

# Header lines, words stripped, BOS written by the template while the tokenizer adds its own.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
# ChatML: a default system turn, a line break after every stop, tools in the system turn.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The answerer is called model; system turns are refused; turns must alternate.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<turn_end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# Tags that swallow the blanks after them; a last token for the whole chat where nothing is asked.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Plain-text tags, a blank before the answer, and the system's words in the last question.
MISTRAL = (
    "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{% if s and loop.index0 >= messages | length - 2 %}"
    " {{ s }}\n{% endif %} {{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)
# As LLAMA3, with marks that leave the stop token out.
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
# As QWEN, with the stop token and the line break inside the marks.
MARKED_WIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Typed parts alone; a part is a picture as soon as it has the key, whatever is in it.
QWEN_VL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if 'image' in p or p.type == 'image' %}<|vision|><|pad|><|/vision|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words alone: nothing tells the model where to stop.
STOPLESS = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
# Thoughts are taken out of earlier answers, and an empty thought is put before the last.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FAMILIES = {
    "llama3": (LLAMA3, "<|bos|>", "<|eot|>"),
    "qwen": (QWEN, None, "<|im_end|>"),
    "gemma": (GEMMA, "<|bos|>", "<turn_end>"),
    "phi3": (PHI3, None, "<|end|>"),
    "mistral": (MISTRAL, "<|bos|>", "</s>"),
    "marked": (MARKED, "<|bos|>", "<|eot|>"),
    "marked_wide": (MARKED_WIDE, None, "<|im_end|>"),
    "qwen_vl": (QWEN_VL, None, "<|im_end|>"),
    "thinking": (THINKING, None, "<|im_end|>"),
}
"""Name -> template, the first token of every text, the token that ends an answer."""

_SPECIAL = (
    "<|bos|> <|start|> <|stop|> <|eot|> <|im_start|> <|im_end|> <turn> <turn_end> </s> <|vision|> <|pad|> <|/vision|>"
).split()
_SWALLOWING = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def tokenizer_of(template: str, bos: str | None = None, eos: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """The toy vocabulary with the tags of all families; with `bos`, it also adds that token by itself."""
    core = train_tokenizer()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    core.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=True) for t in _SWALLOWING])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token="<|endoftext|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def family(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `FAMILIES`."""
    template, bos, _ = FAMILIES[name]
    return tokenizer_of(template, bos, "</s>" if name == "mistral" else "<|endoftext|>")


def chat(*turns: tuple[str, Any], more: str = "") -> Row:
    """A row of (role, text) or (role, parts) turns."""
    messages = tuple(
        Message(role, (Part("text", content),) if isinstance(content, str) else tuple(content))  # type: ignore[arg-type]
        for role, content in turns
    )
    return Row("row", messages, Target(), "group", "train", Provenance("made", "line 1"), more)
