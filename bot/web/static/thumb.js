// The thumbnail of an init image, with its mask and its weight.

import { share } from "/static/mask_editor.js";

const SIDE = 128; // pixels, twice the displayed size
const LONGEST = 1024; // most pixels a side of a picture to paint on: a mask needs no more
export const EVEN = 5; // the default weight, of 1 to 10

// `item`: { name, file, or url of a finished picture, weight, painted }. `heard`: { remove, weighed }.
export class Thumb {
  constructor(item, index, heard) {
    this.item = item;
    this.element = document.createElement("li");
    this.remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×", title: `Remove ${item.name}` });
    this.remove.setAttribute("aria-label", `Remove picture ${index + 1}: ${item.name}`);
    this.remove.addEventListener("click", heard.remove);
    item.seen ??= item.file ? small(item.file) : Object.assign(new Image(), { src: item.url, alt: "" });
    this.element.append(item.seen, this.remove);
    this.weight = this.slider(index, heard.weighed);
  }

  slider(index, weighed) {
    const label = document.createElement("label");
    label.className = "weight";
    this.range = Object.assign(document.createElement("input"), { type: "range", className: "scrub", min: 1, max: 10, step: 1 });
    this.range.value = this.item.weight;
    this.range.setAttribute("aria-label", `How much picture ${index + 1} counts: ${this.item.name}`);
    this.said = document.createElement("output");
    this.range.addEventListener("input", () => ((this.item.weight = Number(this.range.value)), weighed()));
    label.append(this.range, this.said);
    return label;
  }

  // `total`: the sum of all weights; 0 for a single picture.
  weigh(total) {
    if (!total) return this.weight.remove();
    this.said.value = `${Math.round((100 * this.item.weight) / total)} %`;
    this.range.setAttribute("aria-valuetext", this.said.value);
    share(this.range);
    if (!this.weight.isConnected) this.element.append(this.weight);
  }

  // Show the mask as stripes; none where `painted` is null.
  mark(painted) {
    this.element.querySelector(".stripes")?.remove();
    if (!painted) return;
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE, className: "stripes" });
    createImageBitmap(painted.mask).then((mask) => {
      const on = canvas.getContext("2d");
      covered(on, mask);
      const pixels = on.getImageData(0, 0, SIDE, SIDE);
      for (let at = 0; at < pixels.data.length; at += 4) {
        const stripe = (at / 4 + Math.floor(at / 4 / SIDE)) % 12 < 6;
        pixels.data.set([255, stripe ? 74 : 244, stripe ? 51 : 238, pixels.data[at] * 0.7], at);
      }
      on.putImageData(pixels, 0, 0);
    });
    this.item.seen.after(canvas);
  }
}

// The whole picture for the mask editor: a data address and its size. Rejects what this browser can't draw.
export async function whole({ file, url }) {
  if (!file) {
    const image = Object.assign(new Image(), { src: url });
    await image.decode();
    return { address: url, width: image.naturalWidth, height: image.naturalHeight };
  }
  const picture = await createImageBitmap(file);
  const factor = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * factor)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
  picture.close();
  return { address: canvas.toDataURL("image/jpeg", 0.9), width, height };
}

// Drawn on a canvas and not by a blob address: the page shows only pictures from the server.
function small(file) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  createImageBitmap(file).then(
    (picture) => covered(canvas.getContext("2d"), picture),
    () => canvas.classList.add("unseen-here"), // the server may decode what this browser can't draw
  );
  return canvas;
}

// Draw the largest centred square of a picture.
function covered(context, picture) {
  const side = Math.min(picture.width, picture.height);
  const [x, y] = [(picture.width - side) / 2, (picture.height - side) / 2];
  context.drawImage(picture, x, y, side, side, 0, 0, SIDE, SIDE);
  picture.close();
}
