"""What is learned is the assistant's words and its stop token, with every template, and otherwise a row is refused."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.errors import ChatError, LuthierError, RequestError, SourceError
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.supervise import Rendered, render, render_rows
from luthier.schema import Message, Part, Row
from support.templates import FAMILIES, LLAMA3, MISTRAL, QWEN, QWEN_VL, STOPLESS, chat, family, tokenizer_of

TOKENIZERS = {name: family(name) for name in FAMILIES}
THREE_TURNS = chat(
    ("user", "Where is the river?"),
    ("assistant", "Near the house."),
    ("user", "How far is it?"),
    ("assistant", "Two hours,\n\non foot."),
    ("user", "Thank you."),
    ("assistant", "Yes"),
)


def learned_runs(tokenizer, rendered: Rendered) -> list[str]:
    """The decoded text of every run of learned tokens."""
    runs: list[list[int]] = []
    for at, (token, learned) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        if learned:
            if not at or not rendered.mask[at - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoded_mask_is_every_answer_and_its_stop_token(name):
    tokenizer, stop = TOKENIZERS[name], FAMILIES[name][2]
    rendered = render(tokenizer, THREE_TURNS)
    runs = learned_runs(tokenizer, rendered)
    if name == "thinking":  # the template puts an empty thought before the last answer
        runs[-1] = runs[-1].removeprefix("<think>\n\n</think>\n\n")
    assert [run.strip() for run in runs] == [
        f"{words}{stop}" for words in ("Near the house.", "Two hours,\n\non foot.", "Yes")
    ]
    assert rendered.unstopped == 0
    assert len(rendered.ids) == len(rendered.mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_are_those_of_the_library(name):
    """The second implementation: transformers' own rendering and tokenising in one call."""
    tokenizer = TOKENIZERS[name]
    turns = [ChatTemplate.of(tokenizer).turn(message) for message in THREE_TURNS.messages]
    assert list(render(tokenizer, THREE_TURNS).ids) == tokenizer.apply_chat_template(turns)["input_ids"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if "marked" not in name])
def test_a_lesson_begins_with_the_ids_that_the_model_is_asked_with(name):
    tokenizer = TOKENIZERS[name]
    rendered = render(tokenizer, THREE_TURNS)
    turns = [ChatTemplate.of(tokenizer).turn(message) for message in THREE_TURNS.messages]
    begins = [at for at, learned in enumerate(rendered.mask) if learned and not rendered.mask[at - 1]]
    assert rendered.proof == "ids"
    for number, begin in zip((1, 3, 5), begins, strict=True):
        asked = tokenizer.apply_chat_template(turns[:number], add_generation_prompt=True)["input_ids"]
        assert list(rendered.ids[:begin]) == asked


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][1]])
def test_the_first_token_is_there_once(name):
    tokenizer = TOKENIZERS[name]
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # it would add one of its own
    assert render(tokenizer, THREE_TURNS).ids.count(tokenizer.bos_token_id) == 1


def test_a_template_that_writes_the_first_token_twice_is_refused():
    with pytest.raises(ChatError, match="double_bos"):
        render(tokenizer_of("{{ bos_token }}" + LLAMA3, "<|bos|>"), THREE_TURNS)


def test_marks_that_leave_the_stop_token_out_are_completed_and_blanks_behind_it_are_not_learned():
    for name in ("marked", "marked_wide"):
        rendered = render(TOKENIZERS[name], THREE_TURNS)
        stop = TOKENIZERS[name].convert_tokens_to_ids(FAMILIES[name][2])
        ends = [i for i, on in enumerate(rendered.mask) if on and not (*rendered.mask, False)[i + 1]]
        assert rendered.proof == "marks"
        assert [rendered.ids[end] for end in ends] == [stop] * 3


def test_marks_are_read_alike_by_the_library_and_by_us():
    tokenizer = TOKENIZERS["marked_wide"]
    turns = [ChatTemplate.of(tokenizer).turn(message) for message in THREE_TURNS.messages]
    theirs = tokenizer.apply_chat_template(turns, return_assistant_tokens_mask=True)["assistant_masks"]
    ours = render(tokenizer, THREE_TURNS).mask
    newline = tokenizer.encode("\n")[0]
    ids = render(tokenizer, THREE_TURNS).ids
    assert all(
        own == bool(their) or ids[at] == newline for at, (own, their) in enumerate(zip(ours, theirs, strict=True))
    )


def test_a_template_for_tools_without_marks_is_proved_by_ids():
    tokenizer = tokenizer_of(QWEN)
    tokenizer.chat_template = {"default": FAMILIES["marked_wide"][0], "tool_use": QWEN}
    tools = json.dumps({"tools": [{"type": "function", "function": {"name": "add"}}]})
    asked = chat(("user", "2 and 3?"), ("assistant", "Five."), more=tools)
    plain = chat(("user", "2 and 3?"), ("assistant", "Five."))
    assert [render(tokenizer, row).proof for row in (asked, plain)] == ["ids", "marks"]
    assert all(learned_runs(tokenizer, render(tokenizer, row)) == ["Five.<|im_end|>"] for row in (asked, plain))


