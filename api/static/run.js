// One response as this page watches it: its events, the connections they came over, and what they add up to.

import { Fold } from "./fold.js";
import * as api from "./api.js";

export const TERMINAL = new Set(["completed", "failed", "incomplete", "cancelled"]);
const ENDS = new Set(["response.completed", "response.failed", "response.incomplete", "error"]);
const FIRST_PAUSE = 400;
const LONGEST_PAUSE = 4000;
const POLL = 700;
const SETTLE = 1500;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Run extends EventTarget {
  constructor(prompt) {
    super();
    this.prompt = prompt;
    this.id = "";
    this.began = performance.now();
    this.watched = true; // from its first event on: the times of arrival mean something
    this.background = false;
    this.stream = false;
    this.link = "idle"; // idle, connecting, open, dropped, lost, waiting, polling, ended
    this.events = [];
    this.connections = [];
    this.statuses = []; // {at, status}: each that was told by something else than an event
    this.missing = 0;
    this.doubled = 0;
    this.compared = "";
    this.fold = new Fold();
    this.timeline = null;
    this.error = null;
    this.deleted = false;
    this.seen = new Set();
    this.abort = null;
    this.failures = 0; // resumes in a row that brought no event
  }

  get last() {
    return this.events.length ? this.events[this.events.length - 1].number : -1;
  }

  get status() {
    if (this.deleted) return "deleted";
    return this.fold.response?.status || (this.link === "open" ? "waiting" : "");
  }

  get ended() {
    return this.complete || TERMINAL.has(this.status);
  }

  // Whether the stream was seen to its end; the response itself may be decided before.
  get complete() {
    return this.deleted || (this.events.length > 0 && ENDS.has(this.events.at(-1).type));
  }

  get resumable() {
    return this.background && this.stream && !this.deleted;
  }

  get now() {
    return performance.now() - this.began;
  }

  changed(what) {
    this.dispatchEvent(new CustomEvent("change", { detail: what }));
  }

  // -- ways to begin ---------------------------------------------------------------------------------------------

  async send(body) {
    this.background = body.background;
    this.stream = body.stream;
    const connection = this.connect("POST");
    const answer = await this.refusable(connection, api.create(body, this.abort.signal));
    if (answer === null) return;
    if (body.stream) {
      await this.read(answer, connection);
      return;
    }
    try {
      this.take(await answer.json());
      this.close(connection, "ended");
    } catch (error) {
      this.close(connection, this.abort.signal.aborted ? "dropped" : "lost");
      return;
    }
    await this.refresh();
    if (this.background) await this.poll();
  }

  async open(id) {
    this.id = id;
    this.watched = false;
    this.take(await api.json("GET", api.one(id)));
    await this.refresh();
    this.background = Boolean(this.timeline?.background);
    this.stream = Boolean(this.timeline?.stream);
    if (this.resumable) await this.resume();
    else if (!this.ended) await this.poll();
  }

  // -- the connection --------------------------------------------------------------------------------------------

  connect(name) {
    this.abort = new AbortController();
    const connection = { name, opened: this.now, closed: null, how: "", first: null, last: null };
    this.connections.push(connection);
    this.setLink("connecting");
    return connection;
  }

  close(connection, how) {
    connection.closed = this.now;
    connection.how = how;
    this.setLink(how);
  }

  setLink(link) {
    this.link = link;
    this.changed("link");
  }

  // The answer to a request; null if it was refused or never came, which is then said.
  async refusable(connection, request) {
    try {
      return await request;
    } catch (error) {
      if (this.abort.signal.aborted) {
        this.close(connection, "dropped");
      } else if (error instanceof api.ApiError && error.status < 500) {
        this.error = error;
        this.close(connection, "ended");
        this.changed("error");
      } else {
        if (!this.id) this.error = error;
        this.close(connection, "lost");
        this.changed("error");
      }
      return null;
    }
  }

  async read(answer, connection) {
    this.error = null;
    this.setLink("open");
    const { signal } = this.abort;
    try {
      for await (const { data, raw } of api.frames(answer)) this.takeEvent(data, raw, connection);
    } catch {
      // Broken or aborted: what follows is decided by what was seen.
    }
    if (this.complete) this.close(connection, "ended");
    else this.close(connection, signal.aborted ? "dropped" : "lost");
    if (this.link === "lost" && this.resumable) {
      await this.resumeAgain();
    } else if (this.complete || this.background) {
      await this.refresh();
    } else if (this.id) {
      await pause(SETTLE); // a foreground run ends with its connection, and is readable then
      await this.look();
      await this.refresh();
    }
  }

  async resume() {
    const after = this.last;
    const connection = this.connect(after < 0 ? "GET" : `GET after ${after}`);
    const answer = await this.refusable(connection, api.events(this.id, after, this.abort.signal));
    if (answer !== null) await this.read(answer, connection);
    else if (this.link === "lost") await this.resumeAgain();
  }

  async resumeAgain() {
    this.setLink("waiting");
    await pause(Math.min(FIRST_PAUSE * 2 ** this.failures, LONGEST_PAUSE));
    if (this.link !== "waiting") return; // dropped or deleted meanwhile
    this.failures += 1;
    await this.resume();
  }

  drop() {
    if (this.link === "waiting") this.setLink("dropped");
    this.abort?.abort();
  }

  // -- without a stream --------------------------------------------------------------------------------------------

  async poll() {
    this.setLink("polling");
    while (!this.ended && this.link === "polling") {
      await pause(POLL);
      await this.look();
    }
    if (this.link === "polling") this.setLink("ended");
    await this.refresh();
  }

  async look() {
    try {
      this.take(await api.json("GET", api.one(this.id)));
    } catch (error) {
      if (error instanceof api.ApiError && error.status < 500) {
        this.error = error;
        this.setLink("ended");
        this.changed("error");
      }
    }
  }

  // -- what can be done with it ------------------------------------------------------------------------------------

  async cancel() {
    await this.tried(async () => this.take(await api.json("POST", api.one(this.id, "/cancel"))));
  }

  async remove() {
    await this.tried(async () => {
      await api.json("DELETE", api.one(this.id));
      this.deleted = true;
      this.drop();
      this.changed("state");
    });
  }

  // Read the stream once more from its start, and hold it against what was seen.
  async replay() {
    this.compared = "reading …";
    this.changed("state");
    await this.tried(async () => {
      let same = 0;
      let differs = false;
      for await (const { data, raw } of api.frames(await api.events(this.id, -1))) {
        differs = this.events[same]?.raw !== raw || data.sequence_number !== same;
        if (differs) break;
        same += 1;
      }
      const all = !differs && same === this.events.length;
      this.compared = all ? `Replayed from the start: all ${same} events are the same, byte for byte.`
        : `Replayed from the start: event ${same} is not the one that was seen.`;
    });
    if (this.compared === "reading …") this.compared = "";
    this.changed("state");
  }

  async tried(work) {
    this.error = null;
    try {
      await work();
    } catch (error) {
      this.error = error;
    }
    this.changed("error");
  }

  async refresh() {
    if (this.deleted || !this.id) return;
    try {
      this.timeline = await api.json("GET", api.one(this.id, "/timeline"));
    } catch {
      this.timeline = null; // not stored, or in flight in the foreground
    }
    this.changed("timeline");
  }

  // -- what comes in ---------------------------------------------------------------------------------------------

  take(response) {
    this.id = response.id;
    this.fold.replace(response);
    if (this.statuses.at(-1)?.status !== response.status) this.statuses.push({ at: this.now, status: response.status });
    this.changed("state");
  }

  takeEvent(data, raw, connection) {
    const number = data.sequence_number;
    if (this.seen.has(number)) {
      this.doubled += 1;
      this.changed("state");
      return;
    }
    if (number > this.last + 1) this.missing += number - this.last - 1;
    this.seen.add(number);
    if (data.response?.id) this.id = data.response.id;
    const before = this.fold.entry;
    this.fold.apply(data);
    this.failures = 0;
    connection.first ??= number;
    connection.last = number;
    const event = { number, type: data.type, at: this.now, connection: this.connections.indexOf(connection),
      entry: this.fold.entry, reset: this.fold.entry > before ? { ...this.fold.taken } : null, data, raw };
    this.events.push(event);
    this.changed("event");
    if (this.background && (event.reset || number === 0)) this.refresh();
  }
}
