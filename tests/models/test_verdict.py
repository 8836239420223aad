"""A verdict does not depend on its company, on accumulation or on the cache, and it comes from the sound."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from luthier.models.adapters import bare
from luthier.models.batches import Batch, plan_micros
from luthier.models.learner import StepWeights
from luthier.models.losses import ordinal_log_probabilities
from luthier.models.verdict import VerdictHead, grade_levels

READOUTS = ("tokens", "head", "ordinal")


@pytest.fixture(params=READOUTS)
def readout(request) -> str:
    return str(request.param)


def test_company_does_not_change_a_probability(bench, readout):
    one = bench({"task.readout": readout, "task.event": "panel", "model.learned_tokens.soft_prompt": 2})
    one.train(3)
    one.model.eval()
    alone = torch.cat([one.model.verdicts(one.batch([i])).p_pass_B for i in range(8)])
    assert float(alone.max() - alone.min()) > 1e-3
    assert len({e.media_length for e in one.examples}) == 4
    for size in (2, 3, 8):
        for order in (list(range(8)), [5, 2, 7, 0, 3, 6, 1, 4]):
            together = torch.empty(8, dtype=torch.float64)
            for start in range(0, 8, size):
                rows = order[start : start + size]
                together[rows] = one.model.verdicts(one.batch(rows)).p_pass_B
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def step_loss(one, micro_batch_size: int, ranking: bool) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of one optimizer step over all rows, accumulated over micro-batches."""
    micros = plan_micros(range(len(one.examples)), one.examples, micro_batch_size, 4.0 if ranking else None)
    group = [one.batch(micro.rows, micro.pairs) for micro in micros]
    weights = one.model.step_weights(group)
    assert weights.main == len(one.examples)
    assert bool(weights.pairs) == ranking
    one.model.zero_grad()
    total = 0.0
    for batch in group:
        loss, _ = one.model.loss(batch, weights)
        loss.backward()
        total += float(loss.detach())
    gradients = [p.grad.reshape(-1) for p in one.model.parameters() if p.requires_grad and p.grad is not None]
    return total, torch.cat(gradients)


@pytest.mark.parametrize("ranking", [False, True])
def test_accumulation_does_not_change_loss_or_gradient(bench, readout, ranking):
    one = bench({"task.readout": readout, "task.ranking_weight": 0.5, "task.mass_weight": 0.3}, rows=16)
    one.train(2)
    whole, gradient = step_loss(one, 16, ranking)
    assert float(gradient.norm()) > 1e-3
    for size in (8, 4, 2) if ranking else (4, 1):
        loss, split = step_loss(one, size, ranking)
        assert loss == pytest.approx(whole, abs=1e-6)
        assert float((split - gradient).norm() / gradient.norm()) < 1e-5