def test_tokens_that_begin_words_with_a_mark_keep_their_places():
    """SentencePiece-like pieces, where a blank belongs to the word after it and texts begin with one."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    texts = [message.text for message in THREE_TURNS.messages]
    alphabet = sorted(set("".join(texts) + "[/INST]") - {" "} | {"▁"})
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=MISTRAL
    )
    rendered = render(tokenizer, THREE_TURNS)
    assert rendered.proof == "ids"
    assert [rendered.text[start:end].strip() for start, end in rendered.learned] == [
        "Near the house.</s>",
        "Two hours,\n\non foot.</s>",
        "Yes</s>",
    ]


def test_an_answer_that_merges_with_its_prompt_is_masked_by_characters():
    """`: ` and `...` stay apart in the prompt and join in the lesson, so the prompt's ids are not its beginning."""
    tokenizer = tokenizer_of(
        "{% for m in messages %}{{ m.role }} t{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant t{% endif %}"
    )
    rendered = render(tokenizer, chat(("user", "What?"), ("assistant", "he answer")))
    assert rendered.proof == "characters"
    (run,) = learned_runs(tokenizer, rendered)
    assert run.strip() == "the answer<|im_end|>"  # the token of both sides is learned whole


def test_a_system_turn_that_moves_to_the_last_question_is_found_by_stand_ins():
    row = chat(("system", "Be brief."), *((message.role, message.text) for message in THREE_TURNS.messages))
    tokenizer = TOKENIZERS["mistral"]
    rendered = render(tokenizer, row)
    assert [run.strip() for run in learned_runs(tokenizer, rendered)] == [
        "Near the house.</s>",
        "Two hours,\n\non foot.</s>",
        "Yes</s>",
    ]
    assert rendered.proof == "characters"


def test_a_template_whose_answers_cannot_be_found_is_refused_by_name():
    tokenizer = tokenizer_of(
        "{% for m in messages %}<|start|>{% if m.role == 'assistant' %}{{ m.content | upper }}{% else %}"
        "{{ m.content }}{% endif %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>please:{% endif %}"
    )
    tokenizer.name_or_path = "someone/loud-model"
    with pytest.raises(ChatError, match=r"mask_unproved.*someone/loud-model") as caught:
        render(tokenizer, THREE_TURNS)
    assert "generation" in caught.value.mend


def test_words_behind_the_last_answer_that_depend_on_it_are_no_proof():
    tokenizer = tokenizer_of(
        "{% for m in messages %}<|start|>{{ m.content }}<|eot|>{% endfor %}{{ messages[-1].content | length }}"
        "{% if add_generation_prompt %}<|start|>please:{% endif %}"
    )
    with pytest.raises(ChatError, match="mask_unproved"):
        render(tokenizer, THREE_TURNS)


def test_thoughts_that_the_template_removes_leave_the_rest_learned():
    tokenizer = TOKENIZERS["thinking"]
    row = chat(("user", "a?"), ("assistant", "<think>hm</think>First."), ("user", "b?"), ("assistant", "Last."))
    assert learned_runs(tokenizer, render(tokenizer, row)) == [
        "First.<|im_end|>",
        "<think>\n\n</think>\n\nLast.<|im_end|>",
    ]


def test_an_answer_without_a_stop_token_is_counted():
    tokenizer = tokenizer_of(STOPLESS)
    rendered = render(tokenizer, THREE_TURNS)
    assert rendered.unstopped == 3
    assert [run.strip() for run in learned_runs(tokenizer, rendered)] == [
        "Near the house.",
        "Two hours,\n\non foot.",
        "Yes",
    ]


def test_a_row_without_an_answer_teaches_nothing():
    rendered = render(TOKENIZERS["qwen"], chat(("user", "Hello?")))
    assert (any(rendered.mask), rendered.learned, rendered.proof) == (False, (), "none")


def test_an_answer_before_any_question_is_learned():
    rendered = render(TOKENIZERS["llama3"], chat(("assistant", "Hello."), ("user", "Hi."), ("assistant", "Well?")))
    assert learned_runs(TOKENIZERS["llama3"], rendered) == ["Hello.<|eot|>", "Well?<|eot|>"]


def test_calls_of_tools_are_learned_and_their_arguments_are_quoted_once():
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    messages = (
        Message("user", (Part("text", "2 and 3?"),)),
        Message("assistant", (), json.dumps({"tool_calls": [call]})),
        Message("tool", (Part("text", "5"),), '{"name":"add"}'),
        Message("assistant", (Part("text", "Five."),)),
    )
    row = chat(("user", ""), more=json.dumps({"tools": [tool]}))
    row = Row(row.id, messages, row.target, row.group, row.split, row.provenance, row.more)
    rendered = render(TOKENIZERS["qwen"], row)
    assert learned_runs(TOKENIZERS["qwen"], rendered) == ['<call>add {"a": 2}</call><|im_end|>', "Five.<|im_end|>"]
    assert '"parameters": {}' in rendered.text


