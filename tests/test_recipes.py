"""Every shipped recipe parses, has nothing to mend, and is what `luthier new` writes."""

from pathlib import Path

import pytest

from luthier import verbs
from luthier.errors import ExistsError, RecipeError, RequestError
from luthier.quickstart import free_folder, shipped_recipes
from luthier.recipefile import load_recipe, stage_recipes

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_package_ships_the_recipes_of_the_checkout() -> None:
    assert {path.stem: path.read_text(encoding="utf-8") for path in RECIPES} == shipped_recipes()
    assert {"quickstart", "speaking"} <= set(shipped_recipes())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_has_no_problems_in_any_stage(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    for stage in stage_recipes(recipe).values():
        assert stage.problems() == []
        assert set(stage.data.train + stage.data.test) <= set(stage.data.sources)
        assert "${" not in repr(stage)


@pytest.mark.parametrize("kind", sorted(shipped_recipes()))
def test_new_writes_the_recipe_with_its_comments_and_never_over_a_file(tmp_path: Path, kind: str) -> None:
    written = Path(verbs.new(kind, tmp_path / "mine")["recipe"])
    assert written.read_text(encoding="utf-8") == shipped_recipes()[kind]
    assert "#" in written.read_text(encoding="utf-8")
    assert load_recipe(written).name == kind
    written.write_text("mine")
    with pytest.raises(ExistsError):
        verbs.new(kind, tmp_path / "mine")
    assert written.read_text() == "mine"


def test_new_of_an_unknown_kind_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="speking") as caught:
        verbs.new("speking", tmp_path)
    assert all(kind in caught.value.mend for kind in shipped_recipes())
    assert list(tmp_path.iterdir()) == []


def test_the_speaking_recipe_keeps_the_contracts_names() -> None:
    recipe = load_recipe(ROOT / "recipes" / "speaking.yaml")
    assert list(recipe.data.sources) == ["form-1764-train", "form-1764-test", "form-1964-train", "form-1964-test"]
    stages = stage_recipes(recipe)
    assert list(stages) == ["1764", "1964"]
    assert stages["1964"].start_from == "1764"
    assert stages["1964"].data.train == ["form-1964-train"]
    assert not any(stage.publish.push for stage in stages.values())
    repos = [stage.publish.repo for stage in stages.values()]
    assert repos == [f"ntnu-smil/Phi-4-mm_Binary_QA_NI_{form}" for form in ("1764", "1964")]


def test_two_stages_are_never_published_to_one_repository() -> None:
    overrides = ["publish.push=true", "publish.repo=ntnu-smil/model"]
    with pytest.raises(RecipeError, match=r"stages\.1964\.publish\.repo: ntnu-smil/model is that of stage 1764 too"):
        load_recipe(ROOT / "recipes" / "speaking.yaml", overrides)


@pytest.mark.parametrize(
    "repo", ["model", "a/b/c", "a/b--c", "a/b..c", "-a/b", "a/b.git", "a/b c", "a/é", "a/" + "b" * 99]
)
def test_a_name_that_no_hub_takes_is_refused(repo: str) -> None:
    with pytest.raises(RecipeError, match=r"publish\.repo"):
        load_recipe(ROOT / "recipes" / "assistant.yaml", [f"publish.repo={repo}"])


def test_the_voice_recipe_is_what_its_users_do_on_two_bases() -> None:
    stages = stage_recipes(load_recipe(ROOT / "recipes" / "voice.yaml"))
    assert list(stages) == ["1b", "3b"]
    assert [stage.model.base for stage in stages.values()] == [
        f"unsloth/Llama-3.2-{size}-Instruct-bnb-4bit" for size in ("1B", "3B")
    ]
    for stage in stages.values():
        assert stage.data.train == ["finetome"]
        assert stage.start_from == ""
        train = stage.train
        assert (train.batch_size, train.micro_batch_size, train.learning_rate, train.epochs) == (8, 2, 2e-4, 1)
        assert (train.optimizer, train.weight_decay, train.schedule) == ("adamw_8bit", 0.01, "linear")
        assert (train.save_every, stage.model.dtype) == (10, "float16")
        assert (stage.model.lora.r, stage.model.lora.alpha, stage.model.lora.dropout) == (16, 16, 0)


@pytest.mark.parametrize("name", ["voice", "assistant"])
def test_a_base_that_is_set_is_that_of_every_stage(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", ["model.base=toy:llama"])
    assert {stage.model.base for stage in stage_recipes(recipe).values()} == {"toy:llama"}


def test_the_assistant_recipe_mixes_three_sets_for_sixty_steps() -> None:
    recipe = load_recipe(ROOT / "recipes" / "assistant.yaml")
    assert recipe.data.train == ["finetome", "sharegpt-english", "ultrachat"]
    assert (recipe.train.max_steps, recipe.train.save_every, recipe.train.learning_rate) == (60, 10, 2e-4)


def test_what_does_not_run_yet_is_refused_before_anything_starts(tmp_path: Path) -> None:
    overrides = ["publish.repo=model", "track.trackers=[neptune]", "task.kind=paint"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(ROOT / "recipes" / "speaking.yaml", overrides)
    text = str(caught.value)
    assert all(key in text for key in ("publish.repo", "track.trackers", "task.kind"))


def test_the_quickstart_never_takes_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("q") == Path("q")
    Path("q").mkdir()
    Path("q-2").touch()
    assert free_folder("q") == Path("q-3")
