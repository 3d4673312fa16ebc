// One picture's film on a canvas. Each image from the server shows all pictures of the job in two columns, with four
// pixels between them; this crops one out.

import { look } from "/static/sse.js";

const GAP = 4;

export class Filmstrip {
  // `of`: the steps of the common scale.
  constructor(canvas, job, n, of = job.steps) {
    const shown = job.pictures.filter((picture) => !picture.held); // a held picture is not in the film
    Object.assign(this, { canvas, address: job.keyframes, of, share: of / job.steps, count: shown.length });
    this.place = shown.findIndex((picture) => picture.n === n);
    canvas.setAttribute("aria-label", `How picture ${n} developed: ${job.prompt_text}`);
  }

  // Resolves to whether the film could be loaded.
  async load() {
    const answer = await look(this.address);
    if (!answer) return false;
    this.keyframes = answer.keyframes.map((keyframe) => ({ step: Math.round(keyframe.step * this.share), image: Object.assign(new Image(), { src: keyframe.url }) }));
    const seen = await Promise.allSettled(this.keyframes.map((keyframe) => keyframe.image.decode()));
    return seen.every(({ status }) => status === "fulfilled");
  }

  get steps() {
    return this.keyframes.map((keyframe) => keyframe.step);
  }

  show(step) {
    const at = (filmstrip) => filmstrip?.keyframes.findLast((one) => one.step <= step);
    const [own, older] = [at(this), at(this.before)];
    if (own || !older) this.draw((own ?? this.keyframes[0]).image);
    else this.draw(older.image, this.before); // before its first step, show the picture that it branched from
  }

  draw(image, { count, place } = this) {
    const [columns, rows] = [Math.min(2, count), Math.ceil(count / 2)];
    const [width, height] = [(image.naturalWidth + GAP) / columns - GAP, (image.naturalHeight + GAP) / rows - GAP];
    Object.assign(this.canvas, { width, height });
    const [x, y] = [(place % 2) * (width + GAP), Math.floor(place / 2) * (height + GAP)];
    this.canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
  }
}
