"""The official SDK against the simulator: it must find everything that it finds at the provider."""

from __future__ import annotations

import pytest

from simulation import KEY, ask

anthropic = pytest.importorskip("anthropic")
TOOL = {"name": "tide", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}, "hour": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def client(simulator):
    with anthropic.Anthropic(base_url=simulator.url, api_key=KEY, max_retries=0) as found:
        yield found


def directed(text, **more):
    return {**ask(**more), "extra_headers": {f"x-sim-{name}": value for name, value in (pair.split("=") for pair in text.split(";"))}}


def test_a_message_is_read(client):
    message = client.messages.create(**directed("output=12"))
    assert (message.usage.output_tokens, message.stop_reason, message.model) == (12, "end_turn", "claude-opus-5-5")
    assert message._request_id.startswith("req_")


def test_a_stream_gives_a_message_like_the_json_form(client):
    plain = client.messages.create(**directed("output=40;thinking=11"))
    with client.messages.stream(**directed("output=40;thinking=11")) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert [{name: len(value) for name, value in block.to_dict().items()} for block in streamed.content] == [
        {name: len(value) for name, value in block.to_dict().items()} for block in plain.content
    ]
    assert (streamed.usage.output_tokens, streamed.usage.output_tokens_details.thinking_tokens) == (40, 11)


def test_a_forced_tool_is_called_with_input_that_fits_its_schema(client):
    with client.messages.stream(**ask(tools=[TOOL], tool_choice={"type": "tool", "name": "tide"})) as stream:
        message = stream.get_final_message()
    call = message.content[-1]
    assert (call.type, call.name, call.input, message.stop_reason) == ("tool_use", "tide", {"place": "low bay", "hour": 7}, "tool_use")


def test_web_searches_raise_the_input_and_are_counted(client):
    with client.messages.stream(**directed("searches=2;output=90")) as stream:
        started = next(event.message.usage.input_tokens for event in stream if event.type == "message_start")
        message = stream.get_final_message()
    assert [block.type for block in message.content].count("web_search_tool_result") == 2
    assert message.usage.server_tool_use.web_search_requests == 2
    assert message.usage.input_tokens == started + 3_600
    assert message.usage.output_tokens == 90


def test_a_refusal_says_why(client):
    message = client.messages.create(**directed("refusal=empty"))
    assert (message.content, message.stop_reason, message.stop_details.category) == ([], "refusal", "general_harms")


def test_stop_sequences_are_reported(client):
    message = client.messages.create(**directed("stop=stop_sequence;output=5", stop_sequences=["END"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


@pytest.mark.parametrize("directive", ["future=true", "unknown_usage=true", "two_deltas=true", "chunk=3", "bare_delta=true", "no_stop=true"])
def test_the_sdk_reads_what_it_does_not_know(client, directive):
    with client.messages.stream(**directed(f"output=20;{directive}")) as stream:
        assert len("".join(stream.text_stream)) == 80
        assert stream.get_final_message().usage.output_tokens == 20


def test_tokens_are_counted_and_models_listed(client):
    counted = client.messages.count_tokens(model="claude-opus-5-5", messages=ask()["messages"])
    assert counted.input_tokens == client.messages.create(**ask()).usage.input_tokens
    assert "claude-opus-5-5" in [model.id for model in client.models.list(limit=5)]
    assert client.models.retrieve("claude-haiku-5-5").display_name == "Claude Haiku 5.5"


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        ("400", "BadRequestError"),
        ("401", "AuthenticationError"),
        ("403", "PermissionDeniedError"),
        ("404", "NotFoundError"),
        ("409", "ConflictError"),
        ("413", "ContentTooLargeError"),
        ("422", "UnprocessableEntityError"),
        ("429", "RateLimitError"),
        ("500", "InternalServerError"),
        ("503", "ServiceUnavailableError"),
        ("504", "GatewayTimeoutError"),
        ("529", "OverloadedError"),
    ],
)
def test_each_refusal_becomes_its_exception(client, refuse, error):
    with pytest.raises(anthropic.APIStatusError) as raised:
        client.messages.create(**directed(f"refuse={refuse}"))
    assert type(raised.value).__name__ == error
    assert raised.value.status_code == int(refuse)
    assert raised.value.request_id.startswith("req_")


def test_an_error_inside_a_stream_is_raised(client):
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"), client.messages.stream(**directed("error_after=4")) as stream:
        list(stream)


def test_a_cut_stream_is_a_connection_error(client):
    with pytest.raises(Exception, match=r"peer closed|reset|incomplete|closed"), client.messages.stream(**directed("cut=700;cut-by=fin")) as stream:
        list(stream)
