// One job as one message: waiting, running, and finished with its pictures, its film and its buttons.
// Text that people wrote is inserted only by textContent.

import { Branch } from "/static/branch.js";
import { showActions } from "/static/actions.js";
import { Desk } from "/static/desk.js";
import { Film } from "/static/film.js";
import { Pause } from "/static/pause.js";
import { createButton } from "/static/rows.js";
import { describeAction, formatClock, formatTimeLeft, formatWait } from "/static/texts.js";

const template = document.getElementById("card");
const END_STATES = new Set(["finished", "failed", "cancelled"]);

export class Card {
  // `submitRequest(method, address, body)` sends a request and resolves to whether the server accepted it.
  constructor(job, submitRequest) {
    this.submitRequest = submitRequest;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.id = `job-${job.id}`;
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("cancel").addEventListener("click", (event) => this.submitFrom(event.currentTarget, "DELETE", this.address));
    this.address = `/api/jobs/${job.id}`;
    this.pause = new Pause(this);
    this.desk = new Desk(this);
    this.renderHeader(job);
    this.buildTiles(job);
    this.update(job);
  }

  renderHeader(job) {
    this.part("author").textContent = job.author.you ? "You" : job.author.name;
    this.part("action").append(job.parent ? Object.assign(document.createElement("a"), { href: `#job-${job.parent.id}`, textContent: describeAction(job) }) : describeAction(job));
    const time = this.element.querySelector("time");
    time.dateTime = new Date(job.created * 1000).toISOString();
    time.textContent = formatClock(job.created);
    this.part("prompt").append(...splitFlags(job.prompt));
    this.element.setAttribute("aria-label", `${this.part("author").textContent}: ${job.prompt || describeAction(job)}`);
  }

  buildTiles(job) {
    if (job.width) this.part("grid").style.setProperty("--aspect", `${job.width} / ${job.height}`);
    this.tiles = new Map(); // the number of a picture → its tile
    this.showTiles(job.images);
  }

  // One tile for each picture that develops: steering drops some, and splits add some.
  showTiles(numbers) {
    const grid = this.part("grid");
    for (const [n, tile] of this.tiles) if (!numbers.includes(n)) tile.remove();
    this.tiles = new Map(numbers.map((n) => [n, this.tiles.get(n) ?? createTile(n)]));
    const tiles = [...this.tiles.values()];
    tiles.forEach((tile, index) => {
      if (grid.children[index] !== tile) grid.insertBefore(tile, grid.children[index] ?? null); // moving one would blink
    });
    grid.dataset.count = String(tiles.length);
  }

  get isEnded() {
    return END_STATES.has(this.job.state);
  }

  update(job) {
    this.job = job;
    this.showTiles((!this.isEnded && this.desk.images) || job.images);
    this.element.dataset.state = job.state;
    this.element.setAttribute("aria-busy", String(!this.isEnded));
    this.showNotes(job.notes);
    this.setStatusText(job.footer);
    this.desk.update(job.state === "running");
    if (this.isEnded) return this.showEnd(job);
    if (job.state === "running") this.showProgress(job.percent, job.eta);
    else this.showWait(job);
    this.part("cancel").disabled = job.cancelling;
    this.part("cancel").hidden = !job.can_cancel;
    this.pause.setAvailable(job.state === "running");
  }

  showWait({ jobs_ahead, eta, has_worker = true, wait_reason = "", startup_notice = "" }) {
    if (this.isEnded) return;
    this.part("grid").classList.toggle("compact", jobs_ahead > 0 || !has_worker);
    this.part("percent").textContent = "";
    const text = jobs_ahead == null ? "Sent to a worker" : formatWait(jobs_ahead, eta, has_worker, this.job.author.you, startup_notice);
    this.part("time-left").textContent = [...new Set([text, wait_reason])].filter(Boolean).join(" · ");
    this.element.querySelector("progress").removeAttribute("value");
    this.setProgressLabel(text);
  }

  // Its worker loads the model: the bar shows that until the first preview.
  showLoading({ percent, sentence }) {
    if (this.isEnded) return;
    this.element.dataset.state = "loading";
    this.part("grid").classList.remove("compact");
    this.element.querySelector("progress").value = percent;
    this.part("percent").textContent = "";
    this.part("time-left").textContent = sentence;
    this.setProgressLabel(sentence);
  }

  showFrame({ step, total_steps, percent, seconds_left, frames }) {
    if (this.isEnded) return;
    this.element.dataset.state = "running";
    this.pause.onPreview(step);
    this.desk.update(true);
    this.showProgress(percent, seconds_left);
    this.part("time-left").title = `step ${step} of ${total_steps}`;
    for (const [n, jpeg] of Object.entries(frames)) {
      if (!this.desk.images && Number(n) > this.job.count) this.addTile(Number(n)); // of a split that is not reported yet
      const tile = this.tiles.get(Number(n));
      if (!tile) continue;
      tile.classList.add("has-preview");
      tile.firstElementChild.src = `data:image/jpeg;base64,${jpeg}`;
    }
  }

