// The branch form of one card: starts a new job at the film's step under the slider, or at the nearest step before it
// that kept its latents.

import { ask, look } from "/static/sse.js";

export class Branch {
  constructor(card, film) {
    this.card = card;
    this.job = card.job;
    this.kept = new Map(); // picture → its steps to branch from
    const box = card.part("branch");
    const part = (name) => box.querySelector(`.${name}`);
    [this.button, this.form, this.which, this.from, this.said] = ["branch-button", "branch-form", "which", "from", "notice"].map(part);
    [this.words, this.seed, this.steps, this.guidance, this.go] = ["words", "seed", "steps", "guidance", "imagine"].map(part);
    this.end = part("finish");
    this.pictures = this.job.pictures.filter((picture) => picture.branch);
    this.n = this.pictures[0].n;
    this.fill();
    this.button.addEventListener("click", () => this.open(this.form.hidden));
    this.end.hidden = !this.job.stopped_at; // a stopped picture can go on
    this.end.title = `From step ${this.job.stopped_at} of ${this.job.steps} on, as it would have gone`;
    this.end.addEventListener("click", () => this.finish());
    part("close").addEventListener("click", () => this.open(false));
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.send()));
    film.seen = (keyframe) => this.stand(keyframe?.step);
    this.show();
    box.hidden = false;
  }

  fill() {
    this.words.value = this.job.prompt_text;
    this.steps.placeholder = String(this.job.steps);
    this.guidance.placeholder = String(this.job.guidance);
    this.which.hidden = this.pictures.length < 2;
    for (const { n } of this.pictures) {
      const one = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: `from-${this.job.id}`, value: n, checked: n === this.n });
      radio.addEventListener("change", () => this.choose(n));
      this.card.light(n, radio);
      one.append(radio, ` ${n}`);
      this.which.append(one);
    }
  }

  async choose(n) {
    this.n = n;
    await this.load();
    this.show();
  }

  async stand(step) {
    this.step = step;
    this.show();
    if (step === undefined || this.kept.has(this.n)) return;
    await this.load();
    this.show();
  }

  async load() {
    const { n } = this;
    if (this.kept.has(n)) return;
    const answer = await look(this.pictures.find((picture) => picture.n === n).branch);
    if (answer) this.kept.set(n, answer.steps);
  }

  // The step that a branch starts from, as the server chooses it.
  get at() {
    const steps = this.kept.get(this.n);
    if (this.step === undefined || !steps?.length) return null;
    return steps.findLast((step) => step <= this.step) ?? steps[0];
  }

  show() {
    const { at } = this;
    const none = this.kept.get(this.n)?.length === 0;
    this.button.disabled = this.form.hidden && at === null;
    this.button.textContent = at === null || at === this.step ? "Branch from here" : `Branch from step ${at}`;
    this.go.disabled = at === null;
    const text = none ? "This picture kept no step to branch from."
      : at === null ? "Move the slider to an earlier step."
      : at === this.step ? `From step ${at} of ${this.job.steps} on, another course.`
      : `Step ${this.step} kept no latents; step ${at} is the nearest that did.`;
    this.button.title = this.from.textContent = text;
  }

  open(on) {
    this.form.hidden = !on;
    this.button.setAttribute("aria-expanded", String(on));
    this.complain("");
    this.show();
    (on ? this.words : this.button).focus();
    if (on) this.form.scrollIntoView({ block: "nearest" });
  }

  complain(text) {
    this.said.textContent = text;
    this.said.hidden = !text;
  }

  buildRequest() {
    const request = { step: this.at };
    const words = this.words.value.trim();
    if (words !== this.job.prompt_text.trim()) request.prompt = words;
    if (this.seed.value) request.seed = Number(this.seed.value);
    if (this.steps.value) request.steps = Number(this.steps.value);
    if (this.guidance.value) request.guidance = Number(this.guidance.value);
    return request;
  }

  // Run each picture on to the end, from the last step that kept its latents.
  async finish() {
    this.end.disabled = true;
    for (const { n } of this.pictures) {
      await this.card.act("POST", `${this.card.address}/branch/${n}`, { step: this.job.stopped_at });
    }
    this.end.disabled = false;
  }

  async send() {
    const request = this.buildRequest();
    if (Object.keys(request).length === 1 && !this.job.stopped_at) return this.complain("With nothing changed it would be the same picture: change the words, the seed, the steps or the guidance.");
    this.go.disabled = true;
    try {
      await ask("POST", `${this.card.address}/branch/${this.n}`, request);
      this.open(false);
    } catch (error) {
      this.complain(error.message);
    } finally {
      this.show();
    }
  }
}
