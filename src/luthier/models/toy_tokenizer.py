"""The tokenizer of the toy twins: a byte-level BPE with the special tokens of Phi-4-multimodal.

The JSON beside this module ships with the package; `train_tokenizer` made it from the sentences below and
makes it again byte for byte. This module knows nothing of models: vocabulary sizes are the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TOKENIZER_FILE = Path(__file__).with_name("toy_tokenizer.json")
IMAGE_TOKEN, AUDIO_TOKEN = "<|image|>", "<|audio|>"
END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    IMAGE_TOKEN,
    AUDIO_TOKEN,
    "<|assistant|>",
    END_OF_TURN,
    "<|user|>",
    "<|system|>",
    "<|tool|>",
)
VOCABULARY_SIZE = 640

# Phi-4: `<|role|>content<|end|>`. Content is a string, or parts whose media become placeholder tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<|' + part['type'] + '|>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SENTENCES = (
    "Listen to the recording and judge the spoken answer of the candidate.",
    "You are a careful rater of spoken English. Answer with one digit, 1 for pass and 0 for fail.",
    "The speaker answers the question with clear pronunciation, good grammar and a natural speed.",
    "The answer is short, there are many long pauses, and some of the words cannot be understood.",
    "Does the candidate describe the picture? Are the ideas in order, and are there enough details?",
    "Grade the response on a scale from one to five: relevance, fluency, vocabulary, delivery and language.",
    "Read the following sentence aloud, then describe what you see in the photograph.",
    "A grade of three and a half means that the two raters did not agree about the pass mark.",
    "What is shown in the image? The image shows a red square next to a blue circle on a white background.",
    "How many objects are in this picture, and which of them is larger than the others?",
    "Is the statement about the scan true or false? Explain the reason for your answer in one sentence.",
    "The chest image shows no sign of disease in the left lung, but there is a small shadow in the right.",
    "Write a summary of the text below. Use simple words and keep every number as it is written.",
    "Question: Which planet is the nearest to the sun? Answer: Mercury is the nearest planet to the sun.",
    "Translate the sentence into French, please, and then say it again more slowly.",
    "I think that people should read more books because reading helps them to understand the world.",
    "When I was young, my family lived in a small house near the river, and we walked to school each day.",
    "Please transcribe the audio clip into text. If nothing is said, write that the clip is silent.",
    "The weather was cold and the streets were empty, so she stayed at home and cooked dinner for friends.",
    "He said that he would come back tomorrow, but nobody knew whether he had found the right train.",
    "To tune an instrument, turn each string until its tone agrees with the tone of the fork.",
    "A learning rate that is too high makes the loss rise; one that is too low wastes the whole night.",
    "The company reported higher earnings this year, while the cost of energy was lower than expected.",
    "def add(first, second):\n    return first + second\n\nprint(add(2, 3))\n",
    "for item in items:\n    if item is not None:\n        total = total + item.value\n",
    '{"name": "clip", "label": 1, "score": 0.75, "source": "test"}',
    "Yes, it does. No, it does not. Maybe it could, but it would have to be checked by someone else first.",
    "The first video frame shows a door that is closed; in the last frame the same door stands open.",
    "Which of these answers is better, the first or the second? Give your reasons before you choose.",
    "Thank you for your question. I am sorry, but I do not know the answer to that one.",
    "There are seven days in a week, twelve months in a year, and sixty seconds in a minute.",
    "An assistant should be helpful, honest and brief; it should say so when something is uncertain.",
    "The doctor asked the patient about the pain, examined the knee and ordered another test.",
    "Water boils at a lower temperature on a mountain because the pressure of the air is lower there.",
    "My favourite season is autumn, since the leaves change colour and the evenings are quiet.",
    "Every student in the class has finished the exercise, and the teacher is reading their work.",
)


def train_tokenizer() -> Tokenizer:
    """Train the toy tokenizer: byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019).

    Digits stay single tokens, so that the verdicts "0" and "1" never depend on their neighbours. Special
    tokens come last, as in Phi-4. The result is the same at every call.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer, its chat template, and the media tokens that Phi-4's processor reads."""
    return extended_tokenizer((), CHAT_TEMPLATE, {"image_token": IMAGE_TOKEN, "audio_token": AUDIO_TOKEN})


def extended_tokenizer(tokens: Sequence[str], chat_template: str, named: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """The shipped tokenizer with a family's own special tokens behind its 640, and that family's template.

    `named` are attributes that the family's processor reads, such as `image_token`.
    """
    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        extra_special_tokens=dict(named),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
