"""The reference of every step, made from the signatures and docstrings of their functions (docs/steps.md)."""

from __future__ import annotations

from luthier.data.steps import StepDoc, describe

_HEAD = """# Steps

Made by `make docs` from the functions that `src/luthier/data/steps.py` names.

A step takes a row and gives back a row or the reason why it is dropped. They run in the order of the recipe:

```yaml
data:
  steps:
    - require_messages
    - length: {minimum_words: 5, maximum_words: 4000}
    - scrub_personal_data
```

`turns` says whose words a step looks at: `user`, `assistant` (with a row's target), or `all`, system and tool turns
included. Every dropped row is in the table's ledger with its reason.
"""


def reference() -> str:
    """All steps as Markdown."""
    return _HEAD + "".join(_section(step) for step in describe())


def _section(step: StepDoc) -> str:
    lines = ["", f"## {step.name}", "", step.summary]
    if step.text:
        lines += ["", step.text]
    if step.parameters:
        lines += ["", "| parameter | type | default | meaning |", "|---|---|---|---|"]
    for item in step.parameters:
        default = "must be given" if item.default is None else f"`{item.default}`" if item.default else ""
        lines.append(f"| `{item.name}` | {item.type} | {default} | {item.text} |".replace("\\", "\\\\"))
    if step.reasons:
        lines += ["", "Drops: " + ", ".join(f"`{reason}`" for reason in step.reasons) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
