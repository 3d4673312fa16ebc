// The chatroom: the form sends prompts, the one event stream brings everything that happens.

import { Card } from "/static/card.js";
import { Describe } from "/static/describe.js";
import { InitImages } from "/static/init_images.js";
import { ask, follow, look } from "/static/sse.js";
import { status as sentence } from "/static/texts.js";

const at = (id) => document.getElementById(id);
const [log, list, prompt, notice, newest] = ["log", "jobs", "prompt", "notice", "newest"].map(at);
const MOST = 60; // cards on the page; the oldest ended ones are removed
const cards = new Map();
const initImages = new InitImages(at("ask"), complain);
new Describe(at("ask"), initImages, (text) => (write(text), prompt.focus()), complain);
const past = []; // prompts of this visit, for the up arrow
let online = true; // whether any worker is online
let stuck = true; // whether the page follows the newest message

// --- events from the server

function show(job) {
  const known = cards.get(job.id);
  if (known) return known.update(job);
  const card = new Card(job, act);
  cards.set(job.id, card);
  list.append(card.element);
  document.body.classList.add("peopled");
  if (job.author.you && !card.over) stick();
  else if (!stuck) newest.hidden = false;
  thin();
}

function thin() {
  for (const [id, card] of cards) {
    if (cards.size <= MOST) return;
    if (!card.over || card.element.contains(document.activeElement)) continue;
    card.element.remove();
    cards.delete(id);
  }
}

function light(room) {
  const text = sentence(room);
  online = room.online;
  document.body.classList.remove("lost");
  at("lamp").classList.toggle("lit", room.online);
  if (at("status").textContent !== text) at("status").textContent = text;
}

function title() {
  const running = [...cards.values()].filter((card) => card.element.dataset.state === "running");
  at("lamp").classList.toggle("busy", running.length > 0);
  const percent = running[0]?.part("percent").textContent;
  document.title = percent ? `${percent} · Darkroom` : "Darkroom";
}

const heard = {
  room: light,
  jobs: ({ jobs }) => (jobs.forEach(show), askAfter(jobs), title()),
  job: (job) => (show(job), title()),
  queued: (queued) => cards.get(queued.id)?.queued({ ...queued, has_worker: online }),
  loading: (loading) => (cards.get(loading.id)?.loading(loading), title()),
  frame: (frame) => (cards.get(frame.id)?.frame(frame), title()),
  gone: ({ id }) => (cards.get(id)?.element.remove(), cards.delete(id), title()), // its pictures were deleted
};

function lost() {
  document.body.classList.add("lost");
  at("lamp").classList.remove("lit", "busy");
  at("status").textContent = "Connection lost. Coming back by itself …";
}

function shut(reason) {
  at("status").textContent = reason;
}

// Ask for jobs that a reopened stream no longer lists, because they ended long ago.
function askAfter(jobs) {
  const told = new Set(jobs.map((job) => job.id));
  for (const card of cards.values()) {
    if (card.over || told.has(card.job.id)) continue;
    look(card.address).then((job) => job && show(job));
  }
}

// --- requests to the server

function complain(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

// `body`: a value, or a function that makes it.
async function act(method, address, body) {
  try {
    await ask(method, address, typeof body === "function" ? await body() : body);
    complain("");
    return true;
  } catch (error) {
    complain(error.message);
    return false;
  }
}

async function send() {
  const text = prompt.value.trim();
  const button = at("ask").querySelector(".imagine");
  if (button.disabled) return;
  if (!text && !initImages.any) return complain("Say what you would like to see, or take one of the examples.");
  button.disabled = true;
  const agreed = await act("POST", "/api/jobs", () => initImages.buildRequest(text));
  button.disabled = false;
  if (!agreed) return prompt.focus();
  initImages.clear();
  if (text && past.at(-1) !== text) past.push(text);
  if (prompt.value.trim() === text) write("");
}

function write(text) {
  prompt.value = text;
  fit();
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

at("ask").addEventListener("submit", (event) => (event.preventDefault(), send()));
prompt.addEventListener("input", () => (fit(), complain("")));
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !prompt.value && past.length) {
    event.preventDefault();
    write(past.at(-1));
  }
});

for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => (write(example.textContent), prompt.focus()));
}
for (const flag of document.querySelectorAll(".flag")) {
  flag.addEventListener("click", () => {
    const text = flag.dataset.text;
    write(text ?? `${prompt.value.trimEnd()} ${flag.textContent} `.trimStart());
    prompt.focus();
  });
}

list.addEventListener("begin", ({ detail }) => {
  initImages.use(detail);
  prompt.focus();
});

at("invite")?.addEventListener("click", async () => {
  try {
    const { path } = await ask("POST", "/api/invitations");
    at("invited-address").value = new URL(path, location.href).href;
    at("invited").showModal();
    at("invited-address").select();
  } catch (error) {
    complain(error.message);
  }
});

// --- keep the newest message in sight, unless the reader has scrolled up

function stick() {
  stuck = true;
  newest.hidden = true;
  log.scrollTop = log.scrollHeight;
}

log.addEventListener("scroll", () => {
  stuck = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  if (stuck) newest.hidden = true;
});
newest.addEventListener("click", stick);
// not while someone types in a message's form, which would leave the screen
const keep = () => stuck && !list.querySelector("form:focus-within") && stick();
new ResizeObserver(keep).observe(list);
new ResizeObserver(keep).observe(log);

follow(heard, lost, shut);
if (matchMedia("(pointer: fine)").matches) prompt.focus();
