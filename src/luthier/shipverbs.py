"""The verbs by which a model leaves the machine: `export` into a folder, `publish` to the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.errors import RequestError
from luthier.exporting.kinds import ExportRequest
from luthier.recipefile import read_tree, resolve, stage_recipes
from luthier.rundir import RunDir


def export(request: ExportRequest) -> dict[str, Any]:
    """Make the folder of a finished stage's model. Returns `export` (its path), `to`, `notes` and the receipt.

    Raises RequestError for what cannot be exported so, ExistsError for a folder that is there, LuthierError where a
    merged model is too far from what was trained.
    """
    from luthier.exporting.export import export as make

    return make(request)


@dataclass(frozen=True)
class PublishOptions:
    """What `luthier publish` is told. What is left open is as the recipe's `publish` has it."""

    run: Path
    stage: str = ""
    """Empty: every finished stage, each in its own repository."""
    repo: str = ""
    private: bool | None = None
    update: bool = False
    revision: str = "main"
    token_env: str = ""
    receipt: Path | None = None


def publish(options: PublishOptions) -> dict[str, Any]:
    """Publish finished stages. Returns, by stage, what published.json holds.

    Raises RequestError where there is nothing to publish or no name for it; all names are checked before the first
    byte is sent.
    """
    from luthier.publishing.publish import publish as send
    from luthier.publishing.request import PublishRequest

    run = RunDir.open(options.run)
    stages = stage_recipes(resolve(read_tree(run.recipe), []))
    names = [options.stage] if options.stage else [name for name in stages if run.stage(name).finished]
    if not names or names[0] not in stages:
        known = ", ".join(stages)
        raise RequestError(
            f"{options.run}: {f'there is no stage {options.stage}' if options.stage else 'no stage is finished'}",
            f"let the run finish, or name one of its stages: {known}",
        )
    if len(names) > 1 and (options.repo or options.receipt):
        raise RequestError(
            f"--repo and --receipt: the run has {len(names)} finished stages", f"name one: --stage {names[-1]}"
        )
    requests = {}
    for name in names:
        recipe = stages[name]
        if options.repo:
            recipe = replace(recipe, publish=replace(recipe.publish, repo=options.repo))
        asked = PublishRequest.of(recipe)
        requests[name] = replace(
            asked,
            private=asked.private if options.private is None else options.private,
            update=asked.update or options.update,
            revision=options.revision,
            token_env=options.token_env or asked.token_env,
            receipt=options.receipt,
        )
        requests[name].check()
    repos = [request.repo for request in requests.values()]
    if len(set(repos)) < len(repos):
        raise RequestError(
            f"publish.repo: {len(repos)} stages would go to {', '.join(sorted(set(repos)))}, each in place of another",
            "put a variable that differs into publish.repo, such as ${form_id}; or give --stage and --repo",
        )
    return {"published": {name: send(run, name, request) for name, request in requests.items()}}
