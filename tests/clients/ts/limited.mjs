// What a program with the official TypeScript SDK sees of its limits: node limited.mjs URL KEYS prints what limited_session.py prints.
import Anthropic from "@anthropic-ai/sdk";

const [, , baseURL, keysText] = process.argv;
const keys = JSON.parse(keysText);
const plays = {};

function ask(directives = "output=400") {
  const messages = [{ role: "user", content: "How high is the tide?" }];
  return { model: "claude-sonnet-4-6", max_tokens: 400, messages, metadata: { user_id: `sim:${directives}` } };
}

async function play(name, action, maxRetries = 2) {
  const seen = { answers: [], waits: [], endings: [] };
  plays[name] = seen;
  let refusedAt = 0;
  // Time is noted around each request: how long the SDK waits between a refusal and the next one, nobody but the clock tells.
  const watched = async (url, options) => {
    if (refusedAt) seen.waits.push((performance.now() - refusedAt) / 1000);
    const response = await fetch(url, options);
    refusedAt = response.ok ? 0 : performance.now();
    seen.answers.push({ status: response.status, headers: Object.fromEntries(response.headers) });
    return response;
  };
  const client = new Anthropic({ baseURL, apiKey: keys[name], maxRetries, timeout: 60_000, fetch: watched });
  const end = async (promise) => {
    try {
      seen.endings.push({ error: "", message: (await promise).stop_reason });
    } catch (error) {
      if (!(error instanceof Anthropic.APIError)) throw error;
      seen.endings.push({ error: error.constructor.name, type: error.error.error.type, message: error.error.error.message });
      refusedAt = 0;
    }
  };
  await action(client, end);
}

await play("budget", async (client, end) => {
  await end(client.messages.create(ask()));
  await end(client.messages.create(ask()));
  await end(client.messages.stream(ask()).finalMessage());
});
await play("rate", async (client, end) => {
  for (let i = 0; i < 2; i++) await end(client.messages.create(ask("output=5")));
});
await play("queue", (client, end) => Promise.all([1, 2, 3, 4].map(() => end(client.messages.create(ask("output=5;ttfb=100"))))));
await play("busy", (client, end) => Promise.all([1, 2].map(() => end(client.messages.create(ask("output=5;ttfb=700"))))), 8);
await play("model", (client, end) => end(client.messages.create(ask())));
await play("large", (client, end) => end(client.messages.create(ask())));
await play("notices", async (client, end) => {
  for (let i = 0; i < 5; i++) await end(client.messages.create(ask("output=5")));
});

process.stdout.write(JSON.stringify({ version: "", plays }));
