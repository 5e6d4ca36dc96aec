// What a program does with the official TypeScript SDK: node session.mjs URL KEY prints one JSON object with what it found, or fails.
import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

const [, , baseURL, apiKey] = process.argv;
const model = "claude-sonnet-4-6";
const tool = {
  name: "tide",
  description: "Height of the tide",
  input_schema: { type: "object", properties: { place: { type: "string" }, hour: { type: "integer" } }, required: ["place"] },
};
const errors = {
  400: "BadRequestError",
  401: "AuthenticationError",
  403: "PermissionDeniedError",
  404: "NotFoundError",
  409: "ConflictError",
  422: "UnprocessableEntityError",
  429: "RateLimitError",
  500: "InternalServerError",
  503: "InternalServerError",
  529: "InternalServerError",
};
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const used = [];

function ask(directives = "", more = {}) {
  const asked = { model, max_tokens: 400, messages: [{ role: "user", content: "How high is the tide?" }], ...more };
  return directives ? { ...asked, metadata: { user_id: `sim:${directives}` } } : asked;
}

function note(message) {
  used.push(message.usage);
  return message;
}

async function raised(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new assert.AssertionError({ message: "nothing was raised" });
}

const create = (asked, streamed) => (streamed ? client.messages.stream(asked).finalMessage() : client.messages.create(asked));

const { data, request_id: requestId } = await client.messages.create(ask("output=12")).withResponse();
assert.equal(note(data).usage.output_tokens, 12);
assert.match(requestId, /^req_tw_/);

const events = [];
for await (const event of await client.messages.create({ ...ask("output=40"), stream: true })) events.push(event.type);
assert.equal(events[0], "message_start");
assert.equal(events.at(-1), "message_stop");

for (const streamed of [false, true]) {
  const asked = ask("", { tools: [tool], tool_choice: { type: "tool", name: "tide" } });
  const called = note(await create(asked, streamed));
  const call = called.content.at(-1);
  assert.deepEqual([call.type, call.name, call.input, called.stop_reason], ["tool_use", "tide", { place: "low bay", hour: 7 }, "tool_use"]);
  const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "two metres" }] };
  note(await create(ask("output=15", { tools: [tool], messages: [...asked.messages, { role: "assistant", content: [call] }, result] }), streamed));

  const thought = note(await create(ask("", { thinking: { type: "enabled", budget_tokens: 1024 }, max_tokens: 2048 }), streamed));
  assert.equal(thought.content[0].type, "thinking");

  const system = [{ type: "text", text: "The tides of the low bay. ".repeat(600), cache_control: { type: "ephemeral" } }];
  const kept = note(await create(ask("output=10", { system }), streamed));
  assert.equal(kept.usage.cache_read_input_tokens > 0, streamed);
}

const counted = await client.messages.countTokens({ model, messages: ask().messages });
assert.equal(counted.input_tokens, note(await client.messages.create(ask("output=4"))).usage.input_tokens);
const listed = (await client.models.list({ limit: 1000 })).data.map((one) => one.id);
assert.ok(listed.includes("claude-opus-4-8"), `models: ${listed}`);
assert.equal((await client.models.retrieve("claude-opus-4-8")).id, "claude-opus-4-8");

for (const [status, name] of Object.entries(errors)) {
  const error = await raised(client.messages.create(ask(`refuse=${status};retry_after=-1;should_retry=false`)));
  assert.equal(error.status, Number(status));
  assert.ok(error instanceof Anthropic[name], `${status} became ${error.constructor.name}`);
  assert.equal(error.error.type, "error");
  assert.match(error.requestID ?? error.request_id ?? "", /^req_tw_/);
}
const broken = await raised(client.messages.stream(ask("output=40;error_after=5")).finalMessage());
assert.match(String(broken), /Overloaded/);

const patient = new Anthropic({ baseURL, apiKey, maxRetries: 2, timeout: 30_000 });
for (const directives of ["refuse=500", "refuse=429;retry_after=0", "refuse=529;retry_after=0"]) {
  const error = await raised(patient.messages.create(ask(directives)));
  assert.ok(error instanceof Anthropic.APIError, directives);
}
const wrong = new Anthropic({ baseURL, apiKey: `${apiKey.slice(0, -4)}0000`, maxRetries: 2, timeout: 30_000 });
const refused = await raised(wrong.messages.create(ask()));
assert.ok(refused instanceof Anthropic.AuthenticationError);
assert.equal(refused.headers.get("x-should-retry"), "false");

process.stdout.write(JSON.stringify({ used }));
