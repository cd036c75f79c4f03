// The timeline as a drawing: who spoke when, each event, each connection. By the time the events were seen here where
// this page watched from the start, else by their numbers, for a log holds no times.

import { count, drawing, seconds } from "./dom.js";

const COLOURS = 4;
const ROW = 46;
const BAR = 20;
const TOP = 18;
const LONG_SILENCE = 1500;
const LONG_WAIT = 400;

const LIFECYCLE = new Set(["response.created", "response.queued", "response.in_progress", "response.completed",
  "response.failed", "response.incomplete", "error"]);

export const colour = (entry) => `entry-${((entry - 1) % COLOURS) + 1}`;

export function drawStrip(host, run) {
  const width = Math.max(host.clientWidth, 240);
  const scale = run.watched ? timeScale(run, width) : numberScale(run, width);
  const entries = entriesOf(run);
  const rows = rowsOf(run, scale, entries);
  const bottom = rows.length * ROW;
  const height = bottom + 24;
  const drawn = rows.flatMap(([title, parts], row) => [
    drawing("text", { class: "row-name", x: EDGE, y: row * ROW + 12 }, title),
    drawing("g", { transform: `translate(0 ${row * ROW})` }, ...parts.filter(Boolean)),
  ]);
  host.hidden = !rows.length;
  host.replaceChildren(
    drawing("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": summary(run, entries) },
      hatch(), ...axis(scale, width, bottom), ...drawn, ...rollOvers(run, scale, bottom)),
  );
}

// What there is to draw: each row with its title.
function rowsOf(run, scale, entries) {
  const rows = [];
  if (run.stream) {
    const title = count(entries.length, "entry into the handler", "entries into the handler");
    rows.push([title, [...waiting(run, scale), ...entryBars(entries, scale, run)]]);
    rows.push([count(run.events.length, "event"), eventTicks(entries, scale)]);
  } else if (run.watched && run.statuses.length) {
    rows.push(["status, whenever it was asked for", statusBars(run, scale)]);
  }
  if (run.watched && run.connections.length) {
    rows.push([count(run.connections.length, "connection"), connectionBars(run, scale)]);
  }
  return rows;
}

function summary(run, entries) {
  const parts = entries.map((entry, index) => `entry ${index + 1}: events ${entry.first} to ${entry.last}`);
  return `Timeline. ${parts.join("; ") || "Nothing was said yet."}`;
}

function entriesOf(run) {
  const entries = [];
  for (const event of run.events) {
    const current = entries[event.entry - 1];
    if (!current) entries[event.entry - 1] = { first: event.number, last: event.number, events: [event] };
    else {
      current.last = event.number;
      current.events.push(event);
    }
  }
  return entries.filter(Boolean);
}

// -- scales ------------------------------------------------------------------------------------------------------

const EDGE = 6;

function timeScale(run, width) {
  const running = !["ended", "dropped", "lost", "idle"].includes(run.link);
  const lastSeen = run.events.at(-1)?.at ?? 0;
  const lastClosed = run.connections.at(-1)?.closed ?? 0;
  const lastStatus = run.statuses.at(-1)?.at ?? 0;
  const end = Math.max(1000, running ? run.now : Math.max(lastSeen, lastClosed, lastStatus));
  const at = (ms) => EDGE + (ms / end) * (width - 2 * EDGE);
  return { x: (event) => at(event.at), at, end, running, unit: "s", steps: steps(end / 1000).map((s) => [at(s * 1000), `${s} s`]) };
}

function numberScale(run, width) {
  const end = Math.max(run.last, 1);
  const at = (number) => EDGE + (number / end) * (width - 2 * EDGE);
  return { x: (event) => at(event.number), at, end, running: false, unit: "", steps: steps(end).filter(Number.isInteger).map((n) => [at(n), `${n}`]) };
}

function steps(end) {
  const raw = end / 6;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const found = [];
  for (let value = 0; value <= end; value += step) found.push(Number(value.toPrecision(6)));
  return found;
}

// -- parts -------------------------------------------------------------------------------------------------------

