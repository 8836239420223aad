"""The words of OpenAI's chat API: what is asked in them, and what is answered. Shapes only; no engine, no HTTP.

Served: model, messages (system, developer, user, assistant; text, image_url and input_audio parts), stream,
stream_options.include_usage, temperature, top_p, top_k (not OpenAI's, but many send it), max_tokens,
max_completion_tokens, stop, seed. Taken without effect, as they change no answer here: `IGNORED`. Taken at the value
that changes nothing, else refused: `NEUTRAL`. Anything else is refused as an unknown argument.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from luthier import schema
from luthier.engines.base import Piece, Sampling
from luthier.files import sha256_bytes
from luthier.serve.settings import Limits
from luthier.serve.uploads import shown

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "function_call",
}  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}

_MOST_TURNS, _MOST_PARTS = 10_000, 1_000
"""A million empty ones fit into a body, and take seconds and gigabytes to look at; the server's own limits, which are
lower, are told with a sentence."""


class ApiError(Exception):
    """A refusal in OpenAI's form. `param` names what of the request is wrong, `code` is a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}."""
        return error_body(self.status, self.message, self.param, self.code)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error with this HTTP status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str
    detail: str | None = None


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(_Strict):
    data: str
    format: str


class AudioPart(_Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoPart(BaseModel):
    """Known, to be refused with a sentence."""

    type: Literal["video_url", "input_video", "video"]


class Turn(BaseModel):
    """One message. Keys of answers that are sent back (refusal, annotations) may be there; tool calls may not."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]] = Field(
        max_length=_MOST_PARTS
    )

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_one_part(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False


class ChatAsked(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: str
    messages: list[Turn] = Field(min_length=1, max_length=_MOST_TURNS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    stop: list[str] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def sampling(self, limits: Limits) -> Sampling:
        """How the answer is to be written. Raises ApiError for more tokens than the server writes."""
        usual = Sampling()
        name = "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"
        tokens = getattr(self, name) or min(usual.max_new_tokens, limits.max_new_tokens)
        if tokens > limits.max_new_tokens:
            most = limits.max_new_tokens
            raise ApiError(400, f"{name} is too large: {tokens}; this server writes at most {most} tokens.", name)
        return Sampling(
            max_new_tokens=tokens,
            temperature=usual.temperature if self.temperature is None else self.temperature,
            top_p=usual.top_p if self.top_p is None else self.top_p,
            top_k=usual.top_k if self.top_k is None else self.top_k,
            seed=None if self.seed is None else self.seed % 2**63,
            stop=tuple(text for text in self.stop or () if text),
        )

    def check(self, limits: Limits) -> None:
        """Raise ApiError for what is not served, and for a conversation that is too long or has no question last."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED:
                continue
            if name not in NEUTRAL:
                what = shown(name)
                raise ApiError(400, f"Unrecognized request argument supplied: {what}", what, "unknown_parameter")
            if value not in NEUTRAL[name]:
                raise ApiError(400, f"This server does not serve {name} of this value.", name, "unsupported_parameter")
        if len(self.messages) > limits.turns:
            raise ApiError(400, f"The conversation has more than {limits.turns} messages.", "messages")
        for place, turn in enumerate(self.messages):
            more = {name for name, value in (turn.model_extra or {}).items() if value}
            if more - {"name", "refusal", "annotations"}:
                raise ApiError(400, "Messages with tool calls are not served.", f"messages[{place}]")
        if self.messages[-1].role != "user":
            raise ApiError(400, "The last message must be the user's.", f"messages[{len(self.messages) - 1}].role")
        letters = sum(len(part.text) for turn in self.messages for part in turn.content if isinstance(part, TextPart))
        if letters > limits.text_chars:
            raise ApiError(
                400, f"The messages hold {letters} characters; this server reads {limits.text_chars}.", "messages"
            )


class Decoder(Protocol):
    """What turns the bytes of a client into a picture, or into sound (with its `wave_L`)."""

    def picture(self, data: bytes, name: str) -> Any: ...

    def sound(self, data: bytes, name: str) -> Any: ...


def conversation(turns: Sequence[Turn], decoder: Decoder) -> tuple[list[schema.Message], dict[str, Any]]:
    """The messages, and the decoded media that they refer to by the sha256 of their bytes.

    Raises ApiError for an address in place of the data itself, for no address of a client is ever fetched, and for
    videos.
    """
    messages: list[schema.Message] = []
    media: dict[str, Any] = {}
    for place, turn in enumerate(turns):
        parts: list[schema.Part] = []
        for number, part in enumerate(turn.content):
            where = f"messages[{place}].content[{number}]"
            if isinstance(part, TextPart):
                parts.append(schema.Part("text", text=part.text))
                continue
            if isinstance(part, VideoPart):
                raise ApiError(400, "Videos are not taken: send some of its frames as pictures (image_url).", where)
            if isinstance(part, ImagePart):
                data, kind = _data_of_url(part.image_url.url, where), "image"
            else:
                data, kind = _base64(part.input_audio.data, where), "audio"
            reference = f"sha256:{sha256_bytes(data)}"
            if reference not in media:
                media[reference] = (
                    decoder.picture(data, where) if kind == "image" else decoder.sound(data, where).wave_L
                )
            parts.append(schema.Part("image" if kind == "image" else "audio", media=reference))
        role: Any = "system" if turn.role == "developer" else turn.role
        messages.append(schema.Message(role, tuple(parts)))
    return messages, media


def _data_of_url(url: str, where: str) -> bytes:
    head, comma, body = url.partition(",")
    if not head.lower().startswith("data:"):
        raise ApiError(400, "Addresses are never fetched: give the picture itself, as data:image/png;base64,...", where)
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(400, "A data: URL must read data:image/png;base64,...", where)
    return _base64(body, where)


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "This is no base64.", where) from None


def completion(identity: Mapping[str, Any], text: str, last: Piece) -> dict[str, Any]:
    """An answer as one object. `identity` holds id, created and model."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish}
    return {**identity, "object": "chat.completion", "choices": [choice], "usage": usage(last)}


def chunk(identity: Mapping[str, Any], delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
    """A part of a streamed answer."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
    return {**identity, "object": "chat.completion.chunk", "choices": [choice]}


def usage(last: Piece) -> dict[str, int]:
    """Tokens of the whole request, as the last piece counts them."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }
