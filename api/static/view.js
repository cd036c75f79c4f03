// The response that is shown: its state, its output, what happened to it, its events.

import { byId, count, element, say, seconds } from "./dom.js";
import { colour, drawStrip } from "./strip.js";

const ROWS = 1500;
const REDRAW_EVERY = 250;
const ASK_EVERY = 2500;
const STILL = new Set(["ended", "dropped", "lost", "idle"]);

const LINKS = {
  idle: "",
  connecting: "connecting …",
  open: "connected",
  waiting: "connection lost, resuming …",
  polling: "asking every second",
  ended: "",
};

export class View {
  constructor() {
    this.run = null;
    this.rows = 0;
    this.shownConnection = -1;
    this.due = false;
    this.pending = new Set();
    new ResizeObserver(() => this.draw("timeline")).observe(byId("strip"));
    byId("deltas").addEventListener("change", () => byId("events").classList.toggle("no-deltas", !byId("deltas").checked));
    setInterval(() => this.run && !STILL.has(this.run.link) && this.draw("timeline"), REDRAW_EVERY);
    // What the server alone knows: checkpoints, attempts, who waits for whom.
    setInterval(() => this.run?.background && ["open", "polling"].includes(this.run.link) && this.run.refresh(), ASK_EVERY);
  }

  show(run) {
    this.run = run;
    byId("nothing").hidden = true;
    byId("shown").hidden = false;
    byId("events").replaceChildren();
    this.rows = 0;
    this.shownConnection = -1;
    this.draw("all");
  }

  // Draw soon: once for however many changes until then.
  draw(what) {
    this.pending.add(what);
    if (this.due) return;
    this.due = true;
    const draw = () => {
      this.due = false;
      const wanted = this.pending;
      this.pending = new Set();
      if (this.run) this.paint(wanted);
    };
    // A hidden tab paints no frames, but is still asked what it shows when it comes back.
    if (document.hidden) setTimeout(draw, 100);
    else requestAnimationFrame(draw);
  }

  paint(wanted) {
    const only = wanted.size === 1 && wanted.has("timeline");
    if (!only) {
      this.paintState();
      this.paintOutput();
      this.paintEvents();
    }
    this.paintTimeline();
  }

  // -- state and buttons -------------------------------------------------------------------------------------------

  paintState() {
    const { run } = this;
    say(byId("shown-id"), run.id || "its id comes with its first event");
    paintPill(byId("status"), run.status);
    say(byId("link"), linkText(run));
    byId("link").className = `link-state ${run.link}`;
    const connected = ["connecting", "open", "waiting"].includes(run.link);
    byId("drop").disabled = !connected;
    say(byId("drop"), run.background || !connected ? "Drop connection" : "Drop (cancels the run)");
    const canResume = run.resumable && !run.complete && ["dropped", "lost", "ended"].includes(run.link);
    byId("resume").disabled = !canResume;
    say(byId("resume"), canResume ? `Resume after ${run.last}` : "Resume");
    byId("cancel").disabled = !run.id || !run.background || run.ended;
    byId("replay").disabled = !(run.resumable && run.complete && run.events.length);
    byId("delete").disabled = !run.id || !run.ended || run.deleted;
    byId("copy").disabled = !run.id;
    this.paintProof();
    paintError(byId("shown-error"), run.error);
  }

  paintProof() {
    const { run } = this;
    const proof = byId("proof");
    proof.hidden = !run.events.length;
    if (proof.hidden) return;
    const whole = run.missing === 0 && run.doubled === 0;
    const missing = run.missing ? `${run.missing} missing` : "none missing";
    const twice = run.doubled ? `${run.doubled} twice` : "none twice";
    const wires = run.connections.length > 1 ? `, over ${run.connections.length} connections` : "";
    const text = `${count(run.events.length, "event")}, numbers ${run.events[0].number} to ${run.last}: ${missing}, ${twice}${wires}.`;
    say(proof, run.compared ? `${text} ${run.compared}` : text);
    proof.classList.toggle("bad", !whole || run.compared.includes("is not"));
  }

  // -- output ------------------------------------------------------------------------------------------------------

  paintOutput() {
    const { output } = this.run.fold;
    const parts = output.filter(Boolean).map(paintItem);
    const { error } = this.run.fold.response || {};
    if (error) parts.push(element("p", { class: "failure" }, `${error.code}: ${error.message}`));
    byId("output").replaceChildren(...(parts.length ? parts : [element("p", { class: "hint" }, emptyText(this.run))]));
  }

  // -- timeline ----------------------------------------------------------------------------------------------------

  paintTimeline() {
    const { run } = this;
    drawStrip(byId("strip"), run);
    byId("axis-name").hidden = byId("strip").hidden;
    say(byId("axis-name"), run.watched ? "by the time things were seen here" : "by event number; a log holds no times");
    byId("story").replaceChildren(...storyOf(run).map(({ at, number, text, look }) =>
      element("li", { class: look },
        element("span", { class: "when" }, run.watched && at !== null ? seconds(at) : number === null ? "" : `no. ${number}`),
        element("span", {}, text))));
    byId("facts").replaceChildren(...factsOf(run).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  // -- events ------------------------------------------------------------------------------------------------------

  paintEvents() {
    const { run } = this;
    byId("events-card").hidden = !run.stream;
    const body = byId("events");
    const box = byId("events-box");
    const made = [];
    for (; this.rows < run.events.length; this.rows += 1) {
      const event = run.events[this.rows];
      if (event.connection !== this.shownConnection) {
        this.shownConnection = event.connection;
        made.push(element("tr", { class: "wire-row" }, element("td", { colspan: 4 }, run.connections[event.connection].name)));
      }
      made.push(eventRow(event, run.watched));
    }
    body.append(...made);
    while (body.rows.length > ROWS) body.rows[0].remove();
    if (made.length && byId("tail").checked) box.scrollTop = box.scrollHeight;
  }
}

function emptyText(run) {
  if (run.ended) return "No output.";
  return ["queued", "waiting"].includes(run.status) ? "It has not begun." : "Nothing yet.";
}

export function paintPill(pill, status) {
  say(pill, status.replace("_", " "));
  pill.className = `pill ${status}`;
  pill.hidden = !status;
}

export function paintError(host, error) {
  if (!error) {
    if (host.childNodes.length) host.replaceChildren();
    return;
  }
  const details = [error.status && `HTTP ${error.status}`, error.code, error.param && `param ${error.param}`, error.requestId];
  host.replaceChildren(element("div", { class: "error" }, element("strong", {}, error.message),
    element("span", {}, details.filter(Boolean).join(" · "))));
}

function linkText(run) {
  if (run.link === "dropped") return run.last < 0 ? "dropped by you" : `dropped by you after event ${run.last}`;
  if (run.link === "lost") return "connection lost";
  if (run.link === "connecting" && run.connections.length > 1) return "reconnecting …";
  return LINKS[run.link] || "";
}

function paintItem(item) {
  if (item.type !== "message") {
    const title = [item.type, item.name].filter(Boolean).join(" ");
    const text = typeof item.arguments === "string" ? item.arguments : JSON.stringify(item, null, 2);
    return element("div", { class: "item" }, element("p", { class: "item-type" }, title), element("pre", {}, text));
  }
  const text = (item.content || []).filter(Boolean).map((part) => part.text ?? part.refusal ?? "").join("");
  return element("p", { class: `text ${item.status || ""}` }, text);
}

function eventRow(event, watched) {
  const kind = event.type.endsWith(".delta") ? "delta" : "";
  const row = element("tr", { class: `${kind} ${colour(event.entry)} ${event.reset ? "reset" : ""}` });
  const button = element("button", { type: "button", class: "number", "aria-expanded": "false",
    "aria-label": `Event ${event.number}, as JSON`, onclick: () => toggle(row, button, event) }, String(event.number));
  row.append(element("td", {}, button), element("td", { class: "time" }, watched ? seconds(event.at) : ""),
    element("td", { class: "type" }, event.type.replace(/^response\./, "")),
    element("td", { class: "gist" }, gist(event)));
  return row;
}

function toggle(row, button, event) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) row.nextSibling.remove();
  else row.after(element("tr", { class: "json" }, element("td", { colspan: 4 }, element("pre", {}, JSON.stringify(event.data, null, 2)))));
}

function gist({ data, reset }) {
  if (reset) return `reset: another entry goes on from ${count(reset.kept, "item")}; ${reset.discarded} begun again`;
  if (typeof data.delta === "string") return data.delta;
  if (typeof data.text === "string") return data.text;
  if (data.item) return [data.item.type, data.item.name, data.item.status].filter(Boolean).join(" · ");
  if (data.part) return data.part.type;
  if (data.response) return [data.response.status, data.response.error?.message].filter(Boolean).join(": ");
  return data.message || "";
}

// -- what happened, in words ----------------------------------------------------------------------------------------

const BREAKS = { dropped: "You dropped the connection", lost: "The connection was lost" };

function storyOf(run) {
  const story = [];
  const tell = (at, number, text, look = "") => story.push({ at, number, text, look });
  if (run.watched) {
    run.connections.forEach((connection, index) => {
      if (index) tell(connection.opened, connection.first, `Resumed: ${connection.name}`);
      if (BREAKS[connection.how]) {
        const after = connection.last === null ? "before an event came" : `after event ${connection.last}`;
        tell(connection.closed, connection.last, `${BREAKS[connection.how]} ${after}`, "warn");
      }
    });
  }
  if (run.watched && !run.stream) for (const { at, status } of run.statuses) tell(at, null, `It was ${status.replace("_", " ")}`);
  const seenAt = new Map();
  for (const event of run.events) {
    seenAt.set(event.number, event.at);
    const said = tellEvent(event);
    if (said) tell(event.at, event.number, ...said);
  }
  for (const mark of run.timeline?.marks || []) {
    if (mark.what === "roll_over") {
      tell(seenAt.get(mark.sequence_number) ?? null, mark.sequence_number, `The log went on in segment ${mark.segment}`);
    }
  }
  const by = run.watched ? "at" : "number";
  return story.sort((one, other) => (one[by] ?? 0) - (other[by] ?? 0));
}

function tellEvent(event) {
  if (event.reset) {
    const { kept, discarded } = event.reset;
    const rest = discarded ? `; ${count(discarded, "unfinished item")} begun again` : "";
    return [`Another entry took over from ${count(kept, "item")}${rest}`, "reset"];
  }
  const status = event.data.response?.status;
  switch (event.type) {
    case "response.created": return ["Created and on record"];
    case "response.in_progress": return ["The handler began"];
    case "response.completed": return ["Completed", "good"];
    case "response.incomplete": return ["Ended incomplete", "warn"];
    case "response.failed": return [status === "cancelled" ? "Cancelled" : "Failed", "warn"];
    case "error": return [`Ended with an error: ${event.data.message}`, "warn"];
    default: return null;
  }
}

const FATES = {
  resilient: "another worker goes on",
  background: "it fails, with the reason",
  foreground: "it fails, with the reason",
};

function factsOf(run) {
  const line = run.timeline;
  if (!line) return [];
  const facts = [["If its worker dies", FATES[line.disposition] || line.disposition]];
  if (line.background) {
    facts.push(["Attempts", String(line.attempt)], ["Claims", String(line.generation)], ["Graceful hand-overs", String(line.hand_overs)]);
  }
  if (line.checkpoint) facts.push(["Last checkpoint", count(line.checkpoint.output_items, "item")]);
  if (line.log) {
    const size = line.log.bytes < 10_240 ? `${line.log.bytes} bytes` : `${Math.round(line.log.bytes / 1024)} KiB`;
    facts.push(["Log", `${count(line.log.events, "event")}, ${size}, ${count(line.log.segments.length, "segment")}${line.log.truncated ? ", more not looked at" : ""}`]);
  }
  if (line.chain) facts.push(["Conversation", placeInChain(line.chain)]);
  if (line.worker) facts.push(["Worker", line.worker]);
  return facts;
}

function placeInChain(chain) {
  const place = [`turn ${chain.turn}`];
  if (chain.waits_for) place.push(`waits for ${chain.waits_for}`);
  else if (chain.steered) place.push("had to wait for its turn");
  if (chain.waiting_behind.length) place.push(`${count(chain.waiting_behind.length, "turn")} behind it`);
  return place.join(", ");
}
