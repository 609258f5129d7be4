"""What a request may ask. A field is honoured, known to change nothing, or refused by name; none is ignored."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outrider.serve.errors import ApiError

CHOICES_MAX = 16
PROMPTS_MAX = 128
STOPS_MAX = 16
STOP_CHARS_MAX = 256
PARTS_MAX = 4096  # of a message's content
TOP_LOGPROBS_MAX = 20

# Fields that say something about the caller and change no answer.
HARMLESS = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
HARMLESS |= {"service_tier", "parallel_tool_calls"}

# Fields that are not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Extension(_Strict):
    """Our own fields, under `outrider`."""

    experts: bool = False  # each piece of streamed text with its token's expert
    deadline_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None
    priority: Annotated[int, Field(ge=0, le=1)] = 0


_Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Common(_Strict):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None  # 0 and -1: of all
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=STOPS_MAX)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    outrider: Extension = Extension()

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=PARTS_MAX, fail_fast=True)]
    name: str | None = None
    # Of answers that a client sends back as it got them.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


_Messages = Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]


class ChatRequest(_Common):
    messages: _Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


# Lists end at their first wrong item: one error for each of a million would take seconds and gigabytes.
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(_Common):
    prompt: (
        str
        | _Ids
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS_MAX, fail_fast=True)]
        | Annotated[list[_Ids], Field(min_length=1, max_length=PROMPTS_MAX, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(_Strict):
    model: str | None = None
    prompt: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool = True


_Request = TypeVar("_Request", bound=BaseModel)


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    request = _parse(ChatRequest, body)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise _invalid("max_tokens", "give max_tokens or max_completion_tokens, not both")
    request.max_tokens = request.max_completion_tokens or request.max_tokens
    if request.max_tokens == 0:
        raise _invalid("max_tokens", "must be at least 1")
    if request.top_logprobs is not None and not request.logprobs:
        raise _invalid("top_logprobs", "needs logprobs: true")
    return _checked(request)


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    request = _parse(CompletionRequest, body)
    if request.best_of is not None and request.best_of != request.choices:
        raise _invalid("best_of", "is supported only where it equals n")
    if request.max_tokens == 0 and not request.echo:
        raise _invalid("max_tokens", "may be 0 only with echo")
    if len(request.prompts) * request.choices > PROMPTS_MAX:
        raise _invalid("n", f"prompts times n is over {PROMPTS_MAX}")
    return _checked(request)


def parse_tokenize(body: dict[str, Any]) -> TokenizeRequest:
    request = _parse(TokenizeRequest, body)
    if (request.prompt is None) == (request.messages is None):
        raise _invalid("prompt", "give prompt or messages")
    return request


def _checked(request: Any) -> Any:
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "needs stream: true")
    if request.outrider.experts and not request.stream:
        raise _invalid("outrider.experts", "needs stream: true")
    return request


def _parse(kind: type[_Request], body: dict[str, Any]) -> _Request:
    wanted = {}
    for name, value in body.items():
        if name in HARMLESS:
            continue
        if name in NEUTRAL:
            if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
                raise _invalid(name, "is not supported", "unsupported_value")
            continue
        wanted[name] = value
    try:
        return kind.model_validate(wanted)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)) from None


def _refusal(errors: list[Any]) -> ApiError:
    """Of the first field that is wrong; where it may be of several kinds, of the kind that fits it best."""
    name = _param(errors[0]["loc"])
    own = [one for one in errors if _param(one["loc"]) == name]
    fits = [one for one in own if not one["type"].endswith("_type")]
    deepest = max(len(one["loc"]) for one in fits or own)
    best = [one for one in fits or own if len(one["loc"]) == deepest]
    says = [one["msg"][:1].lower() + one["msg"][1:] for one in best]
    inner = str(best[0]["loc"][-1])
    if best[0]["type"] == "extra_forbidden":
        message = "is not a known field" if name.endswith(inner) else f"{inner} is not a known field"
        return _invalid(name, message, "unknown_parameter")
    if best[0]["type"] in ("missing", "literal_error") and not name.endswith(inner):
        return _invalid(name, f"{inner}: {says[0]}")
    return _invalid(name, says[0] if fits else " or ".join(dict.fromkeys(says)))


def _param(location: tuple[int | str, ...]) -> str:
    """The path of a field; what follows it in `location` are branches of a union."""
    depth = {"messages": 3, "outrider": 2, "stream_options": 2}.get(str(location[0]), 1)
    return ".".join(str(part) for part in location[:depth])


def _invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {message}.", code=code, param=param)
