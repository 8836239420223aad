"""The reference of every step, made from the signatures and docstrings of their functions (docs/steps.md)."""

from __future__ import annotations

import json

from luthier.data.steps import StepDoc, describe

EXAMPLES: dict[str, dict[str, object]] = {
    "require_messages": {},
    "roles_alternate": {"merge": True},
    "length": {"minimum_words": 5, "maximum_words": 4000},
    "tokens": {"tokenizer": "tokenizer.json", "maximum": 4096},
    "repair_unicode": {},
    "normalise_whitespace": {"turns": "user"},
    "language": {"languages": ["en", "de"], "characters": 500},
    "repetition": {"ngrams": 1.5},
    "gopher": {"stop_words": 0, "word_length": [2, 12]},
    "c4": {"curly_bracket": False, "javascript": False},
    "symbol_ratio": {"maximum": 0.4},
    "scrub_personal_data": {"kinds": ["email", "key"]},
    "words_list": {"file": "words.txt", "action": "mask"},
    "regex": {"pattern": "(?i)as an ai language model", "turns": "assistant"},
    "custom": {"function": "my_steps:shorten", "most": 400},
}
"""A line of a recipe for each step; `custom` takes the parameters of its function."""

_HEAD = """# Steps

Made by `make docs` from the functions that `src/luthier/data/steps.py` names.

A step takes a row and gives back a row or the reason why it is dropped. They run in the order of the recipe. `turns`
says whose words a step looks at: `user`, `assistant` (with a row's target), or `all`, system and tool turns included.
Every dropped row is in the table's ledger with its reason.

The blocks of this section are run by a test, in order, in one empty folder. Five rows, and a step of your own:

```sh
cat > chat.jsonl <<'END'
{"prompt": "What is  a lute?", "completion": "A lute is a plucked string instrument with a round back."}
{"prompt": "Who sells lutes?", "completion": "Write to anna@lutes.example and ask for the list."}
{"prompt": "Are you a person?", "completion": "As an AI language model I am no person at all."}
{"prompt": "And a cittern?", "completion": "Flat."}
{"prompt": "How many strings?", "completion": "It depends. A lute of that time has six courses; later ones have ten."}
END
cat > my_steps.py <<'END'
from dataclasses import replace

from luthier.schema import Part


def shorten(row, most):
    # Cuts the last answer of a row behind its first `most` characters; a row without one is dropped.
    last = row.messages[-1]
    if last.role != "assistant":
        return False
    if len(last.text) <= most:
        return row
    cut = replace(last, content=(Part("text", last.text[:most]),))
    return replace(row, messages=(*row.messages[:-1], cut))
END
cat > steps.yaml <<'END'
name: steps
model: {base: "toy:llama"}
data:
  sources:
    chat: {path: chat.jsonl}
  train: [chat]
  validation_fraction: 0
  steps:
    - normalise_whitespace: {collapse: true}
    - require_messages
    - length: {minimum_words: 3, per: answer}
    - regex: {pattern: "(?i)as an ai language model", turns: assistant}
    - scrub_personal_data
    - custom: {function: "my_steps:shorten", most: 60}
task: {kind: chat}
END
luthier data build steps.yaml --out table
```

Three of the five rows are left. What happened to one of them, and why the others are gone:

```sh
luthier data why table chat.jsonl#1      # normalise_whitespace took a space out
luthier data why table chat.jsonl#2      # the address is <EMAIL> now
luthier data why table chat.jsonl#3      # dropped: pattern_found
luthier data why table chat.jsonl#4      # dropped: too_few_words
luthier data why table chat.jsonl#5      # my_steps:shorten cut the answer
```

A step of your own is a function of a row in a file of the folder where `luthier` is called. A changed file makes
the rows anew; parameters of the recipe that the function does not know are a problem before anything is read.
"""


def reference() -> str:
    """All steps as Markdown."""
    return _HEAD + "".join(_section(step) for step in describe())


def _section(step: StepDoc) -> str:
    lines = ["", f"## {step.name}", "", step.summary]
    if step.text:
        lines += ["", step.text]
    lines += ["", "```yaml", f"- {step.name}{_parameters(EXAMPLES[step.name])}", "```"]
    if step.parameters:
        lines += ["", "| parameter | type | default | meaning |", "|---|---|---|---|"]
    for item in step.parameters:
        default = "must be given" if item.default is None else f"`{item.default}`" if item.default else ""
        lines.append(f"| `{item.name}` | {item.type} | {default} | {item.text} |".replace("\\", "\\\\"))
    if step.reasons:
        lines += ["", "Drops: " + ", ".join(f"`{reason}`" for reason in step.reasons) + "."]
    return "\n".join(lines) + "\n"


def _parameters(values: dict[str, object]) -> str:
    """`: {key: value}` as YAML's flow style has it; JSON's values are YAML's."""
    listed = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return f": {{{', '.join(listed)}}}" if values else ""


if __name__ == "__main__":
    print(reference(), end="")
