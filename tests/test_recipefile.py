"""Wrong recipes: every problem at once, with its key, its line and what to do about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier import recipe_model, recipe_train
from luthier.errors import RecipeError, RequestError
from luthier.recipe import EvaluateConfig, Recipe, TaskConfig
from luthier.recipe_data import Source
from luthier.recipe_train import TrainConfig
from luthier.recipedocs import field_docs, reference
from luthier.recipefile import digest, load_recipe, resolve, stage_recipes, to_tree, to_yaml

GOOD = """\
name: small
vars: {form: "1764"}
model: {base: toy:phi4-multimodal}
data:
  sources:
    form-1764-train: {hub: someone/train}
    form-1764-test: {path: test.parquet}
    form-1964-train: {path: b.parquet}
    form-1964-test: {path: c.parquet}
  train: ["form-${form}-train"]
  test: ["form-${form}-test"]
train:
  epochs: 2
  learning_rate: 1.0e-4
"""
STAGES = """\
stages:
  first: {}
  second:
    vars: {form: "1964"}
    start_from: first
    learned_tokens: new
    train: {epochs: 1}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message
    return caught.value.problems


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  learning_rate: 1.0e-4",
            "  learnin_rate: 1.0e-4",
            "train.learnin_rate: unknown key (did you mean learning_rate?) [line 14]",
        ),
        ("name: small", "nmae: small", "nmae: unknown key (did you mean name?) [line 1]"),
        ("  epochs: 2", "  epochs: many", "train.epochs: 'many' is not of type float [line 13]"),
        ("  epochs: 2", "  batch_size: 2.5", "train.batch_size: 2.5 is not a whole number [line 13]"),
        ("  epochs: 2", "  epochs: yes", "train.epochs: True is not of type float [line 13]"),
        ("  epochs: 2", "  gradient_checkpointing: 1", "train.gradient_checkpointing: 1 is not of type bool [line 13]"),
        ("  epochs: 2", "  epochs: .nan", "train.epochs: must be a finite number [line 13]"),
        (
            "model: {base: toy:phi4-multimodal}",
            "model: toy",
            "model: a mapping of keys is expected, not 'toy' [line 3]",
        ),
        (
            "{hub: someone/train}",
            "someone/train",
            "data.sources.form-1764-train: a mapping of keys is expected, not "
            "'someone/train' (write data.sources.form-1764-train.path=someone/train) [line 6]",
        ),
        ("${form}-train", "${from}-train", "data.train: ${from} is not in vars (did you mean form?)"),
        ('vars: {form: "1764"}', "vars: [1764]", "vars: a mapping is expected, not [1764] [line 2]"),
        (
            '["form-${form}-test"]',
            "[nowhere]",
            "data.test: 'nowhere' is not in data.sources (there: form-1764-train, "
            "form-1764-test, form-1964-train, form-1964-test) [line 11]",
        ),
    ],
)
def test_one_mistake_is_one_problem_with_its_line(write: Any, old: str, new: str, expected: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    found = problems(write(text))
    assert expected in found
    assert len(found) == len(set(found))


def test_all_problems_are_reported_at_once_and_each_once(write: Any) -> None:
    text = GOOD.replace("epochs: 2", "epochs: -1\n  schedule: wavy\n  epohcs: 3").replace("1.0e-4", "fast")
    found = problems(write(text + "task: {event: jury, readout: ears}\nmodell: {}\n"))
    keys = [problem.partition(":")[0] for problem in found]
    assert {"train.epohcs", "train.learning_rate", "modell"} <= set(keys)
    assert len(keys) == len(set(keys))
    fixed = text.replace("\n  epohcs: 3", "").replace("fast", "1.0e-4") + "task: {event: jury, readout: ears}\n"
    keys = [problem.partition(":")[0] for problem in problems(write(fixed))]
    assert sorted(keys) == ["task.event", "task.readout", "train.epochs", "train.schedule"]


def test_a_mistake_outside_the_stages_is_reported_once_and_not_once_a_stage(write: Any) -> None:
    for wrong in ("epohcs: 2", "schedule: wavy", "epochs: soon"):
        found = problems(write(GOOD.replace("epochs: 2", wrong) + STAGES))
        assert len(found) == 1
        assert found[0].startswith("train." + wrong.partition(":")[0])
        assert "stages" not in found[0]


def test_a_mistake_on_the_command_line_has_no_line_of_the_file(write: Any) -> None:
    [found] = problems(write(GOOD), "evaluate.epochs=2")
    assert found.startswith("evaluate.epochs: unknown key")
    assert "[line" not in found


def test_names_that_are_numbers_need_no_quotes(write: Any) -> None:
    text = STAGES.replace("first", "1").replace("second", "2")
    stages = stage_recipes(load_recipe(write(GOOD + text), ["stages.2.train.learning_rate=2e-4"]))
    assert [stages["2"].train.epochs, stages["2"].start_from, stages["2"].train.learning_rate] == [1, "1", 2e-4]
    table = load_recipe(write(GOOD + "task: {target: {method: table, table: {3.5: [pass, 0.5]}}}\n")).task.target.table
    assert table == {3.5: ["pass", 0.5]}


def test_variables_are_put_in_and_a_stage_brings_its_own(write: Any) -> None:
    stages = stage_recipes(load_recipe(write(GOOD + STAGES)))
    first, second = stages["first"], stages["second"]
    assert (first.data.train, first.data.test, first.train.epochs) == (["form-1764-train"], ["form-1764-test"], 2)
    assert (second.data.train, second.data.test, second.train.epochs) == (["form-1964-train"], ["form-1964-test"], 1)
    assert (first.start_from, second.start_from, second.learned_tokens) == ("", "first", "new")
    assert second.train.learning_rate == first.train.learning_rate == 1e-4
    assert list(stage_recipes(load_recipe(write(GOOD)))) == ["main"]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("{one: {start_from: two}, two: {}}", "stages.one.start_from: 'two' is not an earlier stage (there: none)"),
        ("{one: {start_from: one}}", "stages.one.start_from: 'one' is not an earlier stage (there: none)"),
        ("{one: {}, two: {start_from: uno}}", "stages.two.start_from: 'uno' is not an earlier stage (there: one)"),
        ("{one: {learned_tokens: old}}", "stages.one.learned_tokens: 'old' is not reuse or new"),
        ("{one: {train: {epohcs: 1}}}", "stages.one.train.epohcs: unknown key (did you mean epochs?)"),
        ("{one: [train]}", "stages.one: a mapping of keys is expected, not ['train']"),
        ("[one, two]", "stages: a mapping is expected, not ['one', 'two']"),
        ("{one: {train: {epochs: 0}}}", "stages.one.train.epochs: must be above 0"),
        ("{../one: {}}", "stages.../one: a stage's name becomes a folder"),
    ],
)
def test_mistakes_in_stages(write: Any, stages: str, expected: str) -> None:
    found = problems(write(GOOD + f"stages: {stages}\n"))
    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("train.learning_rate=3", ("train", "learning_rate"), 3.0),
        ("train.batch_size=8.0", ("train", "batch_size"), 8),
        ("train.gradient_checkpointing=true", ("train", "gradient_checkpointing"), True),
        ("data.train=[form-1964-train]", ("data", "train"), ["form-1964-train"]),
        ("data.train=form-1964-train", ("data", "train"), ["form-1964-train"]),
        ("model.base=toy:phi4-multimodal", ("model", "base"), "toy:phi4-multimodal"),
        ("name=", ("name",), ""),
        ("name=a=b", ("name",), "a=b"),
        ("name=1e-4", ("name",), "1e-4"),
        ("vars.form=1964", ("data", "train"), ["form-1964-train"]),
    ],
)
def test_overrides_take_the_fields_type(write: Any, override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = load_recipe(write(GOOD), [override])
    for name in path:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("said", "value"), [("off", "off"), ("on", "on"), ("'on'", "on"), ("auto", "auto")])