def test_cached_and_live_sound_give_one_loss(bench, readout):
    cached, live = (bench({"task.readout": readout}, frozen=frozen) for frozen in (True, False))
    weights = StepWeights(8, 0.0)
    assert cached.batch().media[0].encoded
    assert not live.batch().media[0].encoded
    losses = [float(one.model.loss(one.batch(), weights)[0].detach()) for one in (cached, live)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_cached_and_live_sound_train_alike(bench):
    cached, live = (bench(frozen=frozen) for frozen in (True, False))
    for one in (cached, live):
        one.train(5, learning_rate=1e-3)
    scores = [one.model(one.batch())[0].detach() for one in (cached, live)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)


def test_only_the_readout_position_goes_through_the_head(bench):
    one = bench()
    seen = []
    bare(one.model.language_model).get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    one.model.loss(one.batch(), StepWeights(8.0, 0.0))
    assert seen == [(8, 32)]


def test_what_stands_after_the_readout_is_not_read(bench, readout):
    one = bench({"task.readout": readout})
    batch = one.batch()
    garbled = dataclasses.replace(batch, input_ids_BL=batch.input_ids_BL.clone())
    beyond = torch.arange(batch.input_ids_BL.shape[1])[None] > batch.readout_B[:, None]
    assert bool(beyond.any())
    garbled.input_ids_BL[beyond] = 70
    with torch.no_grad():
        torch.testing.assert_close(one.model(garbled)[0], one.model(batch)[0], rtol=0, atol=0)


def test_what_stands_before_it_is_read(bench, readout):
    one = bench({"task.readout": readout})
    batch = one.batch()
    garbled = dataclasses.replace(batch, input_ids_BL=batch.input_ids_BL.clone())
    garbled.input_ids_BL[:, 5] = 70
    with torch.no_grad():
        assert bool(((one.model(garbled)[0] - one.model(batch)[0]).abs() > 1e-6).all())


@pytest.mark.parametrize("changes", [{}, {"model.learned_tokens.soft_prompt": 2}, {"model.tuning": "full"}])
def test_logits_are_those_of_the_librarys_own_forward(bench, changes):
    one = bench(changes, frozen=False)
    one.train(2)
    with torch.no_grad():
        score, state = one.model(one.batch())
        ours = bare(one.model.language_model).get_output_embeddings()(state)
        torch.testing.assert_close(score, ours[:, one.model.answers[0]] - ours[:, one.model.answers[1]])
        for row, example in enumerate(one.examples):
            mel_TF = one.base.family.mel(one.base.extractor, one.store.waveform(example.media))
            theirs = one.model.language_model(
                input_ids=torch.tensor([example.ids]),
                audio_input_features=mel_TF[None],
                audio_embed_sizes=torch.tensor([example.media_length]),
            ).logits[0, -1]
            torch.testing.assert_close(ours[row], theirs, rtol=0, atol=1e-5)


def test_sound_sizes_are_those_of_the_librarys_extractor(bench):
    one = bench(rows=4)
    for example in one.examples:
        wave = one.store.waveform(example.media)
        padded = torch.zeros(-(-len(wave) // 10_240) * 10_240)
        padded[: len(wave)] = torch.tensor(wave)
        found = one.base.extractor([padded.numpy()], sampling_rate=16_000, return_tensors="pt")
        assert int(found["audio_embed_sizes"][0]) == example.media_length


def test_the_head_begins_as_the_answer_tokens(bench):
    tokens, head = bench({"task.readout": "tokens"}), bench({"task.readout": "head"})
    with torch.no_grad():
        scores = [one.model(one.batch())[0] for one in (tokens, head)]
    assert float(scores[0].std()) > 1e-4
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


def test_the_ordinal_head_begins_at_the_recorded_levels():
    torch.manual_seed(0)
    head, counts = VerdictHead(4, 9), [3, 5, 8, 13, 20, 16, 9, 4, 2]
    head.initialise(torch.zeros(4), counts)
    p = ordinal_log_probabilities(torch.zeros(1), head.thresholds()).detach().exp()[0]
    expected = (torch.tensor(counts) + 0.5) / (sum(counts) + 4.5)
    assert float((p - expected).abs().max()) < 1e-3  # half a count is added to each level, none to the total twice
    assert bool((head.thresholds().diff() > 0).all())


def test_thresholds_stay_in_order_where_levels_are_missing():
    head = VerdictHead(4, 9)
    head.initialise(torch.ones(4), [0, 0, 0, 7, 0, 0, 1, 0, 0])
    assert bool(torch.isfinite(head.thresholds()).all())
    assert bool((head.thresholds().diff() > 0).all())


def test_ordinal_events_are_sums_over_grades(bench):
    one = bench({"task.readout": "ordinal", "task.event": "rater"})
    one.train(3)
    with torch.no_grad():
        score, _ = one.model(one.batch())
        p_level = ordinal_log_probabilities(score, one.model.head.thresholds()).double().exp()
    grades = torch.tensor(grade_levels(one.recipe.task.scale), dtype=torch.float64)
    found = one.model.verdicts(one.batch())

    def at_least(grade: float) -> torch.Tensor:
        return p_level[:, grades >= grade].sum(1)

    torch.testing.assert_close(found.p_panel_B, at_least(4.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.p_rater_B, (at_least(3.5) + at_least(4.0)) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.grade_mean_B, p_level @ grades, rtol=0, atol=1e-5)
    assert torch.equal(found.p_pass_B, found.p_rater_B)
    one.recipe.task.event = "panel"
    assert torch.equal(one.model.verdicts(one.batch()).p_pass_B, found.p_panel_B)


def test_verdicts_are_float64_probabilities(bench, readout):
    one = bench({"task.readout": readout, "task.event": "panel"})
    p = one.model.verdicts(one.batch()).p_pass_B
    assert p.dtype is torch.float64
    assert bool(((p > 0) & (p < 1)).all())
    assert not p.requires_grad


def other_sound(batch: Batch) -> Batch:
    groups = [dataclasses.replace(g, values=g.values.roll(3, 1) * 1.1) for g in batch.media]
    return dataclasses.replace(batch, media=groups)


def test_ours_hears(bench, readout):
    one = bench({"task.readout": readout, "model.learned_tokens.soft_prompt": 2}, frozen=False)
    batch = one.batch()
    with torch.no_grad():
        assert bool(((one.model(batch)[0] - one.model(other_sound(batch))[0]).abs() > 1e-6).all())


def test_prompt_tuning_of_peft_is_deaf(bench):
    """Why soft prompts are tokens here: PEFT passes `inputs_embeds`, and the family then leaves the sound out."""
    one = bench(rows=2, frozen=False)
    plain = one.base.model
    example = one.examples[0]
    mel_TF = one.store.load(example.media)

    def logits(model, mel) -> torch.Tensor:
        inputs = {
            "input_ids": torch.tensor([example.ids]),
            "attention_mask": torch.ones(1, len(example.ids)),
            "audio_input_features": mel[None],
            "audio_embed_sizes": torch.tensor([example.media_length]),
        }
        with torch.no_grad():
            return model(**inputs).logits[0, -1]

    changed = mel_TF.roll(5, 0) * 0.5
    assert float((logits(plain, mel_TF) - logits(plain, changed)).abs().max()) > 1e-3
    prompted = get_peft_model(plain, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    assert torch.equal(logits(prompted, mel_TF), logits(prompted, changed))


def test_dropped_out_training_is_reproducible_and_evaluation_is_not_random(bench):
    one = bench({"model.lora.dropout": 0.5})
    one.train(2)
    one.model.eval()
    with torch.no_grad():
        still = [one.model(one.batch())[0] for _ in range(2)]
        one.model.train()
        moved = one.model(one.batch())[0]
    assert torch.equal(still[0], still[1])
    assert not torch.equal(still[0], moved)


@pytest.mark.parametrize("readout", ["tokens", "head", "ordinal"])
def test_a_bfloat16_base_is_read_out_in_float32(bench, readout):
    """bfloat16 has 8 bits of mantissa: probabilities read in it fall on steps, and AUROC is full of ties."""
    from luthier.runtime.devices import Devices

    one = bench({"model.dtype": "bfloat16", "task.readout": readout})
    devices = Devices("bfloat16")
    with devices.precision.autocast(), torch.no_grad():
        score, state = one.model(one.batch())
    assert score.dtype == torch.float32
    assert not torch.equal(score, score.to(torch.bfloat16).float())
    assert state.dtype == torch.bfloat16
