"""A chat row as token ids, and which of them are learned: the assistant's words and the token that ends them.

Where a template marks what is generated, its marks are used. Elsewhere every answer begins where the prompt that
asks for it ends, and that is proved: the prompt's token ids are the first ids of the whole row. Where tokens
merge across that border the characters decide; where the template writes earlier turns differently, it is
rendered once more with stand-ins for the answers. A row of which none of this holds is refused, never guessed.
A row that is one turn of the assistant and answers nothing is a text: it goes past the template, as a base reads text.
Media are spelled out (`senses/spelling`) between the template and the tokenizer; places of answers move with them.
This module knows nothing of batches, padding, tensors and length limits: nothing is cut here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import ChatError
from luthier.models.chat import ChatTemplate, Written, tools_of
from luthier.schema import Message, Row

if TYPE_CHECKING:  # torch comes with them, and text alone needs none
    from luthier.models.senses.spelling import Speller
    from luthier.models.senses.supply import Medium

Proof = Literal["marks", "ids", "characters", "text", "none"]
_STAND_IN = "Zq\ue0a7{}\ue0a7qZ"
"""Put in place of answers to see what a template writes around them; from the private use area of Unicode."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as the model reads it. `ids` and `mask` have one entry a token, `mask` is true where it is learned."""

    text: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    learned: tuple[tuple[int, int], ...]
    """The learned places of `text`, in characters (start, end), in order."""
    proof: Proof
    """How the beginnings of the answers are known: the template's marks, equal token ids, or characters. Of a text
    nothing need be known: all of it is learned."""
    answers: tuple[tuple[int, int], ...] = ()
    """The learned places in tokens (begin, end), one an assistant's turn that has any, stop token included."""
    unstopped: int = 0
    """Assistant turns that no stop token ends: a model that learns from them does not learn to stop."""
    media: tuple[Medium, ...] = ()
    """In the order of their slots among the ids; empty where no speller was given."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row between its text and its ids. `starts` are the first characters of the answers."""

    row: Row
    turns: list[dict[str, Any]]
    tools: Any
    written: Written
    prompts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    is_text: bool = False
    """`written` holds the words of a text, without the tokens that begin and end it."""
    media: tuple[Medium, ...] = ()


def render(tokenizer: Any, row: Row) -> Rendered:
    """One row through a tokenizer's chat template. Raises ChatError (a row) or RequestError (the template)."""
    found = render_rows(ChatTemplate.of(tokenizer), [row])[0]
    if isinstance(found, ChatError):
        raise found
    return found


