// The thumbnail of a picture beside the prompt, with its role, its mask and its weight.

import { updateSliderFill } from "/static/mask_editor.js";

const SIDE = 128; // pixels, twice the displayed size
const MAX_MASK_SIDE = 1024; // most pixels a side of a picture to paint on: a mask needs no more
export const DEFAULT_WEIGHT = 5; // of 1 to 10

// `item`: { name, file, or url of a finished picture, role, weight, painted }. `options`: { roles, onRemove, onWeight, onRole };
// `roles` are pairs of value and title.
export class Thumb {
  constructor(item, index, options) {
    this.item = item;
    this.element = document.createElement("li");
    this.removeButton = Object.assign(document.createElement("button"), { type: "button", textContent: "×", title: `Remove ${item.name}` });
    this.removeButton.setAttribute("aria-label", `Remove picture ${index + 1}: ${item.name}`);
    this.removeButton.addEventListener("click", options.onRemove);
    item.thumbnail ??= item.file ? renderThumbnail(item.file) : Object.assign(new Image(), { src: item.url, alt: "" });
    this.element.append(item.thumbnail, this.removeButton);
    if (options.roles.length > 1) this.element.append(this.createRoleSelect(index, options));
    this.weight = this.createWeightSlider(index, options.onWeight);
  }

  // A choice of what the picture is for.
  createRoleSelect(index, { roles, onRole }) {
    this.roleSelect = Object.assign(document.createElement("select"), { className: "role" });
    this.roleSelect.setAttribute("aria-label", `Use of picture ${index + 1}: ${this.item.name}`);
    this.roleSelect.append(...roles.map(([value, title]) => new Option(title, value, false, value === this.item.role)));
    this.roleSelect.addEventListener("change", () => ((this.item.role = this.roleSelect.value), onRole()));
    return this.roleSelect;
  }

  createWeightSlider(index, onWeight) {
    const label = document.createElement("label");
    label.className = "weight";
    this.slider = Object.assign(document.createElement("input"), { type: "range", className: "slider", min: 1, max: 10, step: 1 });
    this.slider.value = this.item.weight;
    this.slider.setAttribute("aria-label", `Weight of picture ${index + 1}: ${this.item.name}`);
    this.percent = document.createElement("output");
    this.slider.addEventListener("input", () => ((this.item.weight = Number(this.slider.value)), onWeight()));
    label.append(this.slider, this.percent);
    return label;
  }

  // `total`: the sum of all weights; 0 for a single picture.
  showShare(total) {
    if (!total) return this.weight.remove();
    this.percent.value = `${Math.round((100 * this.item.weight) / total)} %`;
    this.slider.setAttribute("aria-valuetext", this.percent.value);
    updateSliderFill(this.slider);
    if (!this.weight.isConnected) this.element.append(this.weight);
  }

  // Show the mask as stripes; none where `painted` is null.
  showMask(painted) {
    this.element.querySelector(".stripes")?.remove();
    if (!painted) return;
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE, className: "stripes" });
    createImageBitmap(painted.mask).then((mask) => {
      const context = canvas.getContext("2d");
      drawCroppedSquare(context, mask);
      const pixels = context.getImageData(0, 0, SIDE, SIDE);
      for (let offset = 0; offset < pixels.data.length; offset += 4) {
        const isStripe = (offset / 4 + Math.floor(offset / 4 / SIDE)) % 12 < 6;
        pixels.data.set([255, isStripe ? 74 : 244, isStripe ? 51 : 238, pixels.data[offset] * 0.7], offset);
      }
      context.putImageData(pixels, 0, 0);
    });
    this.item.thumbnail.after(canvas);
  }
}

// The whole picture for the mask editor: a data address and its size. Rejects what this browser can't draw.
export async function loadPicture({ file, url }) {
  if (!file) {
    const image = Object.assign(new Image(), { src: url });
    await image.decode();
    return { address: url, width: image.naturalWidth, height: image.naturalHeight };
  }
  const picture = await createImageBitmap(file);
  const factor = Math.min(1, MAX_MASK_SIDE / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * factor)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
  picture.close();
  return { address: canvas.toDataURL("image/jpeg", 0.9), width, height };
}

// Drawn on a canvas and not by a blob address: the page shows only pictures from the server.
function renderThumbnail(file) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  createImageBitmap(file).then(
    (picture) => drawCroppedSquare(canvas.getContext("2d"), picture),
    () => canvas.classList.add("undecodable"), // the server may decode what this browser can't draw
  );
  return canvas;
}

// Draw the largest centred square of a picture.
function drawCroppedSquare(context, picture) {
  const side = Math.min(picture.width, picture.height);
  const [x, y] = [(picture.width - side) / 2, (picture.height - side) / 2];
  context.drawImage(picture, x, y, side, side, 0, 0, SIDE, SIDE);
  picture.close();
}
