"""What a program does with the official Python SDK, line 2 or line 0: run in the tests' process or in an environment of its own.

Everything it expects is asserted here; it imports nothing but the SDK. `python sdk_session.py URL KEY` prints one JSON object with what it found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic

MODEL = "claude-sonnet-4-6"
TOOL = {
    "name": "tide",
    "description": "Height of the tide",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}, "hour": {"type": "integer"}}, "required": ["place"]},
}
ERRORS = {
    "400": "BadRequestError",
    "403": "PermissionDeniedError",
    "404": "NotFoundError",
    "409": "ConflictError",
    "413": ("RequestTooLargeError", "ContentTooLargeError"),
    "422": "UnprocessableEntityError",
    "429": "RateLimitError",
    "500": "InternalServerError",
    "503": ("ServiceUnavailableError", "InternalServerError"),
    "504": ("GatewayTimeoutError", "InternalServerError"),
    "529": ("OverloadedError", "InternalServerError"),
}


def ask(directives: str = "", **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": "How high is the tide?"}], **more}
    if directives:
        asked["metadata"] = {"user_id": f"sim:{directives}"}
    return asked


def names(one: str | tuple[str, ...]) -> tuple[str, ...]:
    return (one,) if isinstance(one, str) else one


def run(url: str, key: str) -> dict[str, Any]:
    """All that the tests want of a client; returns what was used, as the SDK told it."""
    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=30)
    used: list[dict[str, Any]] = []

    def note(message: Any) -> Any:
        used.append(message.usage.to_dict())
        return message

    message = note(client.messages.create(**ask("output=12")))
    assert (message.usage.output_tokens, message.stop_reason) == (12, "end_turn")
    assert message._request_id.startswith("req_tw_")

    with client.messages.stream(**ask("output=40")) as stream:
        text = "".join(stream.text_stream)
        note(stream.get_final_message())
    assert len(text) == 160

    events = [event.type for event in client.messages.create(**ask("output=20"), stream=True)]
    assert (events[0], events[-1]) == ("message_start", "message_stop")

    for streamed in (False, True):
        asked = ask(tools=[TOOL], tool_choice={"type": "tool", "name": "tide"})
        message = note(_create(client, asked, streamed=streamed))
        call = message.content[-1]
        assert (call.type, call.name, call.input, message.stop_reason) == ("tool_use", "tide", {"place": "low bay", "hour": 7}, "tool_use")
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "two metres"}]}
        answered = [*asked["messages"], {"role": "assistant", "content": [call.to_dict()]}, result]
        note(_create(client, ask("output=15", tools=[TOOL], messages=answered), streamed=streamed))

        thought = note(_create(client, ask(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048), streamed=streamed))
        assert thought.content[0].type == "thinking"
        assert thought.content[0].signature

        cached = [{"type": "text", "text": "The tides of the low bay. " * 600, "cache_control": {"type": "ephemeral"}}]
        kept = note(_create(client, ask("output=10", system=cached), streamed=streamed))
        assert (kept.usage.cache_creation_input_tokens > 0) == (not streamed)
        assert (kept.usage.cache_read_input_tokens > 0) == streamed

    counted = client.messages.count_tokens(model=MODEL, messages=ask()["messages"])
    assert counted.input_tokens == note(client.messages.create(**ask("output=4"))).usage.input_tokens
    listed = [model.id for model in client.models.list(limit=1000)]
    assert "claude-opus-4-8" in listed
    assert client.models.retrieve("claude-opus-4-8").id == "claude-opus-4-8"

    for status, expected in ERRORS.items():
        error = refused(lambda status=status: client.messages.create(**ask(f"refuse={status};retry_after=-1;should_retry=false")))
        assert error.status_code == int(status)
        assert {base.__name__ for base in type(error).__mro__} & set(names(expected)), f"{status} became {type(error).__name__}"
        assert error.body["error"]["type"]
        assert error.response.headers["request-id"].startswith("req_tw_")
    assert "Overloaded" in str(refused(lambda: _create(client, ask("output=40;error_after=5"), streamed=True)))

    _retries(url, key)
    _bad_key(url, key)
    return {"version": anthropic.__version__, "used": used}


def _create(client: Any, asked: dict[str, Any], *, streamed: bool) -> Any:
    if not streamed:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def refused(action: Callable[[], Any]) -> anthropic.APIStatusError:
    """The refusal that the action must end in."""
    try:
        action()
    except anthropic.APIStatusError as error:
        return error
    raise AssertionError("nothing was raised")


def _retries(url: str, key: str) -> None:
    """What the provider refuses with 500 is the client's to repeat, and it does; what stands is not repeated."""
    patient = anthropic.Anthropic(base_url=url, api_key=key, max_retries=2, timeout=30)
    for directives, times in (
        ("refuse=500", 3),
        ("refuse=429;retry_after=0", 3),
        ("refuse=529;retry_after=0", 3),
        ("refuse=500;should_retry=false", 1),
    ):
        error = refused(lambda directives=directives: patient.messages.create(**ask(directives)))
        tried = int(error.request.headers.get("x-stainless-retry-count", "0")) + 1
        assert tried == times, f"{directives} was tried {tried} times"


def _bad_key(url: str, key: str) -> None:
    """A key that is none is refused once, although the client would try again."""
    wrong = anthropic.Anthropic(base_url=url, api_key=key[:-4] + "0000", max_retries=2, timeout=30)
    error = refused(lambda: wrong.messages.create(**ask()))
    assert isinstance(error, anthropic.AuthenticationError)
    assert error.response.headers["x-should-retry"] == "false"
    assert error.request.headers.get("x-stainless-retry-count", "0") == "0"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*sys.argv[1:])))
