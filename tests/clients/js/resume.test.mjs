// The streaming helper over a response whose worker was killed on the way. RESPONSES_BASE_URL names the server,
// RESPONSE_ID the response, CURSOR the last event that its reader saw before the kill.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.RESPONSES_BASE_URL, apiKey: "local", maxRetries: 0 });
const id = process.env.RESPONSE_ID;
const cursor = Number(process.env.CURSOR);

test("the helper collects one whole response out of both attempts", async () => {
  const snapshots = [];
  const stream = client.responses
    .stream({ response_id: id })
    .on("response.output_text.delta", (event) => snapshots.push([event.output_index, event.snapshot]));
  const final = await stream.finalResponse();
  assert.equal(final.status, "completed");
  assert.equal(final.output_text.split(" ").join(""), "12345678910");
  // What the killed worker had begun, and not persisted, begins anew.
  const second = snapshots.filter(([index]) => index === 1).map(([, text]) => text);
  assert.ok(second.filter((text) => text === "6 ").length === 2, JSON.stringify(second));
  assert.equal(second.at(-1), "6 7 8 9 10");
  const { output } = await client.responses.retrieve(id);
  assert.deepEqual(
    final.output.map((item) => [item.id, item.content[0].text]),
    output.map((item) => [item.id, item.content[0].text]),
  );
});

test("the helper goes on behind a cursor of before the kill", async () => {
  const numbers = [];
  for await (const event of client.responses.stream({ response_id: id, starting_after: cursor })) {
    numbers.push(event.sequence_number);
  }
  assert.deepEqual(
    numbers,
    numbers.map((_, index) => cursor + 1 + index),
  );
  assert.ok(numbers.length > 10);
});
