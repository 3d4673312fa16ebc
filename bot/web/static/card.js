// One job as one message: waiting, running, and finished with its pictures, its film and its buttons.
// Text that people wrote is inserted only by textContent.

import { Branch } from "/static/branch.js";
import { showActions } from "/static/actions.js";
import { Film } from "/static/film.js";
import { Pause } from "/static/pause.js";
import { button } from "/static/rows.js";
import { clock, describeAction, left, waiting } from "/static/texts.js";

const pattern = document.getElementById("card");
const OVER = new Set(["finished", "failed", "cancelled"]);

export class Card {
  // `act(method, address)` sends a request and resolves to whether the server accepted it.
  constructor(job, act) {
    this.act = act;
    this.element = pattern.content.firstElementChild.cloneNode(true);
    this.element.id = `job-${job.id}`;
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("cancel").addEventListener("click", (event) => this.press(event.currentTarget, "DELETE", this.address));
    this.address = `/api/jobs/${job.id}`;
    this.pause = new Pause(this);
    this.introduce(job);
    this.lay(job);
    this.update(job);
  }

  introduce(job) {
    this.part("who").textContent = job.author.you ? "You" : job.author.name;
    this.part("action").append(job.parent ? Object.assign(document.createElement("a"), { href: `#job-${job.parent.id}`, textContent: describeAction(job) }) : describeAction(job));
    const time = this.element.querySelector("time");
    time.dateTime = new Date(job.created * 1000).toISOString();
    time.textContent = clock(job.created);
    this.part("prompt").append(...phrases(job.prompt));
    this.element.setAttribute("aria-label", `${this.part("who").textContent}: ${job.prompt || describeAction(job)}`);
  }

  lay(job) {
    const tray = this.part("tray");
    tray.dataset.count = job.count;
    if (job.width) tray.style.setProperty("--aspect", `${job.width} / ${job.height}`);
    this.prints = Array.from({ length: job.count }, (_, index) => {
      const print = document.createElement("a");
      print.className = "print";
      print.append(Object.assign(document.createElement("img"), { alt: "", draggable: false }));
      print.dataset.n = index + 1;
      tray.append(print);
      return print;
    });
  }

  get over() {
    return OVER.has(this.job.state);
  }

  update(job) {
    this.job = job;
    this.element.dataset.state = job.state;
    this.element.setAttribute("aria-busy", String(!this.over));
    this.note(job.notes);
    this.say(job.footer);
    if (this.over) return this.end(job);
    if (job.state === "running") this.progress(job.percent, job.eta);
    else this.queued(job);
    this.part("cancel").disabled = job.cancelling;
    this.part("cancel").hidden = !job.can_cancel;
    this.pause.offer(job.state === "running");
  }

  queued({ jobs_ahead, eta, has_worker = true, wait_reason = "", startup_notice = "" }) {
    if (this.over) return;
    this.part("tray").classList.toggle("aside", jobs_ahead > 0 || !has_worker); // small while it waits
    this.part("percent").textContent = "";
    const text = jobs_ahead == null ? "Being handed to a worker" : waiting(jobs_ahead, eta, has_worker, this.job.author.you, startup_notice);
    this.part("left").textContent = [...new Set([text, wait_reason])].filter(Boolean).join(" · ");
    this.element.querySelector("progress").removeAttribute("value");
    this.label(text);
  }

  // Its worker loads the model: the bar shows that until the first preview.
  loading({ percent, sentence }) {
    if (this.over) return;
    this.element.dataset.state = "loading";
    this.part("tray").classList.remove("aside");
    this.element.querySelector("progress").value = percent;
    this.part("percent").textContent = "";
    this.part("left").textContent = sentence;
    this.label(sentence);
  }

  frame({ step, total_steps, percent, seconds_left, frames }) {
    if (this.over) return;
    this.element.dataset.state = "running";
    this.pause.seen(step);
    this.progress(percent, seconds_left);
    this.part("left").title = `step ${step} of ${total_steps}`;
    for (const [n, jpeg] of Object.entries(frames)) {
      const print = this.prints[Number(n) - 1];
      if (!print) continue;
      print.classList.add("wet");
      print.firstElementChild.src = `data:image/jpeg;base64,${jpeg}`;
    }
  }

