// One picture's film on a canvas. Each image from the server shows all pictures of the job in two columns, with four
// pixels between them; this crops one out.

import { fetchJson } from "/static/sse.js";

const GAP = 4;

export class Filmstrip {
  // `totalSteps`: the steps of the common scale.
  constructor(canvas, job, n, totalSteps = job.steps) {
    const shownPictures = job.pictures.filter((picture) => !picture.held); // a held picture is not in the film
    Object.assign(this, { canvas, address: job.keyframes, totalSteps, stepScale: totalSteps / job.steps, count: shownPictures.length });
    this.gridIndex = shownPictures.findIndex((picture) => picture.n === n);
    canvas.setAttribute("aria-label", `Film of picture ${n}: ${job.prompt_text}`);
  }

  // Resolves to whether the film could be loaded.
  async load() {
    const value = await fetchJson(this.address);
    if (!value) return false;
    this.keyframes = value.keyframes.map((keyframe) => ({ step: Math.round(keyframe.step * this.stepScale), image: Object.assign(new Image(), { src: keyframe.url }) }));
    const results = await Promise.allSettled(this.keyframes.map((keyframe) => keyframe.image.decode()));
    return results.every(({ status }) => status === "fulfilled");
  }

  get steps() {
    return this.keyframes.map((keyframe) => keyframe.step);
  }

  // Before its first step, show the picture that it branched from: `parent` is that picture's filmstrip.
  show(step) {
    const findKeyframe = (filmstrip) => filmstrip?.keyframes.findLast((keyframe) => keyframe.step <= step);
    const [ownKeyframe, parentKeyframe] = [findKeyframe(this), findKeyframe(this.parent)];
    if (ownKeyframe || !parentKeyframe) this.draw((ownKeyframe ?? this.keyframes[0]).image);
    else this.draw(parentKeyframe.image, this.parent);
  }

  draw(image, { count, gridIndex } = this) {
    const [columns, rows] = [Math.min(2, count), Math.ceil(count / 2)];
    const [width, height] = [(image.naturalWidth + GAP) / columns - GAP, (image.naturalHeight + GAP) / rows - GAP];
    Object.assign(this.canvas, { width, height });
    const [x, y] = [(gridIndex % 2) * (width + GAP), Math.floor(gridIndex / 2) * (height + GAP)];
    this.canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
  }
}
