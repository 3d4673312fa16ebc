// Image-to-prompt for the init image: a button beside it requests prompts, a press copies one into the prompt field.

import { sendRequest } from "/static/sse.js";

export class Describe {
  // `setPrompt(text)` fills the prompt field; `showError(sentence)` shows an error.
  constructor(form, initImages, setPrompt, showError) {
    Object.assign(this, { initImages, setPrompt, showError });
    const find = (name) => form.querySelector(name);
    [this.button, this.box, this.list, this.note] = [".describe", ".suggestions", ".suggestion-list", ".suggestions-note"].map(find);
    this.button.addEventListener("click", () => this.suggestPrompts());
    initImages.box.addEventListener("change-images", () => this.reset());
    this.reset();
  }

  // The init images changed, so earlier suggestions no longer apply. Only a single picture can be described.
  reset() {
    this.requestMark = null;
    this.box.hidden = true;
    this.button.hidden = this.initImages.items.length !== 1;
    this.enableButton();
  }

  enableButton() {
    this.button.disabled = false;
    this.button.textContent = "Describe";
  }

  async suggestPrompts() {
    const requestMark = (this.requestMark = {}); // an answer to an earlier request is dropped
    this.button.disabled = true;
    this.button.textContent = "Searching for prompts …";
    this.showError("");
    try {
      const suggestions = await sendRequest("POST", "/api/describe", await this.buildRequest());
      if (this.requestMark === requestMark) this.show(suggestions);
    } catch (error) {
      if (this.requestMark === requestMark) this.showError(error.message);
    } finally {
      if (this.requestMark === requestMark) this.enableButton();
    }
  }

  async buildRequest() {
    const form = new FormData();
    form.append("request", new Blob(["{}"], { type: "application/json" }));
    form.append("picture", await this.initImages.loadContent(this.initImages.items[0]), "picture");
    return form;
  }

  show({ prompts, sentence, notes }) {
    this.list.replaceChildren(...prompts.map(({ prompt, error_reduction }) => this.createLine(prompt, error_reduction)));
    this.note.textContent = [...notes, sentence].join(" ");
    this.box.hidden = false;
    this.list.querySelector("button")?.focus();
  }

  createLine(prompt, errorReduction) {
    const [line, button] = [document.createElement("li"), document.createElement("button")];
    Object.assign(button, { type: "button", className: "button", textContent: prompt, title: "Copy into the prompt field" });
    button.addEventListener("click", () => this.setPrompt(prompt));
    line.append(button, ` ${Math.round(100 * errorReduction)} % less error than without a prompt`);
    return line;
  }
}
