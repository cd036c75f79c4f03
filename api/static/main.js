// The page: what is asked, which responses there are, which one is shown.

import { ApiError, ask, keepKey, readKey } from "./api.js";
import { byId, element, say } from "./dom.js";
import { Run } from "./run.js";
import { View, paintError, paintPill } from "./view.js";

const LIST = "responses-of-this-tab";
const KEPT = 12;
const EXCERPT = 60;
const READY_EVERY = 10_000;
const UNREADY_EVERY = 2_000;
const SURE_FOR = 4_000;

const view = new View();
const runs = []; // newest first
let shown = null;

// -- asking ---------------------------------------------------------------------------------------------------------

function modeHint() {
  const [store, background, stream] = ["store", "background", "stream"].map((id) => byId(id).checked);
  if (!store && background) return "The server refuses this: what runs in the background has to be stored.";
  if (!store) return "Nothing is kept: it cannot be read again.";
  if (background && stream) return "Runs without this connection; its events can be read again from any number.";
  if (background) return "Runs by itself; this page asks how it stands.";
  return stream ? "Lives with this connection: dropping it cancels the run." : "The answer comes when it has ended.";
}

function bodyOf(follow) {
  const body = { input: byId("prompt").value };
  for (const name of ["store", "background", "stream"]) body[name] = byId(name).checked;
  if (byId("model").value.trim()) body.model = byId("model").value.trim();
  const conversation = byId("conversation").value.trim();
  const previous = byId("previous").value.trim();
  if (follow && shown) {
    const told = shown.fold.response?.conversation;
    const named = typeof told === "string" ? told : told?.id;
    if (named) body.conversation = named;
    else body.previous_response_id = shown.id;
  } else {
    if (conversation) body.conversation = conversation;
    if (previous) body.previous_response_id = previous;
  }
  return body;
}

function send(event) {
  event.preventDefault();
  const body = bodyOf(event.submitter?.id === "follow");
  const run = new Run(body.input);
  paintError(byId("ask-error"), null);
  run.addEventListener("change", () => {
    if ((run.id || run.link === "open") && !runs.includes(run)) add(run);
  });
  run.send(body).then(() => {
    if (!run.id) paintError(byId("ask-error"), run.error);
  });
}

byId("ask").addEventListener("submit", send);
byId("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit(byId("send"));
});
for (const id of ["store", "background", "stream"]) byId(id).addEventListener("change", () => say(byId("mode-hint"), modeHint()));
say(byId("mode-hint"), modeHint());

// -- the list -------------------------------------------------------------------------------------------------------

function add(run) {
  runs.unshift(run);
  run.addEventListener("change", ({ detail }) => {
    if (run === shown) view.draw(detail);
    if (detail !== "event") paintList();
    if (run.deleted) keepList();
    if (detail === "event" && run.events.length === 1) {
      keepList(); // now it has an id
      nameInAddress();
      paintList();
    }
    byId("follow").disabled = !shown?.id || shown.deleted;
  });
  keepList();
  select(run);
}

function keepList() {
  const kept = runs.filter((run) => run.id && !run.deleted).slice(0, KEPT).map((run) => ({ id: run.id, prompt: run.prompt.slice(0, EXCERPT) }));
  sessionStorage.setItem(LIST, JSON.stringify(kept));
}

function select(run) {
  shown = run;
  nameInAddress();
  byId("follow").disabled = !run.id || run.deleted;
  disarm();
  view.show(run);
  paintList();
}

function nameInAddress() {
  if (shown?.id && location.hash !== `#${shown.id}`) history.replaceState(null, "", `#${shown.id}`);
}

function paintList() {
  byId("list-empty").hidden = runs.length > 0;
  const list = byId("list");
  while (list.children.length > runs.length) list.lastChild.remove();
  while (list.children.length < runs.length) list.append(listed());
  runs.forEach((run, index) => {
    const [button] = list.children[index].children;
    const [prompt, pill, id] = button.children;
    say(prompt, run.prompt || "opened by id");
    paintPill(pill, run.status);
    const turn = run.timeline?.chain?.turn;
    say(id, turn ? `turn ${turn} · ${run.id}` : run.id || "not begun");
    button.setAttribute("aria-current", String(run === shown));
    button.onclick = () => select(run);
  });
}

const listed = () => element("li", {}, element("button", { type: "button" },
  element("span", { class: "prompt" }), element("span", { class: "pill" }), element("span", { class: "id" })));

async function open(id, prompt = "", restored = false) {
  const known = runs.find((run) => run.id === id);
  if (known) {
    select(known);
    return;
  }
  const run = new Run(prompt);
  paintError(byId("ask-error"), null);
  run.addEventListener("change", () => {
    if (run.fold.response && !runs.includes(run)) add(run);
  });
  try {
    await run.open(id);
  } catch (error) {
    if (!restored) paintError(byId("ask-error"), error);
  }
}

byId("open").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("open-id").value.trim();
  if (id) open(id);
});

// -- the shown response -----------------------------------------------------------------------------------------------

let sure = null;

function disarm() {
  clearTimeout(sure);
  sure = null;
  say(byId("delete"), "Delete");
}

byId("drop").addEventListener("click", () => shown.drop());
byId("resume").addEventListener("click", () => shown.resume());
byId("cancel").addEventListener("click", () => shown.cancel());
byId("replay").addEventListener("click", () => shown.replay());
byId("delete").addEventListener("click", () => {
  if (sure === null) {
    say(byId("delete"), "Delete for good?");
    sure = setTimeout(disarm, SURE_FOR);
    return;
  }
  disarm();
  shown.remove();
});
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(shown.id);
  say(byId("copy"), "Copied");
  setTimeout(() => say(byId("copy"), "Copy id"), 1500);
});

// -- the server -------------------------------------------------------------------------------------------------------

async function lookAtServer() {
  const server = byId("server");
  let [state, text] = ["ready", "server ready"];
  try {
    await ask("GET", "readyz");
  } catch (error) {
    [state, text] = ["away", "server not reachable"];
    if (error instanceof ApiError) [state, text] = [401, 403].includes(error.status) ? ["locked", "an API key is needed"] : ["unready", "storage not reachable"];
  }
  server.className = `server ${state}`;
  say(server, text);
  setTimeout(lookAtServer, state === "ready" ? READY_EVERY : UNREADY_EVERY);
}

byId("key").value = readKey();
byId("key").addEventListener("input", () => keepKey(byId("key").value.trim()));
byId("key-form").addEventListener("submit", (event) => event.preventDefault());

// A response of the list as it was; resolves as soon as it is there, or known to be gone.
function opened(id, prompt) {
  return new Promise((done) => {
    open(id, prompt, true).then(done);
    const look = setInterval(() => {
      if (!runs.some((run) => run.id === id)) return;
      clearInterval(look);
      done();
    }, 20);
    setTimeout(() => clearInterval(look), UNREADY_EVERY);
  });
}

async function begin() {
  lookAtServer();
  const kept = JSON.parse(sessionStorage.getItem(LIST) || "[]");
  const wanted = location.hash.slice(1);
  await Promise.all(kept.reverse().map(({ id, prompt }) => opened(id, prompt)));
  if (/^resp_\w+$/.test(wanted)) open(wanted);
}

begin();
