// Image-to-prompt for the init image: a button beside it asks for prompts, a press puts one into the prompt field.

import { ask } from "/static/sse.js";

export class Describe {
  // `write(text)` fills the prompt field; `complain(sentence)` shows an error.
  constructor(form, initImages, write, complain) {
    Object.assign(this, { initImages, write, complain });
    const at = (name) => form.querySelector(name);
    [this.opener, this.box, this.list, this.said] = [".describe", ".described", ".described-words", ".described-said"].map(at);
    this.opener.addEventListener("click", () => this.look());
    initImages.box.addEventListener("change-images", () => this.reset());
    this.reset();
  }

  // The init images changed, so earlier suggestions no longer apply. Only a single picture can be described.
  reset() {
    this.asked = null;
    this.box.hidden = true;
    this.opener.hidden = this.initImages.items.length !== 1;
    this.rest();
  }

  rest() {
    this.opener.disabled = false;
    this.opener.textContent = "Describe";
  }

  async look() {
    const asked = (this.asked = {});
    this.opener.disabled = true;
    this.opener.textContent = "Looking for words …";
    this.complain("");
    try {
      const found = await ask("POST", "/api/describe", await this.body());
      if (this.asked === asked) this.show(found);
    } catch (error) {
      if (this.asked === asked) this.complain(error.message);
    } finally {
      if (this.asked === asked) this.rest();
    }
  }

  async body() {
    const form = new FormData();
    form.append("request", new Blob(["{}"], { type: "application/json" }));
    form.append("picture", await this.initImages.content(this.initImages.items[0]), "picture");
    return form;
  }

  show({ prompts, sentence, notes }) {
    this.list.replaceChildren(...prompts.map(({ prompt, error_reduction }) => this.line(prompt, error_reduction)));
    this.said.textContent = [...notes, sentence].join(" ");
    this.box.hidden = false;
    this.list.querySelector("button")?.focus();
  }

  line(prompt, errorReduction) {
    const [line, button] = [document.createElement("li"), document.createElement("button")];
    Object.assign(button, { type: "button", className: "button", textContent: prompt, title: "Put it into the prompt" });
    button.addEventListener("click", () => this.write(prompt));
    line.append(button, ` ${Math.round(100 * errorReduction)} % less error than without words`);
    return line;
  }
}