def test_what_yaml_takes_for_a_truth_value_is_still_a_word(write: Any, said: str, value: str) -> None:
    chat = "name: a\nmodel: {base: toy:llama}\ntask: {kind: chat}\ndata: {sources: {a: {path: a.jsonl}}, train: [a]}\n"
    assert load_recipe(write(chat), [f"train.feature_store={said}"]).train.feature_store == value


def test_a_source_path_given_on_the_command_line_stands_beside_the_hub_id(write: Any) -> None:
    found = load_recipe(write(GOOD), ["data.sources.form-1764-train.path=a.parquet"]).data.sources["form-1764-train"]
    assert (found.path, found.hub, found.name) == ("a.parquet", "someone/train", "form-1764-train")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epohcs=3", "train.epohcs: unknown key (did you mean epochs?)"),
        ("nonsense", "--set nonsense: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("train.epochs.deep=3", "--set train.epochs.deep: epochs is not a mapping"),
        ("train.epochs=soon", "train.epochs: 'soon' is not of type float"),
        ("train=3", "train: a mapping of keys is expected, not 3"),
        ("data.sources.form-1764-trian.path=x", "data.sources.form-1764-trian: no train or test list names it, nor an"),
        ("train.feature_store=maybe", "train.feature_store: 'maybe' is not one of auto, on, off"),
        ("seed=[", "seed: '[' is not a whole number"),
    ],
)
def test_overrides_that_are_wrong(write: Any, override: str, expected: str) -> None:
    found = problems(write(GOOD), override)
    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\ntrain: [1, 2\n", "recipe.yaml:3: not YAML"),
        ("name: a\n\tseed: 1\n", "recipe.yaml:2: not YAML"),
        ("", "a recipe is a mapping of keys"),
        ("- a\n- b\n", "a recipe is a mapping of keys"),
        ("just words", "a recipe is a mapping of keys"),
        ("name: !!python/object/apply:os.system ['touch owned']\n", "recipe.yaml:1: not YAML"),
        ("a: &a {b: *a}\n", "recipe.yaml"),
        ("name: a\nseed: 1\nname: b\n", "recipe.yaml:3: not YAML: the key 'name' is there twice"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(
    write: Any, tmp_path: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words.replace("(", r"\(")) as caught:
        load_recipe(write(text))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "owned").exists()


def test_bytes_that_are_not_text_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01name")
    with pytest.raises(RequestError, match="not YAML"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RequestError, match="no such recipe") as caught:
        load_recipe(tmp_path / "absent.yaml")
    assert "luthier new" in caught.value.mend


@pytest.mark.parametrize("text", [GOOD, GOOD + STAGES])
def test_the_resolved_yaml_loads_back_equal(write: Any, tmp_path: Path, text: str) -> None:
    recipe = load_recipe(write(text), ["train.learning_rate=3e-5"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again == recipe
    assert digest(again) == digest(recipe)
    assert stage_recipes(again) == stage_recipes(recipe)


def test_the_digest_depends_on_every_change(write: Any) -> None:
    recipe = load_recipe(write(GOOD))
    others = [
        replace(recipe, seed=18),
        replace(recipe, train=TrainConfig(epochs=3)),
        replace(recipe, evaluate=EvaluateConfig(resamples=9)),
    ]
    assert len({digest(item) for item in [recipe, *others]}) == 4


WORDS = st.sampled_from(
    [
        *(
            "name vars seed model data task train test stages sources columns lora scale target table "
            "answers start_from base a ${a} ${b toy:llama"
        ).split(),
        "",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | WORDS | st.dates()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=4)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(tree=st.dictionaries(WORDS, TREES, max_size=6))
def test_no_yaml_whatsoever_gets_past_as_anything_but_a_request_error(write: Any, tree: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        load_recipe(write(yaml.safe_dump(tree)))


def test_every_option_of_every_section_that_needs_words_has_them() -> None:
    assert "hub id" in field_docs(recipe_model.ModelConfig)["base"]
    assert field_docs(recipe_train.TrainConfig)["batch_size"].startswith("Rows in one optimizer step")
    assert "epochs" not in field_docs(recipe_train.TrainConfig)
    for section in (TaskConfig, Source, recipe_model.LearnedTokens):
        assert all(text.endswith(".") for text in field_docs(section).values())
    keys = "name vars seed model data task train stages evaluate track publish"
    assert set(to_tree(Recipe())) >= set(keys.split())


def test_resolving_does_not_change_the_tree_it_is_given() -> None:
    tree = yaml.safe_load(GOOD + STAGES)
    before = yaml.safe_dump(tree)
    found: list[str] = []
    resolve(tree, found, stage="second")
    assert found == []
    assert yaml.safe_dump(tree) == before


def test_the_reference_of_keys_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert text == reference(), "make docs writes it again"
    assert "`task.target.temperature`" in text
