"""The same exam by lm-evaluation-harness in its own environment: one case in process, or a loop over adapters.

    PEER_PYTHON benchmarks/exam/theirs.py FILES BASE CASE [--batch 8] [--threads 2] [--sweep 1] [--onednn 1]

Tasks are the harness's own for PIQA and WinoGrande, read from local files, and plain ones beside them. Prints one
line of JSON: `seconds` is its `loglikelihood` over ready requests, `whole_seconds` its `simple_evaluate`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cases import CASES  # noqa: E402
from meter import Clock, options, report  # noqa: E402

LIBRARIES = ("torch", "transformers", "peft", "lm_eval")
SHIPPED = {"piqa": "piqa/piqa.yaml", "winogrande": "winogrande/default.yaml"}
SWEEP, INSTANCES = 1, 2
"""What --sweep takes: adapters in turn by simple_evaluate, or by loglikelihood over requests that were made once."""


def main() -> int:
    given = options(__doc__, ("--batch", "--sweep", "--onednn"))
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    os.environ["HF_DATASETS_CACHE"] = str(given.files / "cache")
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    if given.onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    tasks = write_tasks(given.files)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    task = manager.load([given.case])["tasks"][given.case]
    if given.questions:
        task.dataset["test"] = task.dataset["test"].select(range(given.questions))
    base = str(given.files / given.base)
    batch = {"batch_size": given.batch or 1, "device": "cpu", "dtype": "float32"}
    versions = {name: version(name) for name in LIBRARIES}
    if given.sweep:
        figures, logprobs = _sweep(given, task, manager, batch)
        report(given, figures, logprobs, versions=versions)
        return 0
    lm = HFLM(pretrained=base, **batch)
    first = _one_request(task)
    lm.loglikelihood(first, disable_tqdm=True)
    timed = _Timed(lm)
    clock = Clock()
    logprobs = _evaluate(timed.lm, task, manager)
    whole = clock.spent()
    report(given, timed.spent, logprobs, whole_seconds=whole["seconds"], versions=versions)
    return 0


class _Timed:
    """A model whose `loglikelihood` is timed."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.spent = lm, {"seconds": 0.0, "cpu_seconds": 0.0}
        inner: Callable[..., Any] = lm.loglikelihood

        def timed(requests: Any, **_: Any) -> Any:
            clock = Clock()
            found = inner(requests, disable_tqdm=True)
            self.spent = clock.spent()
            return found

        lm.loglikelihood = timed


def _evaluate(lm: Any, task: Any, manager: Any) -> list[list[float]]:
    """The harness's own way from a task to log-likelihoods; no bootstrap, so nothing slows it."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = next(iter(found["samples"].values()))
    return [
        [float(one[0]) for one in sample["filtered_resps"]] for sample in sorted(samples, key=lambda s: s["doc_id"])
    ]


def _one_request(task: Any) -> Any:
    """The requests of a first question, to warm up with."""
    task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)
    task.set_fewshot_seed(seed=0)
    task.build_all_requests(limit=1)
    return task.instances


def _sweep(given: Any, task: Any, manager: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Base and tasks are loaded once, adapters are put on in turn."""
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = given.files / given.base
    adapters = sorted((given.files / f"{given.base}-adapters").iterdir())
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name=adapters[0].name)
    lm = HFLM(pretrained=tuned, tokenizer=AutoTokenizer.from_pretrained(base), **batch)
    lm.loglikelihood(_one_request(task), disable_tqdm=True)
    task.build_all_requests()
    clock = Clock()
    found = {}
    for adapter in adapters:
        if adapter.name not in tuned.peft_config:
            tuned.load_adapter(str(adapter), adapter_name=adapter.name)
        tuned.set_adapter(adapter.name)
        tuned.eval()
        if given.sweep == INSTANCES:
            answers = [value for value, _ in lm.loglikelihood(task.instances, disable_tqdm=True)]
            found[adapter.name] = [list(pair) for pair in zip(answers[::2], answers[1::2], strict=True)]
        else:
            found[adapter.name] = _evaluate(lm, task, manager)
    return clock.spent(), found


def write_tasks(files: Path) -> Path:
    """The task files, in the harness's own format."""
    import yaml

    place = files / "tasks"
    place.mkdir(exist_ok=True)
    for name in CASES:
        (place / f"{name}.yaml").write_text(yaml.safe_dump(_task(name, files / "exams")), encoding="utf-8")
    return place


def _task(name: str, exams: Path) -> dict[str, Any]:
    import lm_eval

    case = CASES[name]
    data = {"test": str(exams / case.exam), **({"pool": str(exams / "pool.jsonl")} if case.shots else {})}
    found = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    found["test_split"] = "test"
    if name in SHIPPED:
        shipped = Path(lm_eval.__file__).parent / "tasks" / SHIPPED[name]
        return {"include": str(shipped), **found, "training_split": None, "validation_split": None}
    lettered = case.method == "letters"
    found |= {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}" + ("\nA. {{A}}\nB. {{B}}" if lettered else "") + "\nAnswer:",
        "doc_to_choice": ["A", "B"] if lettered else "{{[A, B]}}",
        "doc_to_target": "{{['A', 'B'].index(answer)}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": case.shots,
    }
    return found | ({"fewshot_split": "pool", "fewshot_config": {"sampler": "first_n"}} if case.shots else {})


if __name__ == "__main__":
    sys.exit(main())