const hatch = () => drawing("defs", {},
  drawing("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    drawing("rect", { class: "hatch", width: 2, height: 6 })));

function axis(scale, width, bottom) {
  return scale.steps.flatMap(([x, text]) => [
    drawing("line", { class: "grid", x1: x, x2: x, y1: 0, y2: bottom }),
    drawing("text", { class: "tick-name", x: Math.min(Math.max(x, 8), width - 14), y: bottom + 15, "text-anchor": "middle" }, text),
  ]);
}

function entryBars(entries, scale, run) {
  const parts = [];
  entries.forEach((entry, index) => {
    const from = scale.x(entry.events[0]);
    const to = scale.x(entry.events.at(-1));
    const before = entries[index - 1];
    if (before && scale.unit) {
      const silent = `silent ${seconds(entry.events[0].at - before.events.at(-1).at)}`;
      parts.push(...silence(scale.x(before.events.at(-1)), from, silent));
    }
    const text = `entry ${index + 1}: ${entry.first}–${entry.last}`;
    const texts = [text, `${index + 1}: ${entry.first}–${entry.last}`, `${index + 1}`];
    parts.push(bar(from, to, colour(index + 1), texts));
  });
  const last = run.events.at(-1);
  if (last && scale.running && !run.complete && scale.end - last.at > LONG_SILENCE) {
    parts.push(...silence(scale.x(last), scale.at(scale.end), `silent ${seconds(scale.end - last.at)}`));
  }
  return parts;
}

// Before the first event: in the queue, or behind another turn.
function waiting(run, scale) {
  const until = run.events.length ? run.events[0].at : scale.running ? run.now : 0;
  if (!scale.unit || until < LONG_WAIT) return [];
  return silence(scale.at(0), scale.at(until), `waited ${seconds(until)}`);
}

const TEXT_WIDTH = 6.6;

function fitting(texts, room) {
  return texts.find((text) => text.length * TEXT_WIDTH + 10 <= room) || "";
}

function bar(from, to, look, texts, taken = 0) {
  const width = Math.max(to - from, 3);
  const text = fitting(texts, width - taken);
  return drawing("g", {}, drawing("title", {}, texts[0]),
    drawing("rect", { class: `bar ${look}`, x: from, y: TOP, width, height: BAR, rx: 4 }),
    text ? drawing("text", { class: "bar-name", x: from + 6, y: TOP + 14 }, text) : null);
}

function silence(from, to, text) {
  if (to - from < 2) return [];
  const shown = fitting([text, text.replace(/^\w+ /, "")], to - from);
  return [
    drawing("rect", { class: "silence", x: from, y: TOP, width: to - from, height: BAR, fill: "url(#hatch)" }),
    shown ? drawing("text", { class: "silence-name", x: (from + to) / 2, y: TOP + 14, "text-anchor": "middle" }, shown) : null,
  ];
}

function eventTicks(entries, scale) {
  const middle = TOP + BAR / 2;
  return entries.flatMap((entry, index) => {
    const plain = [];
    const tall = [];
    const marks = [];
    for (const event of entry.events) {
      const x = scale.x(event).toFixed(1);
      if (LIFECYCLE.has(event.type)) marks.push(event.reset ? diamond(x, middle, event) : dot(x, middle, event));
      else if (event.type.endsWith(".delta")) plain.push(`M${x} ${middle - 4}v8`);
      else tall.push(`M${x} ${middle - 9}v18`);
    }
    const look = colour(index + 1);
    return [
      drawing("path", { class: `ticks ${look}`, d: plain.join("") }),
      drawing("path", { class: `ticks tall ${look}`, d: tall.join("") }),
      ...marks,
    ];
  });
}

const name = (event) => drawing("title", {}, `${event.number} ${event.type}`);

const dot = (x, y, event) =>
  drawing("circle", { class: `mark ${colour(event.entry)}`, cx: x, cy: y, r: 5 }, name(event));

const diamond = (x, y, event) =>
  drawing("path", { class: `mark ${colour(event.entry)}`, d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z` }, name(event));

function rollOvers(run, scale, bottom) {
  const first = new Map(run.events.map((event) => [event.number, event]));
  return (run.timeline?.marks || [])
    .filter((mark) => mark.what === "roll_over" && first.has(mark.sequence_number))
    .map((mark) => {
      const x = scale.x(first.get(mark.sequence_number));
      return drawing("g", {}, drawing("title", {}, `segment ${mark.segment} of the log begins`),
        drawing("line", { class: "roll-over", x1: x, x2: x, y1: TOP, y2: bottom }));
    });
}

function connectionBars(run, scale) {
  return run.connections.flatMap((connection) => {
    const from = scale.at(connection.opened);
    const to = scale.at(connection.closed ?? scale.end);
    const broken = ["dropped", "lost"].includes(connection.how);
    const texts = [`${connection.name}${broken ? `, ${connection.how}` : ""}`, connection.name, connection.name.replace("GET ", "")];
    const y = TOP + BAR / 2;
    const cross = broken && drawing("path", { class: "broken", d: `M${to - 4} ${y - 6}l8 12m0 -12l-8 12` });
    return [bar(from, to, "wire", texts, broken ? 8 : 0), cross];
  });
}

function statusBars(run, scale) {
  return run.statuses.map(({ at, status }, index) => {
    const until = run.statuses[index + 1]?.at ?? (scale.running ? scale.end : at);
    return bar(scale.at(at), scale.at(until), colour(index + 1), [status.replace("_", " ")]);
  });
}
