// The API as any client uses it: JSON, errors of its shape, and server-sent events over fetch, for the sake of the key.

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message || `The server answered ${status}.`);
    this.status = status;
    this.code = error.code || "";
    this.param = error.param || "";
    this.requestId = error.additionalInfo?.request_id || "";
  }
}

const KEY = "responses-api-key";

export const readKey = () => sessionStorage.getItem(KEY) || "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function ask(method, path, { body, signal } = {}) {
  const headers = {};
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "same-origin",
  });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error;
    if (typeof error !== "object" || error === null) error = { message: String(error) };
  } catch {
    // No JSON: something in front of the server answered.
  }
  return new ApiError(answer.status, error);
}

export const json = async (method, path, options) => (await ask(method, path, options)).json();

const ROOT = "v1/responses";

export const create = (body, signal) => ask("POST", ROOT, { body, signal });
export const one = (id, rest = "") => `${ROOT}/${encodeURIComponent(id)}${rest}`;
export const events = (id, after, signal) =>
  ask("GET", one(id, `?stream=true${after >= 0 ? `&starting_after=${after}` : ""}`), { signal });

// The events of a body: {data, raw}, raw being the whole frame; ends with the body, throws when the connection breaks.
// Decoding is strict, so that equal texts are equal bytes.
export async function* frames(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream("utf-8", { fatal: true, ignoreBOM: true })).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const line = part.split("\n").find((each) => each.startsWith("data: "));
        if (line) yield { raw: part, data: JSON.parse(line.slice(6)) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
