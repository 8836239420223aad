"""A finished stage on a hub: the files, the card, the record; and all that is refused before a byte leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from luthier import verbs
from luthier.errors import CheckpointError, HubError, RequestError
from luthier.files import read_json, sha256_file, write_json
from luthier.publishing.patience import Patience
from luthier.publishing.publish import publish
from luthier.publishing.request import PublishRequest, find_endpoint
from luthier.recipe import Recipe
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir
from support.chatrun import chat_run
from support.children import ROOT, Luthier
from support.hub import TOKEN, Fault, Hub

REPO = "group/judge_1764"
ALLOWED = {
    "MANIFEST.json",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "reading.json",
    "scores.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "verdict.json",
}


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of a finished run, and a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "features", "media"))
    return RunDir(tmp_path / "run")


def test_a_stage_is_published_with_its_card_and_recorded(run: RunDir, hub: Hub) -> None:
    done = publish(run, "1764", PublishRequest(REPO))
    shown = hub.main(REPO)
    assert set(shown) == ALLOWED
    assert {name: one["sha256"] for name, one in done["files"].items()} == shown
    assert read_json(run.stage("1764").published) == done
    assert (done["state"], done["private"], done["revision"]) == ("published", True, "main")
    assert done["commit"] == hub.repos[REPO].branches["main"]
    assert TOKEN not in json.dumps(done)
    _, head, body = hub.files(REPO, "main")[1]["README.md"].content.decode().split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "audio-classification"
    assert front["model-index"][0]["name"] == REPO
    assert "## How a verdict is read" in body
    assert publish(run, "1764", PublishRequest(REPO))["state"] == "unchanged"


def test_what_is_published_is_a_peft_folder_with_the_weights_of_the_run(run: RunDir, hub: Hub, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    publish(run, "1764", PublishRequest(REPO))
    files = hub.files(REPO, "main")[1]
    place = tmp_path / "fetched"
    place.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        file = files[name]
        (place / name).write_bytes(hub.stored[file.oid] if file.large else file.content)
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(str(place)).base_model_name_or_path == "toy:phi4-multimodal"
    ours = load_file(str(run.stage("1764").adapter / "adapter_model.safetensors"))
    theirs = load_file(str(place / "adapter_model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_chat_is_published_with_the_weights_of_its_run(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = RunDir(chat_run(tmp_path))
    done = publish(run, "main", PublishRequest("group/chat", private=False))
    assert hub.repos["group/chat"].private is False
    assert {*ALLOWED, "adapter_base.json"} - {"reading.json", "verdict.json"} == set(done["files"])
    files = hub.files("group/chat", "main")[1]
    assert "PeftModel.from_pretrained" in files["README.md"].content.decode()
    sent = load(hub.stored[files["adapter_model.safetensors"].oid])
    ours = load((run.stage("main").adapter / "adapter_model.safetensors").read_bytes())
    assert sent.keys() == ours.keys()
    assert all(sent[name].equal(ours[name]) for name in ours)


def test_a_stage_of_the_same_run_is_not_put_over_another_stage(run: RunDir, hub: Hub) -> None:
    publish(run, "1764", PublishRequest(REPO))
    with pytest.raises(RequestError, match="holds stage 1764 of this run"):
        publish(run, "1964", PublishRequest(REPO))


def test_a_run_that_was_moved_is_still_the_same_run(run: RunDir, hub: Hub, tmp_path: Path) -> None:
    publish(run, "1764", PublishRequest(REPO))
    moved = RunDir(run.path.rename(tmp_path / "elsewhere"))
    publish(moved, "1764", PublishRequest(REPO))
    assert set(hub.main(REPO)) == ALLOWED


def test_nothing_is_sent_when_a_secret_is_among_the_files(run: RunDir, hub: Hub) -> None:
    secret = "hf_" + "a1B2c3D4e5" * 4
    recipe = run.recipe.read_text().replace("Listen to the answer", f"Listen with {secret} to the answer")
    run.recipe.write_text(recipe)
    with pytest.raises(RequestError, match=r"reading\.json:\d+: a Hugging Face token: hf_a…") as caught:
        publish(run, "1764", PublishRequest(REPO))
    assert "README.md:" in str(caught.value)  # where Markdown has \ before _
    assert secret not in str(caught.value)
    assert sum(hub.requests.values()) == 0


def test_an_adapter_that_was_changed_is_not_sent(run: RunDir, hub: Hub) -> None:
    path = run.stage("1764").adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is not what was written"):
        publish(run, "1764", PublishRequest(REPO))
    assert sum(hub.requests.values()) == 0


@pytest.mark.parametrize(
    ("stage", "request_", "says"),
    [
        ("2064", PublishRequest(REPO), "stage 2064 is not finished"),
        ("1764", PublishRequest("no-namespace"), "is no name of a repository"),
        ("1764", PublishRequest(REPO, token_env="OTHER_TOKEN"), "OTHER_TOKEN is not set"),
    ],
)
def test_what_cannot_be_is_refused_before_anything(
    run: RunDir, hub: Hub, stage: str, request_: PublishRequest, says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        publish(run, stage, request_)
    assert sum(hub.requests.values()) == 0


def test_a_refusal_of_the_hub_leaves_no_record(run: RunDir, hub: Hub) -> None:
    hub.faults = [Fault("commit", 403, at=2, times=0)]
    with pytest.raises(HubError, match="403"):
        publish(run, "1764", PublishRequest(REPO), Patience(sleep=lambda seconds: None))
    assert not run.stage("1764").published.exists()
    assert hub.main(REPO) == {}


def test_a_receipt_goes_along_and_onto_the_card(run: RunDir, hub: Hub, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    form = {"ran": True, "recordings": 20, "recordings_that_differ": 0, "max_p_gap": 0.0}
    forms = {"adapter": form, "gguf": {"ran": False, "reason": "no engine | here"}}
    request = PublishRequest(REPO, receipt=receipt)
    for wrong in ({"forms": forms, "adapter_sha256": "of another"}, []):
        write_json(receipt, wrong)
        with pytest.raises(RequestError, match="no receipt of this stage"):
            publish(run, "1764", request)
    assert sum(hub.requests.values()) == 0
    weights = run.stage("1764").adapter / "adapter_model.safetensors"
    write_json(receipt, {"forms": forms, "adapter_sha256": sha256_file(weights)})
    publish(run, "1764", request)
    files = hub.files(REPO, "main")[1]
    assert "receipt.json" in files
    card = files["README.md"].content.decode()
    assert "| adapter | 20 | 0 | 0 |" in card
    assert r"not run: no engine \| here" in card


def test_a_login_is_sent_to_its_own_hub_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for own in ("https://huggingface.co", "http://127.0.0.1:9", "http://localhost:9/", "http://[::1]:9"):
        monkeypatch.setattr(constants, "ENDPOINT", own)
        assert find_endpoint().token == TOKEN
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    with pytest.raises(RequestError, match="no token was given for it"):
        find_endpoint()
    monkeypatch.setenv("EXAMPLE_TOKEN", "given")
    assert find_endpoint("EXAMPLE_TOKEN").token == "given"
    assert "given" not in repr(find_endpoint("EXAMPLE_TOKEN"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    with pytest.raises(RequestError, match="in clear"):
        find_endpoint("EXAMPLE_TOKEN")
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(RequestError, match="there is no token"):
        find_endpoint()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE"):
        find_endpoint()


def test_the_request_is_what_the_recipe_of_the_stage_says() -> None:
    stages = stage_recipes(load_recipe(ROOT / "recipes" / "speaking.yaml", ["publish.private=false"]))
    assert PublishRequest.of(stages["1964"]) == PublishRequest("ntnu-smil/Phi-4-mm_Binary_QA_NI_1964", private=False)
    with pytest.raises(RequestError, match="names no repository"):
        PublishRequest.of(Recipe())


def test_check_says_where_stages_would_go_and_what_is_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.check import _publishing
    from luthier.checked import Checked

    stages = stage_recipes(load_recipe(ROOT / "recipes" / "speaking.yaml", ["publish.push=true"]))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = Checked()
    _publishing(stages, found)
    place = f"{hub.url}/ntnu-smil/Phi-4-mm_Binary_QA_NI"
    assert found.sections == [f"publishing: stage {name} to {place}_{name} (private)" for name in ("1764", "1964")]
    monkeypatch.delenv("HF_TOKEN")
    found = Checked()
    _publishing(stages, found)
    assert len(found.problems) == 2
    assert "stage 1764: publish.push: publishing: there is no token" in found.problems[0]
    assert sum(hub.requests.values()) == 0


def test_a_run_that_publishes_says_so_before_it_trains(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RequestError, match="there is no token"):
        verbs.run(small, tmp_path / "run", ["publish.push=true", "publish.repo=group/model_${form_id}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_speaking_recipe_publishes_both_stages_under_their_names(
    luthier: Luthier, tmp_path: Path, hub: Hub
) -> None:
    """Its rehearsal, with the one key that sends: a hub that fails at first is tried again by --resume."""
    from luthier.rehearse import rehearsal

    tree = rehearsal(load_recipe(ROOT / "recipes" / "speaking.yaml"), tmp_path / "standins")
    for part in (tree, *tree["stages"].values()):
        part.setdefault("publish", {})["push"] = True
    recipe = tmp_path / "speaking.yaml"
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    hub.faults = [Fault("create", 403), Fault("put", 503)]
    first = luthier("run", recipe, "--out", tmp_path / "run", "--json", env=env)
    assert first.returncode == 1, first.stderr
    assert "stage 1764 is trained, and not published" in first.stderr
    assert list(hub.repos) == ["ntnu-smil/Phi-4-mm_Binary_QA_NI_1964"]  # the second stage did not wait for the first
    again = luthier("run", recipe, "--out", tmp_path / "run", "--resume", "--json", env=env)
    assert again.returncode == 0, again.stderr
    names = {form: f"ntnu-smil/Phi-4-mm_Binary_QA_NI_{form}" for form in ("1764", "1964")}
    assert json.loads(again.stdout.splitlines()[-1])["published"] == {
        form: f"{hub.url}/{name}" for form, name in names.items()
    }
    for form, name in names.items():
        record = read_json(tmp_path / "run" / "stages" / form / "published.json")
        assert {file: one["sha256"] for file, one in record["files"].items()} == hub.main(name)
        assert hub.repos[name].private
    text = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*.json"))
    assert TOKEN not in text + first.stderr + again.stderr