def test_a_null_key_never_reaches_a_template():
    """With `image: None` on a text part this template writes a picture where the words were."""
    tokenizer = TOKENIZERS["qwen_vl"]
    bad = [{"role": "user", "content": [{"type": "text", "text": "hi", "image": None}]}]
    assert "hi" not in tokenizer.apply_chat_template(bad, tokenize=False)  # the template does have the fault
    message = Message.from_json({"role": "user", "content": [{"type": "text", "text": "hi", "image": None}], "x": None})
    found = ChatTemplate.of(tokenizer).turn(message)
    assert found == {"role": "user", "content": [{"type": "text", "text": "hi"}]}


def test_how_a_template_wants_its_turns_is_found_by_trying():
    facts = {name: ChatTemplate.of(tokenizer) for name, tokenizer in TOKENIZERS.items()}
    assert (facts["qwen"].takes_strings, facts["qwen"].takes_parts) == (True, False)
    assert (facts["qwen_vl"].takes_strings, facts["qwen_vl"].takes_parts) == (False, True)
    assert facts["qwen_vl"].placeholders == {"image": "<|vision|><|pad|><|/vision|>"}
    toy = ChatTemplate.of(load_tokenizer("toy:llama"))
    assert (toy.takes_strings, toy.takes_parts) == (True, True)
    assert toy.placeholders == {kind: f"<|{kind}|>" for kind in ("image", "audio", "video")}


def test_media_are_refused_by_a_template_of_text_alone():
    row = chat(("user", [Part("image", media="sha256:a"), Part("text", "What?")]), ("assistant", "A cat."))
    with pytest.raises(ChatError, match="media_placeholders"):
        render(TOKENIZERS["qwen"], row)
    assert render(TOKENIZERS["qwen_vl"], row).text.count("<|pad|>") == 1


def test_refused_rows_stand_in_their_places_among_the_others():
    bad = chat(("system", "Be brief."), ("user", "Hi."), ("assistant", "Hi."))
    found = render_rows(ChatTemplate.of(TOKENIZERS["gemma"]), [bad, THREE_TURNS, bad])
    assert [type(one) for one in found] == [ChatError, Rendered, ChatError]
    assert "System role not supported" in str(found[0])
    assert found[1] == render(TOKENIZERS["gemma"], THREE_TURNS)


def test_a_template_cannot_reach_out_of_its_sandbox():
    tokenizer = tokenizer_of("{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}")
    with pytest.raises(LuthierError):
        render(tokenizer, THREE_TURNS)


def test_a_tokenizer_without_a_template_is_refused_with_a_mend():
    tokenizer = tokenizer_of(QWEN)
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match="no chat template") as caught:
        render(tokenizer, THREE_TURNS)
    assert caught.value.mend


def test_tokenizers_load_from_toys_and_folders_and_not_from_nowhere(tmp_path):
    tokenizer_of(MISTRAL, "<|bos|>", "</s>").save_pretrained(tmp_path)
    assert render(load_tokenizer(str(tmp_path)), THREE_TURNS).ids == render(TOKENIZERS["mistral"], THREE_TURNS).ids
    assert learned_runs(toy := load_tokenizer("toy:llama"), render(toy, THREE_TURNS))[0] == "Near the house.<|end|>"
    with pytest.raises(RequestError, match="no such toy"):
        load_tokenizer("toy:viola")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path / "empty"))
    assert "model.base" in caught.value.mend


def test_the_template_of_a_processor_is_used_where_the_tokenizer_has_none(tmp_path):
    tokenizer = tokenizer_of(QWEN_VL)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_VL}))
    assert load_tokenizer(str(tmp_path)).chat_template == QWEN_VL


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(set(FAMILIES) - {"thinking"})), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_any_words_are_learned_whole_or_the_row_is_refused(name, exchanges):
    tokenizer, stop = TOKENIZERS[name], FAMILIES[name][2]
    row = chat(*(turn for asked, said in exchanges for turn in (("user", asked), ("assistant", said))))
    found = render_rows(ChatTemplate.of(tokenizer), [row])[0]
    if isinstance(found, ChatError):
        assert found.reason == "mask_unproved"
        return
    learned = [found.text[start:end] for start, end in found.learned]
    assert len(learned) == len(exchanges)
    for (_, said), text in zip(exchanges, learned, strict=True):
        words = re.escape(said.strip())
        assert re.search(f"{words}\\s*{re.escape(stop)}$", text.rstrip()), (said, text)