  progress(percent, seconds) {
    this.part("tray").classList.remove("aside");
    this.element.querySelector("progress").value = percent;
    this.part("percent").textContent = `${percent} %`;
    this.part("left").textContent = this.pause.on ? "paused" : seconds == null ? "developing" : left(seconds);
    this.part("tray").style.setProperty("--dark", String(1 - percent / 100));
    this.label(`${percent} percent developed`);
  }

  label(text) {
    this.element.querySelector("progress").setAttribute("aria-label", text);
  }

  end(job) {
    this.part("tray").style.setProperty("--dark", "0");
    this.part("tray").classList.remove("aside");
    for (const picture of job.pictures) this.hang(picture, job);
    this.part("work").hidden = true;
    if (job.state !== "finished") this.say(job.reason || `This job was ${job.state}.`);
    const held = job.pictures.map((picture) => picture.held).filter(Boolean);
    if (held.length) this.say([job.footer, ...held].join(" · "));
    if (job.state !== "finished" || this.done) return;
    this.done = true;
    if (job.keyframes) {
      this.film = new Film(this.part("film"), this.part("tray"), job);
      if (job.pictures.some((picture) => picture.branch)) this.branch = new Branch(this, this.film);
    }
    if (job.walk_films?.webp) this.roam(job);
    showActions(this);
  }

  // The film of an interpolation is under the pictures of its last job.
  roam(job) {
    const film = Object.assign(document.createElement("img"), { className: "roaming", src: job.walk_films.webp });
    film.alt = `A walk there and back: ${job.prompt}`;
    this.part("tray").after(film);
  }

  hang(picture, job) {
    const print = this.prints[picture.n - 1];
    const image = print.firstElementChild;
    print.classList.add("dry");
    if (picture.held) return this.hide(print, picture);
    print.href = picture.url;
    print.target = "_blank";
    if (!job.width) this.part("tray").style.setProperty("--aspect", `${picture.width} / ${picture.height}`);
    image.src = picture.url;
    image.alt = `Picture ${picture.n} of ${job.count}: ${job.prompt}`;
  }

  // A picture that the picture check holds keeps its last preview, blurred, with the reason.
  hide(print, picture) {
    print.title = picture.held;
    print.firstElementChild.alt = picture.held;
    if (!print.firstElementChild.src) print.classList.remove("dry");
  }

  // A button's picture has a frame while the pointer is on the button.
  light(n, made) {
    const turn = (on) => () => this.prints[n - 1].classList.toggle("lit", on);
    for (const kind of ["pointerenter", "focus"]) made.addEventListener(kind, turn(true));
    for (const kind of ["pointerleave", "blur"]) made.addEventListener(kind, turn(false));
  }

  // A button that sends a request, with an optional `body`; `then` is called once the server accepted it.
  button(text, label, address, { body, then } = {}) {
    const made = button(text, label);
    made.addEventListener("click", () => this.press(made, "POST", address, then, body));
    return made;
  }

  async press(button, method, address, then = () => {}, body = undefined) {
    button.disabled = true;
    const agreed = await this.act(method, address, body);
    button.disabled = method === "DELETE" && agreed;
    if (agreed) then();
    if (method !== "DELETE" && agreed) button.classList.add("used");
  }

  say(sentence) {
    this.part("said").textContent = sentence;
  }

  note(notes) {
    this.part("notes").replaceChildren(
      ...notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
  }
}

// The prompt with its flags in spans, so that a line never breaks inside `--fast`.
function phrases(prompt) {
  return prompt.split(/(--[a-z]+)/i).map((text, index) => {
    if (index % 2 === 0) return document.createTextNode(text);
    return Object.assign(document.createElement("span"), { className: "said-flag", textContent: text });
  });
}
