// The mask editor that several dialogs share: a picture, a brush over it, and the brush's tools.

import { Brush } from "/static/brush.js";

export class MaskEditor {
  constructor(dialog) {
    const part = (name) => dialog.querySelector(`.${name}`);
    [this.box, this.image, this.canvas] = ["mask-editor", "mask-editor img", "mask-editor canvas"].map(part);
    [this.size, this.eraser, this.undo, this.clear] = ["brush-size", "eraser", "undo", "clear"].map(part);
    this.brush = new Brush(this.canvas, part("brush-cursor"), () => (this.undo.disabled = this.clear.disabled = !this.brush.strokes.length));
    this.size.addEventListener("input", () => this.updateBrushSize());
    this.undo.addEventListener("click", () => this.brush.undo());
    this.clear.addEventListener("click", () => this.brush.clear());
    this.eraser.addEventListener("click", () => this.setErasing(!this.brush.isErasing));
  }

  // Show the picture at `address`, of this size, with earlier `strokes`.
  show(address, width, height, strokes = []) {
    this.image.src = address;
    this.box.style.setProperty("--aspect", `${width} / ${height}`);
    this.box.style.setProperty("--aspect-number", String(width / height));
    this.setErasing(false);
    this.brush.reset(width, height, strokes);
    this.updateBrushSize();
  }

  focus() {
    this.canvas.focus();
  }

  updateBrushSize() {
    this.brush.resize(Number(this.size.value) / 100);
    updateSliderFill(this.size);
  }

  setErasing(isErasing) {
    this.brush.isErasing = isErasing;
    this.eraser.setAttribute("aria-pressed", String(isErasing));
  }
}

// Draw a slider as filled up to its value.
export function updateSliderFill(slider) {
  slider.style.setProperty("--fill", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}
