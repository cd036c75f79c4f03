// The official JavaScript client, unmodified, through a whole session. RESPONSES_BASE_URL names the server.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.RESPONSES_BASE_URL, apiKey: "local", maxRetries: 0 });
const UNKNOWN = "resp_" + "0".repeat(50);
const WEATHER = {
  type: "function",
  name: "get_weather",
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
  strict: true,
};
const CITY = {
  type: "json_schema",
  name: "city",
  schema: {
    type: "object",
    properties: { name: { type: "string" }, inhabitants: { type: "integer" } },
    required: ["name", "inhabitants"],
    additionalProperties: false,
  },
  strict: true,
};

async function collected(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

// The stream's order and its agreement with itself: numbers from 0 (or where it was resumed), one terminal event.
function assertWhole(events, first = 0) {
  assert.deepEqual(
    events.map((event) => event.sequence_number),
    events.map((_, index) => first + index),
  );
  const terminal = events.filter((event) => /^response\.(completed|failed|incomplete)$/.test(event.type));
  assert.equal(terminal.length, 1);
  assert.equal(terminal[0], events.at(-1));
  return events.at(-1).response;
}

function textOf(events) {
  return events
    .filter((event) => event.type === "response.output_text.delta")
    .map((event) => event.delta)
    .join("");
}

// `output_text` is the client's own addition, and only to what was not streamed.
function plain({ output_text: _, ...response }) {
  return JSON.parse(JSON.stringify(response));
}

async function ended(id) {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const response = await client.responses.retrieve(id);
    if (!["queued", "in_progress"].includes(response.status)) return response;
    assert.ok(Date.now() < deadline, `still ${response.status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("a created response is complete, and a later get repeats it", async () => {
  const { data: created, response: raw } = await client.responses
    .create({ model: "m", input: "Hello there", metadata: { k: "v" } })
    .withResponse();
  assert.equal(created.status, "completed");
  assert.equal(created.output_text, "You said: Hello there");
  assert.deepEqual(created.metadata, { k: "v" });
  assert.equal(created._request_id, raw.headers.get("x-request-id"));
  assert.deepEqual(plain(await client.responses.retrieve(created.id)), plain(created));
});

test("a foreground stream ends with what a later get gives", async () => {
  const events = await collected(await client.responses.create({ model: "m", input: "Hello there", stream: true }));
  const final = assertWhole(events);
  assert.equal(events[0].type, "response.created");
  assert.equal(textOf(events), "You said: Hello there");
  assert.deepEqual(plain(await client.responses.retrieve(final.id)), plain(final));
});

test("the streaming helper collects what the stream says", async () => {
  const deltas = [];
  const stream = client.responses
    .stream({ model: "m", input: "think" })
    .on("response.output_text.delta", (event) => deltas.push(event));
  const final = await stream.finalResponse();
  assert.equal(final.output_text, "Well considered.See the book.");
  assert.deepEqual(
    deltas.filter((event) => event.content_index === 0).map((event) => event.snapshot),
    ["Well ", "Well considered."],
  );
  assert.deepEqual(
    final.output.map((item) => item.type),
    ["reasoning", "message"],
  );
  assert.equal(final.output[1].content[0].annotations[0].type, "url_citation");
  assert.equal(final.usage.output_tokens_details.reasoning_tokens, 5);
});

test("a function is called, by hand and by the streaming helper, and its output answered", async () => {
  const request = { model: "m", input: "Rome", tools: [WEATHER] };
  const pieces = [];
  const streamed = await client.responses
    .stream(request)
    .on("response.function_call_arguments.delta", (event) => pieces.push(event.snapshot))
    .finalResponse();
  assert.equal(pieces.at(-1), streamed.output[0].arguments);
  const created = await client.responses.create(request);
  for (const asked of [created, streamed]) {
    const [call] = asked.output;
    assert.equal(call.type, "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Rome" });
    const answer = await client.responses.create({
      model: "m",
      previous_response_id: asked.id,
      tools: [WEATHER],
      input: [{ type: "function_call_output", call_id: call.call_id, output: "21 degrees" }],
    });
    assert.equal(answer.output_text, "21 degrees");
    assert.equal(answer.previous_response_id, asked.id);
  }
});

test("a typed answer is parsed", async () => {
  const parsed = await client.responses.parse({ model: "m", input: "Rome 2800000", text: { format: CITY } });
  assert.deepEqual(JSON.parse(parsed.output_text), { name: "Rome 2800000", inhabitants: 2800000 });
  assert.deepEqual(parsed.text.format.schema, CITY.schema);
});

test("a refusal and a failure arrive as such", async () => {
  const refused = await client.responses.stream({ model: "m", input: "decline" }).finalResponse();
  const [part] = refused.output[0].content;
  assert.deepEqual([part.type, part.refusal], ["refusal", "I would rather not."]);
  const failed = await client.responses.stream({ model: "m", input: "break" }).finalResponse();
  assert.equal(failed.status, "failed");
  assert.deepEqual(failed.error, { code: "server_error", message: "broken as asked" });
});

test("a background response is answered at once and polled to its end", async () => {
  const accepted = await client.responses.create({ model: "m", input: "count to 2", background: true });
  assert.ok(["queued", "in_progress"].includes(accepted.status));
  assert.deepEqual(accepted.output, []);
  const response = await ended(accepted.id);
  assert.equal(response.status, "completed");
  assert.equal(response.output_text, "1 2");
});

test("a background stream that was left is resumed behind the last event seen, and replayed in full", async () => {
  const stream = await client.responses.create({ model: "m", input: "count to 4", background: true, stream: true });
  const seen = [];
  for await (const event of stream) {
    seen.push(event);
    if (event.type === "response.output_text.delta") break;
  }
  const { id } = seen[0].response;
  const { sequence_number: last } = seen.at(-1);
  const rest = await collected(await client.responses.retrieve(id, { stream: true, starting_after: last }));
  const final = assertWhole([...seen, ...rest]);
  assert.equal(textOf([...seen, ...rest]), "1 2 3 4");
  assert.deepEqual(await collected(await client.responses.retrieve(id, { stream: true })), [...seen, ...rest]);
  assert.deepEqual(plain(await client.responses.retrieve(id)), plain(final));
  // The helper sends no cursor: it reads all again, and shows what comes behind the cursor.
  const helper = client.responses.stream({ response_id: id, starting_after: last });
  const shown = await collected(helper);
  assertWhole(shown, last + 1);
  assert.equal((await helper.finalResponse()).output_text, "1 2 3 4");
});

test("a cancel ends a background stream, and stays", async () => {
  const stream = await client.responses.create({ model: "m", input: "count to 500", background: true, stream: true });
  const events = [];
  for await (const event of stream) {
    events.push(event);
    if (event.type === "response.in_progress") {
      const cancelled = await client.responses.cancel(event.response.id);
      assert.equal(cancelled.status, "cancelled");
      assert.deepEqual(cancelled.output, []);
    }
  }
  const final = assertWhole(events);
  assert.equal(events.at(-1).type, "response.failed");
  assert.equal(final.status, "cancelled");
  assert.equal((await client.responses.cancel(final.id)).status, "cancelled");
});

test("a deleted response is gone", async () => {
  const { id } = await client.responses.create({ model: "m", input: "Hello" });
  assert.deepEqual(await client.responses.delete(id), { id, object: "response.deleted", deleted: true });
  await assert.rejects(client.responses.retrieve(id), OpenAI.BadRequestError);
  await assert.rejects(client.responses.inputItems.list(id), OpenAI.BadRequestError);
  await assert.rejects(client.responses.delete(id), OpenAI.NotFoundError);
});

test("input items are listed both ways, over any number of pages", async () => {
  const texts = Array.from({ length: 25 }, (_, number) => `item ${number}`);
  const { id } = await client.responses.create({
    model: "m",
    input: texts.map((text) => ({ role: "user", content: text })),
  });
  const forwards = await collected(client.responses.inputItems.list(id, { order: "asc", limit: 10 }));
  assert.deepEqual(
    forwards.map((item) => item.content[0].text),
    texts,
  );
  const backwards = await collected(client.responses.inputItems.list(id, { limit: 7 }));
  assert.deepEqual(backwards, forwards.reverse());
});

test("an error is of the client's own class and has all its fields", async () => {
  await assert.rejects(client.responses.create({ model: "m", input: "Hello", temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.status, 400);
    assert.equal(error.type, "invalid_request_error");
    assert.match(error.message, /temperature/);
    assert.ok(error.requestID);
    return true;
  });
  const chained = { model: "m", input: "Hello", previous_response_id: UNKNOWN };
  for (const stream of [false, true]) {
    await assert.rejects(client.responses.create({ ...chained, stream }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "previous_response_not_found");
      assert.equal(error.param, "previous_response_id");
      return true;
    });
  }
  await assert.rejects(client.responses.stream(chained).finalResponse(), OpenAI.NotFoundError);
  await assert.rejects(client.responses.retrieve(UNKNOWN), OpenAI.NotFoundError);
  await assert.rejects(client.responses.retrieve("resp_1"), OpenAI.BadRequestError);
  const { id } = await client.responses.create({ model: "m", input: "Hello" });
  await assert.rejects(client.responses.cancel(id), /Cannot cancel a synchronous response/);
  await assert.rejects(client.responses.retrieve(id, { stream: true }), (error) => error.param === "stream");
});

test("an aborted foreground stream is an abort here and a cancelled response there", async () => {
  let id;
  const stream = client.responses.stream({ model: "m", input: "count to 500" });
  stream.on("response.created", (event) => (id = event.response.id));
  stream.on("response.output_text.delta", () => stream.abort());
  await assert.rejects(stream.finalResponse(), OpenAI.APIUserAbortError);
  const deadline = Date.now() + 30_000;
  for (;;) {
    // A foreground response cannot be read before its end.
    const status = await client.responses.retrieve(id).then(
      (response) => response.status,
      (error) => error.status,
    );
    if (status === "cancelled") break;
    assert.equal(status, 404);
    assert.ok(Date.now() < deadline, "still running");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
});
