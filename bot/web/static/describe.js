// Words for the picture that is brought: asked for by a button beside it, and put into the prompt by a press. Knows the
// pictures at the prompt and the server's answer; nothing of how words are found.

import { ask } from "/static/wire.js";

export class Describe {
  // `write(text)` puts a prompt into its place; `complain(sentence)` says why there are no words.
  constructor(form, start, write, complain) {
    Object.assign(this, { start, write, complain });
    const at = (name) => form.querySelector(name);
    [this.opener, this.box, this.list, this.said] = [".describe", ".described", ".described-words", ".described-said"].map(at);
    this.opener.addEventListener("click", () => this.look());
    start.box.addEventListener("brought", () => this.reset());
    this.reset();
  }

  // Other pictures: what was found is not about them. Only one can be described.
  reset() {
    this.asked = null;
    this.box.hidden = true;
    this.opener.hidden = this.start.items.length !== 1;
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
    form.append("order", new Blob(["{}"], { type: "application/json" }));
    form.append("picture", await this.start.content(this.start.items[0]), "picture");
    return form;
  }

  show({ prompts, sentence, notes }) {
    this.list.replaceChildren(...prompts.map(({ prompt, gain }) => this.line(prompt, gain)));
    this.said.textContent = [...notes, sentence].join(" ");
    this.box.hidden = false;
    this.list.querySelector("button")?.focus();
  }

  line(prompt, gain) {
    const [line, button] = [document.createElement("li"), document.createElement("button")];
    Object.assign(button, { type: "button", className: "button", textContent: prompt, title: "Put it into the prompt" });
    button.addEventListener("click", () => this.write(prompt));
    line.append(button, ` ${Math.round(100 * gain)} % less error than without words`);
    return line;
  }
}