  addTile(n) {
    if (!this.tiles.has(n)) this.showTiles([...this.tiles.keys(), n].sort());
  }

  showProgress(percent, seconds) {
    this.part("grid").classList.remove("compact");
    this.element.querySelector("progress").value = percent;
    this.part("percent").textContent = `${percent} %`;
    this.part("time-left").textContent = this.pause.isPaused ? "paused" : seconds == null ? "running" : formatTimeLeft(seconds);
    this.part("grid").style.setProperty("--tint", String(1 - percent / 100));
    this.setProgressLabel(`${percent} percent done`);
  }

  setProgressLabel(text) {
    this.element.querySelector("progress").setAttribute("aria-label", text);
  }

  showEnd(job) {
    this.part("grid").style.setProperty("--tint", "0");
    this.part("grid").classList.remove("compact");
    for (const picture of job.pictures) this.showPicture(picture, job);
    this.part("job-progress").hidden = true;
    if (job.state !== "finished") this.setStatusText(job.reason || `This job was ${job.state}.`);
    const holdReasons = job.pictures.map((picture) => picture.held).filter(Boolean);
    if (holdReasons.length) this.setStatusText([job.footer, ...holdReasons].join(" · "));
    if (job.state !== "finished" || this.hasActions) return;
    this.hasActions = true;
    if (job.keyframes) {
      this.film = new Film(this.part("film"), this.part("grid"), job);
      if (job.pictures.some((picture) => picture.branch)) this.branch = new Branch(this, this.film);
    }
    if (job.walk_films?.webp) this.showInterpolationFilm(job);
    showActions(this);
  }

  // The film of an interpolation is under the pictures of its last job.
  showInterpolationFilm(job) {
    const film = Object.assign(document.createElement("img"), { className: "interpolation-film", src: job.walk_films.webp });
    film.alt = `Film of the interpolation, there and back: ${job.prompt}`;
    this.part("grid").after(film);
  }

  showPicture(picture, job) {
    const tile = this.tiles.get(picture.n);
    const image = tile.firstElementChild;
    tile.classList.add("finished");
    if (picture.held) return this.hidePicture(tile, picture);
    tile.href = picture.url;
    tile.target = "_blank";
    if (!job.width) this.part("grid").style.setProperty("--aspect", `${picture.width} / ${picture.height}`);
    image.src = picture.url;
    image.alt = `Picture ${picture.n} of ${job.count}: ${job.prompt}`;
  }

  // A picture that the picture check holds keeps its last preview, blurred, with the reason.
  hidePicture(tile, picture) {
    tile.title = picture.held;
    tile.firstElementChild.alt = picture.held;
    if (!tile.firstElementChild.src) tile.classList.remove("finished");
  }

  // A picture has a border while the pointer or the focus is on `control`.
  highlightOnHover(n, control) {
    const setHighlighted = (isOn) => () => this.tiles.get(n).classList.toggle("highlighted", isOn);
    for (const kind of ["pointerenter", "focus"]) control.addEventListener(kind, setHighlighted(true));
    for (const kind of ["pointerleave", "blur"]) control.addEventListener(kind, setHighlighted(false));
  }

  // A button that sends a request, with an optional `body`; `onAccepted` is called once the server accepted it.
  createRequestButton(text, label, address, { body, onAccepted } = {}) {
    const button = createButton(text, label);
    button.addEventListener("click", () => this.submitFrom(button, "POST", address, onAccepted, body));
    return button;
  }

  async submitFrom(button, method, address, onAccepted = () => {}, body = undefined) {
    button.disabled = true;
    const isAccepted = await this.submitRequest(method, address, body);
    button.disabled = method === "DELETE" && isAccepted;
    if (isAccepted) onAccepted();
    if (method !== "DELETE" && isAccepted) button.classList.add("accepted");
  }

  setStatusText(sentence) {
    this.part("status-text").textContent = sentence;
  }

  showNotes(notes) {
    this.part("notes").replaceChildren(
      ...notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
  }
}

function createTile(n) {
  const tile = document.createElement("a");
  tile.className = "tile";
  tile.append(Object.assign(document.createElement("img"), { alt: "", draggable: false }));
  tile.dataset.n = n;
  return tile;
}

// The prompt with its flags in spans, so that a line never breaks inside `--fast`.
function splitFlags(prompt) {
  return prompt.split(/(--[a-z]+)/i).map((text, index) => {
    if (index % 2 === 0) return document.createTextNode(text);
    return Object.assign(document.createElement("span"), { className: "prompt-flag", textContent: text });
  });
}