def render_rows(
    template: ChatTemplate, rows: Sequence[Row], speller: Speller | None = None
) -> list[Rendered | ChatError]:
    """Rows in order, tokenised together; a row that cannot be rendered gives its ChatError. No row is cut.

    The ids are those of the rendered text alone, so a template that writes the first token (BOS) has it once,
    whatever the tokenizer would add by itself. Without a speller, media stay what the template writes for them.
    """
    drafts: list[_Draft | ChatError] = []
    for row in rows:
        try:
            drafts.append(_write(template, row) if speller is None else _write_media(template, row, speller))
        except ChatError as error:
            drafts.append(error)
    good = [draft for draft in drafts if isinstance(draft, _Draft)]
    if not good:
        return [draft for draft in drafts if isinstance(draft, ChatError)]
    encoded = template.tokenizer(
        [draft.written.text for draft in good], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    prompts = [prompt for draft in good for prompt in draft.prompts]
    # The prompts are tokenised only to compare: what a model is asked with must be how its lesson begins.
    asked = template.tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"] if prompts else []
    found: list[Rendered | ChatError] = []
    number = at = 0
    for draft in drafts:
        if isinstance(draft, ChatError):
            found.append(draft)
            continue
        ids, offsets = encoded["input_ids"][number], encoded["offset_mapping"][number]
        wanted = asked[at : at + len(draft.prompts)]
        number, at = number + 1, at + len(draft.prompts)
        try:
            if speller is not None:
                speller.check(ids, draft.media)
            if draft.is_text:
                found.append(_whole_text(template, draft.written.text, ids))
            else:
                found.append(_Masker(template, draft, ids, offsets).masked(wanted))
        except ChatError as error:
            found.append(error)
    return found


def _write(template: ChatTemplate, row: Row) -> _Draft:
    """Text of a row, and where its answers begin."""
    if _is_text(row):
        return _Draft(row, [], None, Written(row.messages[0].text), is_text=True)
    turns, tools = [template.turn(message) for message in row.messages], tools_of(row)
    draft = _Draft(row, turns, tools, template.write(turns, tools))
    answers = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
    if not answers or draft.written.marked:
        return draft
    text = draft.written.text
    prompts: list[str] = []
    for number in answers:
        try:
            prompts.append(template.write(turns[:number], tools, prompt=True).text)
        except ChatError:  # no turns before the first answer, or a half conversation that the template refuses
            break
    if len(prompts) == len(answers) and all(text.startswith(prompt) for prompt in prompts):
        return replace(draft, prompts=tuple(prompts), starts=tuple(len(prompt) for prompt in prompts))
    return replace(draft, starts=_starts_by_stand_ins(template, draft, answers))


def _write_media(template: ChatTemplate, row: Row, speller: Speller) -> _Draft:
    """The same with the row's media spelled out."""
    told = speller.told(row.messages, template)
    draft = _write(template, replace(row, messages=told.messages))
    if draft.is_text:
        return draft
    whole = speller.spell(draft.written.text, told)
    generated = tuple((whole.place(begin), whole.place(end)) for begin, end in draft.written.generated)
    return replace(
        draft,
        written=Written(whole.text, generated, draft.written.marked),
        prompts=tuple(speller.spell(prompt, told, whole=False).text for prompt in draft.prompts),
        starts=tuple(map(whole.place, draft.starts)),
        media=told.media,
    )


def _is_text(row: Row) -> bool:
    """Whether a row is one text of the assistant, which no question and no tool comes before."""
    if len(row.messages) != 1 or row.messages[0].role != "assistant" or tools_of(row):
        return False
    (message,) = row.messages
    return all(part.type == "text" for part in message.content) and '"tool_calls"' not in message.more


def _whole_text(template: ChatTemplate, words: str, ids: list[int]) -> Rendered:
    """A text between the tokens that begin and end texts. All but the first of them (BOS) is learned.

    The tokens between are those that the tokenizer gives the words by themselves, so that the lesson begins as any
    text does that the base is asked to go on with.
    """
    if not ids:
        return Rendered("", (), (), (), "text")
    first = [template.begins] if template.begins is not None else []
    last = [template.ends] if template.ends is not None else []
    before, after = ("".join(template.tokenizer.convert_ids_to_tokens(side)) for side in (first, last))
    text, whole, begin = f"{before}{words}{after}", (*first, *ids, *last), len(first)
    mask = (*[False] * begin, *[True] * (len(whole) - begin))
    return Rendered(text, whole, mask, ((len(before), len(text)),), "text", ((begin, len(whole)),), int(not last))


def _starts_by_stand_ins(template: ChatTemplate, draft: _Draft, answers: list[int]) -> tuple[int, ...]:
    """Where answers begin, by what the template writes around stand-ins.

    The proof: the pieces around the stand-ins, with the answers between them, are the text of the row.
    """
    stand_ins = [_STAND_IN.format(number) for number in answers]
    turns = list(draft.turns)
    for number, word in zip(answers, stand_ins, strict=True):
        content = word if isinstance(turns[number]["content"], str) else [{"type": "text", "text": word}]
        turns[number] = {**turns[number], "content": content}
    rest = template.write(turns, draft.tools).text
    text, at, starts = draft.written.text, 0, []
    for number, word in zip(answers, stand_ins, strict=True):
        before, _, rest = rest.partition(word)
        texts = [part.text or "" for part in draft.row.messages[number].content if part.type == "text"]
        joined = ("\n" if isinstance(draft.turns[number]["content"], str) else "").join(texts)
        at += len(before)
        spelling = next((one for one in (joined, joined.strip()) if text.startswith(one, at)), None)
        if spelling is None or not text.startswith(before, at - len(before)):
            raise _unproved(template, number)
        starts.append(at)
        at += len(spelling)
    if text[at:] != rest:
        raise _unproved(template, answers[-1])
    return tuple(starts)


def _unproved(template: ChatTemplate, number: int) -> ChatError:
    return ChatError(
        "mask_unproved",
        f"the template of {template.name} writes message {number + 1} so that its beginning cannot be found",
        "give the tokenizer a chat template with {% generation %} around the assistant's words",
    )


class _Masker:
    """Finds the learned tokens of one row. Offsets are (start, end) in characters, one a token."""

    def __init__(self, template: ChatTemplate, draft: _Draft, ids: list[int], offsets: list[tuple[int, int]]) -> None:
        self.template, self.draft, self.ids, self.offsets = template, draft, ids, offsets
        self.text = draft.written.text
        self.starts = [start for start, _ in offsets]
        self.ends = [end for _, end in offsets]
        bos = template.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ChatError(
                "double_bos",
                f"the template of {template.name} writes the first token twice",
                "take one of the two out of the template",
            )

    def masked(self, asked: list[list[int]]) -> Rendered:
        """The row with its mask. `asked` holds the ids of the prompts, where they were found in the text."""
        answers = [number for number, item in enumerate(self.draft.row.messages) if item.role == "assistant"]
        proof: Proof = "none"
        spans: list[tuple[int, int]] = []
        unstopped = 0
        if self.draft.written.marked:
            proof = "marks"
            for start, end in self.draft.written.generated:
                if end <= start:
                    continue
                span, stopped = self._close(self._first(start), self._after(end))
                spans.append(span)
                unstopped += not stopped
        elif self.draft.starts:
            begins, proof = self._begins(asked)
            edges = pairwise([*self.draft.starts, len(self.text)])
            for number, begin, (start, limit) in zip(answers, begins, edges, strict=True):
                span, stopped = self._end(number, begin, start, limit)
                spans.append(span)
                unstopped += not stopped
        mask = [False] * len(self.ids)
        for begin, end in spans:
            mask[begin:end] = [True] * (end - begin)
        answered = tuple((begin, end) for begin, end in spans if end > begin)
        learned = tuple((self.starts[begin], self.ends[end - 1]) for begin, end in answered)
        media = self.draft.media
        return Rendered(self.text, tuple(self.ids), tuple(mask), learned, proof, answered, unstopped, media)

    def _begins(self, asked: list[list[int]]) -> tuple[list[int], Proof]:
        """First token of every answer: after the prompt's ids where they are equal, else by characters."""
        if asked and all(self.ids[: len(prompt)] == prompt for prompt in asked):
            return [len(prompt) for prompt in asked], "ids"
        return [self._first(start) for start in self.draft.starts], "characters"

    def _words_end(self, answer: Message, start: int, limit: int) -> tuple[int, bool]:
        """The character after an answer's last word, and whether all of its words are there as they were given."""
        at, whole = start, True
        for part in answer.content:
            words = (part.text or "").strip() if part.type == "text" else ""
            place = self.text.find(words, at, limit)
            whole = whole and place >= 0
            at = place + len(words) if place >= 0 else at
        return at, whole

    def _end(self, number: int, begin: int, start: int, limit: int) -> tuple[tuple[int, int], bool]:
        """An answer's tokens, and whether its stop token is among them; `limit` is where the next answer begins."""
        answer = self.draft.row.messages[number]
        words_end, whole = self._words_end(answer, start, limit)
        stop, last = self.template.stop, bisect_left(self.starts, limit)
        place = next((at for at in range(self._first(words_end), last) if self.ids[at] == stop), None)
        if place is not None:
            between = self.text[words_end : self.starts[place]].strip()
            # Calls of tools follow the words; words that the template rewrote end at the first stop.
            if not between or answer.more or not whole:
                return (begin, place + 1), True
        if not whole:
            raise _unproved(self.template, number)
        return (begin, max(begin, self._after(words_end))), False

    def _close(self, begin: int, end: int) -> tuple[tuple[int, int], bool]:
        """Marked tokens, with the stop token behind them if the marks leave it out, without blanks after it."""
        stop = self.template.stop
        if end < len(self.ids) and self.ids[end] == stop and stop not in self.ids[begin:end]:
            return (begin, end + 1), True
        places = [at for at in range(begin, end) if self.ids[at] == stop]
        if places and not self.text[self.ends[places[-1]] : self.ends[end - 1]].strip():
            return (begin, places[-1] + 1), True
        return (begin, end), False

    def _first(self, character: int) -> int:
        """The token in which a character lies, or the next one."""
        return bisect_right(self.ends, character)

    def _after(self, character: int) -> int:
        """The token after the one in which the character before this one lies."""
        return bisect_left(self.starts, character)
