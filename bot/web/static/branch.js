// The branch form of one card: starts a new job at the film's step under the slider, or at the nearest step before it
// that kept its latents.

import { fetchJson, sendRequest } from "/static/sse.js";

export class Branch {
  constructor(card, film) {
    this.card = card;
    this.job = card.job;
    this.branchSteps = new Map(); // picture → its steps with stored latents
    const box = card.part("branch");
    const part = (name) => box.querySelector(`.${name}`);
    [this.button, this.form, this.pictureChoice, this.hint, this.notice] = ["branch-button", "branch-form", "picture-choice", "branch-hint", "notice"].map(part);
    [this.promptField, this.seed, this.steps, this.guidance, this.submitButton] = ["prompt-field", "seed", "steps", "guidance", "imagine"].map(part);
    this.finishButton = part("finish");
    this.pictures = this.job.pictures.filter((picture) => picture.branch);
    this.n = this.pictures[0].n;
    this.fillForm();
    this.button.addEventListener("click", () => this.setOpen(this.form.hidden));
    this.finishButton.hidden = !this.job.stopped_at;
    this.finishButton.title = `Continue from step ${this.job.stopped_at} of ${this.job.steps} to the end`;
    this.finishButton.addEventListener("click", () => this.finishPictures());
    part("close").addEventListener("click", () => this.setOpen(false));
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
    film.onKeyframe = (keyframe) => this.setStep(keyframe?.step);
    this.update();
    box.hidden = false;
  }

  fillForm() {
    this.promptField.value = this.job.prompt_text;
    this.steps.placeholder = String(this.job.steps);
    this.guidance.placeholder = String(this.job.guidance);
    this.pictureChoice.hidden = this.pictures.length < 2;
    for (const { n } of this.pictures) {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: `from-${this.job.id}`, value: n, checked: n === this.n });
      radio.addEventListener("change", () => this.choosePicture(n));
      this.card.highlightOnHover(n, radio);
      label.append(radio, ` ${n}`);
      this.pictureChoice.append(label);
    }
  }

  async choosePicture(n) {
    this.n = n;
    await this.loadSteps();
    this.update();
  }

  async setStep(step) {
    this.step = step;
    this.update();
    if (step === undefined || this.branchSteps.has(this.n)) return;
    await this.loadSteps();
    this.update();
  }

  async loadSteps() {
    const { n } = this;
    if (this.branchSteps.has(n)) return;
    const value = await fetchJson(this.pictures.find((picture) => picture.n === n).branch);
    if (value) this.branchSteps.set(n, value.steps);
  }

  // The step that a branch starts from, as the server chooses it; null if there is none.
  get branchStep() {
    const steps = this.branchSteps.get(this.n);
    if (this.step === undefined || !steps?.length) return null;
    return steps.findLast((step) => step <= this.step) ?? steps[0];
  }

  update() {
    const { branchStep } = this;
    const hasNoSteps = this.branchSteps.get(this.n)?.length === 0;
    this.button.disabled = this.form.hidden && branchStep === null;
    this.button.textContent = branchStep === null || branchStep === this.step ? "Branch from here" : `Branch from step ${branchStep}`;
    this.submitButton.disabled = branchStep === null;
    const text = hasNoSteps ? "This picture has no stored latents, so it cannot be branched."
      : branchStep === null ? "Move the slider to an earlier step."
      : branchStep === this.step ? `Branches at step ${branchStep} of ${this.job.steps}.`
      : `Branches at step ${branchStep}: step ${this.step} has no stored latents.`;
    this.button.title = this.hint.textContent = text;
  }

  setOpen(isOpen) {
    this.form.hidden = !isOpen;
    this.button.setAttribute("aria-expanded", String(isOpen));
    this.showError("");
    this.update();
    (isOpen ? this.promptField : this.button).focus();
    if (isOpen) this.form.scrollIntoView({ block: "nearest" });
  }

  showError(text) {
    this.notice.textContent = text;
    this.notice.hidden = !text;
  }

  buildRequest() {
    const request = { step: this.branchStep };
    const prompt = this.promptField.value.trim();
    if (prompt !== this.job.prompt_text.trim()) request.prompt = prompt;
    if (this.seed.value) request.seed = Number(this.seed.value);
    if (this.steps.value) request.steps = Number(this.steps.value);
    if (this.guidance.value) request.guidance = Number(this.guidance.value);
    return request;
  }

  // Run each stopped picture to the end, from the last step that kept its latents.
  async finishPictures() {
    this.finishButton.disabled = true;
    for (const { n } of this.pictures) {
      await this.card.submitRequest("POST", `${this.card.address}/branch/${n}`, { step: this.job.stopped_at });
    }
    this.finishButton.disabled = false;
  }

  async submit() {
    const request = this.buildRequest();
    const isUnchanged = Object.keys(request).length === 1;
    if (isUnchanged && !this.job.stopped_at && !this.job.steered) return this.showError("This would make the same picture. Change the prompt, the seed, the steps or the guidance.");
    this.submitButton.disabled = true;
    try {
      await sendRequest("POST", `${this.card.address}/branch/${this.n}`, request);
      this.setOpen(false);
    } catch (error) {
      this.showError(error.message);
    } finally {
      this.update();
    }
  }
}
