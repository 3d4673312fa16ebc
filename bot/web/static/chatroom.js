// The chatroom: the form sends prompts, and one event stream carries everything that happens.

import { Card } from "/static/card.js";
import { Describe } from "/static/describe.js";
import { InitImages } from "/static/init_images.js";
import { fetchJson, sendRequest, subscribe } from "/static/sse.js";
import { describeWorkers } from "/static/texts.js";

const elementById = (id) => document.getElementById(id);
const [log, list, prompt, notice, newest] = ["log", "jobs", "prompt", "notice", "newest"].map(elementById);
const [form, statusLight] = ["prompt-form", "status-light"].map(elementById);
const MAX_CARDS = 60; // the oldest ended ones are removed
const FOLLOW_PIXELS = 80; // as close to the end, the page follows the newest message
const cards = new Map();
const initImages = new InitImages(form, showError);
if (form.querySelector(".describe")) {
  new Describe(form, initImages, (text) => (setPrompt(text), prompt.focus()), showError);
}
const promptHistory = []; // prompts of this visit, for the up arrow
let isOnline = true; // whether any worker is online
let followsNewest = true;

// --- events from the server

function showJob(job) {
  const known = cards.get(job.id);
  if (known) return known.update(job);
  const card = new Card(job, submitRequest);
  cards.set(job.id, card);
  list.append(card.element);
  document.body.classList.add("has-jobs");
  if (job.author.you && !card.isEnded) scrollToNewest();
  else if (!followsNewest) newest.hidden = false;
  removeOldCards();
}

function removeOldCards() {
  for (const [id, card] of cards) {
    if (cards.size <= MAX_CARDS) return;
    if (!card.isEnded || card.element.contains(document.activeElement)) continue;
    card.element.remove();
    cards.delete(id);
  }
}

function showWorkerStatus(workers) {
  const text = describeWorkers(workers);
  initImages.offerRoles(workers);
  isOnline = workers.online;
  document.body.classList.remove("disconnected");
  statusLight.classList.toggle("on", workers.online);
  if (elementById("status").textContent !== text) elementById("status").textContent = text;
}

function updateTitle() {
  const running = [...cards.values()].filter((card) => card.element.dataset.state === "running");
  statusLight.classList.toggle("busy", running.length > 0);
  const percent = running[0]?.part("percent").textContent;
  document.title = percent ? `${percent} · Darkroom` : "Darkroom";
}

const eventHandlers = {
  workers: showWorkerStatus,
  jobs: ({ jobs }) => (jobs.forEach(showJob), fetchMissingJobs(jobs), updateTitle(), cards.forEach((card) => card.desk.reload())),
  job: (job) => (showJob(job), updateTitle()),
  queued: (queued) => cards.get(queued.id)?.showWait({ ...queued, has_worker: isOnline }),
  loading: (loading) => (cards.get(loading.id)?.showLoading(loading), updateTitle()),
  frame: (frame) => (cards.get(frame.id)?.showFrame(frame), updateTitle()),
  steered: (steered) => cards.get(steered.id)?.desk.takeEvent(steered),
  gone: ({ id }) => (cards.get(id)?.element.remove(), cards.delete(id), updateTitle()), // its pictures were deleted
};

function onDisconnect() {
  document.body.classList.add("disconnected");
  statusLight.classList.remove("on", "busy");
  elementById("status").textContent = "Connection lost. Reconnecting …";
}

function onRefused(reason) {
  elementById("status").textContent = reason;
}

// Fetch jobs that a reopened stream no longer lists, because they ended long ago.
function fetchMissingJobs(jobs) {
  const listedIds = new Set(jobs.map((job) => job.id));
  for (const card of cards.values()) {
    if (card.isEnded || listedIds.has(card.job.id)) continue;
    fetchJson(card.address).then((job) => job && showJob(job));
  }
}

// --- requests to the server

function showError(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

// Sends a request, shows the error of a refused one, and resolves to whether it was accepted. `body`: a value, or a
// function that makes it.
async function submitRequest(method, address, body) {
  try {
    await sendRequest(method, address, typeof body === "function" ? await body() : body);
    showError("");
    return true;
  } catch (error) {
    showError(error.message);
    return false;
  }
}

async function submitPrompt() {
  const text = prompt.value.trim();
  const button = form.querySelector(".imagine");
  if (button.disabled) return;
  if (!text && !initImages.hasImages) return showError("Type a prompt, or choose one of the examples.");
  button.disabled = true;
  const isAccepted = await submitRequest("POST", "/api/jobs", () => initImages.buildRequest(text));
  button.disabled = false;
  if (!isAccepted) return prompt.focus();
  initImages.clear();
  if (text && promptHistory.at(-1) !== text) promptHistory.push(text);
  if (prompt.value.trim() === text) setPrompt("");
}

function setPrompt(text) {
  prompt.value = text;
  resizePromptField();
}

function resizePromptField() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

form.addEventListener("submit", (event) => (event.preventDefault(), submitPrompt()));
prompt.addEventListener("input", () => (resizePromptField(), showError("")));
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submitPrompt();
  } else if (event.key === "ArrowUp" && !prompt.value && promptHistory.length) {
    event.preventDefault();
    setPrompt(promptHistory.at(-1));
  }
});

for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => (setPrompt(example.textContent), prompt.focus()));
}
for (const flag of document.querySelectorAll(".flag")) {
  flag.addEventListener("click", () => {
    const text = flag.dataset.text;
    setPrompt(text ?? `${prompt.value.trimEnd()} ${flag.textContent} `.trimStart());
    prompt.focus();
  });
}

list.addEventListener("use-init-image", ({ detail }) => {
  initImages.addFinished(detail);
  prompt.focus();
});

elementById("invite")?.addEventListener("click", async () => {
  try {
    const { path } = await sendRequest("POST", "/api/invitations");
    elementById("guest-address").value = new URL(path, location.href).href;
    elementById("guest-dialog").showModal();
    elementById("guest-address").select();
  } catch (error) {
    showError(error.message);
  }
});

for (const [id, address] of [["sign-out", "/api/sign-out"], ["sign-out-everywhere", "/api/sign-out/everywhere"]]) {
  elementById(id)?.addEventListener("click", async () => {
    if (await submitRequest("POST", address)) location.replace("/");
  });
}

// --- keep the newest message in sight, unless the reader has scrolled up

function scrollToNewest() {
  followsNewest = true;
  newest.hidden = true;
  log.scrollTop = log.scrollHeight;
}

log.addEventListener("scroll", () => {
  followsNewest = log.scrollHeight - log.scrollTop - log.clientHeight < FOLLOW_PIXELS;
  if (followsNewest) newest.hidden = true;
});
newest.addEventListener("click", scrollToNewest);
// not while someone uses a message's form or mixing desk, which would leave the screen
const scrollIfFollowing = () => followsNewest && !list.querySelector(":is(form, .desk, .tile-tools):focus-within") && scrollToNewest();
new ResizeObserver(scrollIfFollowing).observe(list);
new ResizeObserver(scrollIfFollowing).observe(log);

subscribe(eventHandlers, onDisconnect, onRefused);
if (matchMedia("(pointer: fine)").matches) prompt.focus();
