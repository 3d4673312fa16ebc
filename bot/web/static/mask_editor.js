// The mask editor that several dialogs share: a picture, a brush over it, and the brush's tools.

import { Brush } from "/static/brush.js";

export class MaskEditor {
  constructor(dialog) {
    const part = (name) => dialog.querySelector(`.${name}`);
    [this.box, this.image, this.canvas] = ["mask-editor", "mask-editor img", "mask-editor canvas"].map(part);
    [this.size, this.rub, this.undo, this.clear] = ["size", "rub", "undo", "clear"].map(part);
    this.brush = new Brush(this.canvas, part("ring"), () => (this.undo.disabled = this.clear.disabled = !this.brush.strokes.length));
    this.size.addEventListener("input", () => this.grow());
    this.undo.addEventListener("click", () => this.brush.undo());
    this.clear.addEventListener("click", () => this.brush.clear());
    this.rub.addEventListener("click", () => this.rubs(!this.brush.rubbing));
  }

  // Show the picture at `address`, of this size, with earlier `strokes`.
  lay(address, width, height, strokes = []) {
    this.image.src = address;
    this.box.style.setProperty("--aspect", `${width} / ${height}`);
    this.box.style.setProperty("--tall", String(width / height));
    this.rubs(false);
    this.brush.lay(width, height, strokes);
    this.grow();
  }

  focus() {
    this.canvas.focus();
  }

  grow() {
    this.brush.resize(Number(this.size.value) / 100);
    share(this.size);
  }

  rubs(on) {
    this.brush.rubbing = on;
    this.rub.setAttribute("aria-pressed", String(on));
  }
}

// Draw a slider as filled up to its value.
export function share(slider) {
  slider.style.setProperty("--share", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}
