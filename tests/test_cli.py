"""The command line: help that costs nothing, errors that a person can act on, figures that a program can read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier import cli, errors, verbs
from luthier.errors import LuthierError, RecipeError

ROOT = Path(__file__).parents[1]
VERBS = (
    "quickstart new check rehearse run predict score doctor report exam compare sweep data collect serve export publish"
).split()
COLLECT = ["pictures"]
DATA = ["build", "show", "why", "audit", "export"]
HEAVY = {"torch", "transformers", "datasets", "gradio", "ray", "peft", "accelerate", "pyarrow", "numpy"}
LOADED = """
import atexit, sys
atexit.register(lambda: print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
if sys.argv[1:] == ["import"]:
    import luthier
else:
    from luthier.cli import main
    main(sys.argv[1:])
"""


def every(cls: type[LuthierError]) -> list[type[LuthierError]]:
    """Of luthier.errors: which others there are depends on what else was imported."""
    below = (found for child in cls.__subclasses__() for found in every(child))
    return [cls, *(found for found in below if found.__module__ == errors.__name__)]


def made(cls: type[LuthierError]) -> LuthierError:
    if cls is RecipeError:
        return RecipeError("r.yaml", ["train.epohcs: unknown key (did you mean epochs?)", "seed: 'x' is no number"])
    return cls("r.yaml: wrong", "put it right")


def test_every_verb_of_the_parser_is_tested_here() -> None:
    actions: Any = cli.parser()._subparsers
    assert sorted(actions._group_actions[0].choices) == sorted(VERBS)


@pytest.mark.parametrize(
    "words",
    [
        ["import"],
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in VERBS),
        *(["data", verb, "--help"] for verb in DATA),
        *(["collect", verb, "--help"] for verb in COLLECT),
    ],
    ids=" ".join,
)
def test_help_shows_an_example_and_loads_no_heavy_library(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stderr.rpartition("LOADED")
    assert text == ""
    assert "luthier" in loaded.split()
    assert set(loaded.split()) & HEAVY == set()
    if words[0] in VERBS:
        verb = " ".join(words[:-1])
        assert f"example: luthier {verb}" in done.stdout
        assert "--json" in done.stdout or verb in ("data", "collect")


@pytest.mark.parametrize("error", every(LuthierError), ids=lambda cls: cls.__name__)
def test_each_error_is_an_exit_code_and_a_message_with_its_mend(
    error: type[LuthierError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise made(error)

    monkeypatch.delenv("LUTHIER_DEBUG", raising=False)
    monkeypatch.setattr(verbs, "doctor", fail)
    assert cli.main(["doctor", "--json"]) == error.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("luthier: ")
    assert "Traceback" not in err
    mends = {RecipeError: "did you mean epochs?"}
    mends[errors.MediaError] = "mend: give a whole file"
    mends[errors.ChatError] = "mend: drop the row"
    assert mends.get(error, "mend: put it right") in err
    monkeypatch.setenv("LUTHIER_DEBUG", "1")
    with pytest.raises(error):
        cli.main(["doctor"])


def test_the_exit_codes_are_those_of_the_contract() -> None:
    codes = {cls: cls.exit_code for cls in every(LuthierError)}
    assert {code for cls, code in codes.items() if issubclass(cls, errors.RequestError)} == {2}
    assert codes[errors.Interrupted] == 130
    others = (errors.RequestError, errors.Interrupted)
    assert {code for cls, code in codes.items() if not issubclass(cls, others)} == {1}


def test_what_nobody_foresaw_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LUTHIER_DEBUG", raising=False)
    monkeypatch.setattr(verbs, "doctor", lambda: 1 / 0)
    assert cli.main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "LUTHIER_DEBUG=1" in err
    assert "Traceback" not in err


def test_ctrl_c_prints_the_line_that_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "run", stop)
    assert cli.main(["run", "a recipe.yaml", "--out", "runs/a", "--set", "train.epochs=3"]) == 130
    line = "  luthier run 'a recipe.yaml' --out runs/a --set train.epochs=3 --resume\n"
    assert capsys.readouterr().err.endswith(line)
    cli.main(["run", "r.yaml", "--resume"])
    assert capsys.readouterr().err.count("--resume") == 1


REQUESTS = [
    ["run", "absent.yaml"],
    ["check", "absent.yaml"],
    ["rehearse", "absent.yaml"],
    ["new", "speking"],
    ["new", "quickstart", "full"],
    ["predict", "empty", "a.wav"],
    ["report", "empty"],
    ["score", "absent.jsonl"],
    ["quickstart", "--out", "full"],
    ["quickstart", "--out", "file"],
    ["rehearse", "speaking.yaml", "--out", "full"],
    ["rehearse", "speaking.yaml", "--out", "file"],
    ["run", "speaking.yaml", "--out", "full"],
    ["run", "speaking.yaml", "--out", "file"],
    ["run", "speaking.yaml", "--out", "full", "--resume"],
    ["run", "speaking.yaml", "--set", "train.epohcs=3", "--out", "new"],
    ["check", "broken.yaml"],
    ["check", "empty"],
]


@pytest.mark.parametrize("words", REQUESTS, ids=" ".join)
def test_a_wrong_request_ends_with_2_says_what_to_do_and_changes_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUTHIER_DEBUG", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "quickstart.yaml").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken.yaml").write_text("train: [1, 2")
    (tmp_path / "speaking.yaml").write_text((ROOT / "recipes" / "speaking.yaml").read_text())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "mend: " in err or "did you mean" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", [[], ["sing"], ["run"], ["score", "p", "--event", "jury"], ["predict"]], ids=" ".join)
def test_words_that_are_no_command_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: luthier" in capsys.readouterr().err


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_one_object_on_the_last_line_of_standard_output(
    tmp_path: Path, small: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, key in (
        (["doctor"], "versions"),
        (["new", "speaking", tmp_path], "recipe"),
        (["check", small], "steps"),
        (["score", finished / "stages/1764/predictions.jsonl"], "auroc"),
        (["run", small, "--out", tmp_path / "run"], "stages"),
    ):
        assert cli.main([*map(str, words), "--json"]) == 0
        found = strict(capsys.readouterr().out.splitlines()[-1])
        assert isinstance(found, dict)
        assert key in found
    assert cli.main(["check", str(small)]) == 0
    assert capsys.readouterr().out == ""


def test_the_doctor_names_the_line_that_installs_an_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = verbs._version
    monkeypatch.setattr(verbs, "_version", lambda name: "" if name == "faster-whisper" else version(name))
    found = verbs.doctor()["extras"]
    assert found["whisper"]["mend"] == "missing faster-whisper: pip install 'luthier[whisper]'"
    assert {"serve", "whisper", "gguf", "llama.cpp"} == set(found)
    assert "pip install 'luthier[whisper]'" in capsys.readouterr().err
