// The slider over the film: from pure noise to the finished pictures. Loads nothing before its first use. `seen(keyframe)` is
// called with the keyframe in view, without one for the finished pictures.

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const BEAT = 90; // milliseconds an image
const MOST_KEYFRAMES = 48; // most keyframes of a film

export class Film {
  constructor(bar, tray, job) {
    this.address = job.keyframes;
    this.of = job.steps;
    this.tray = tray;
    this.slider = bar.querySelector(".scrub");
    this.where = bar.querySelector(".where");
    this.button = bar.querySelector(".play");
    this.sheet = document.createElement("img");
    this.sheet.className = "keyframe";
    this.sheet.alt = "";
    this.sheet.hidden = true;
    tray.append(this.sheet);
    this.slider.max = String(Math.min(MOST_KEYFRAMES, job.steps)); // until the list is loaded
    this.slider.value = this.slider.max;
    this.slider.addEventListener("pointerenter", () => this.load());
    this.slider.addEventListener("focus", () => this.load());
    this.slider.addEventListener("input", () => this.scrub());
    this.button.addEventListener("click", () => (this.timer ? this.halt() : this.play()));
    this.show();
    bar.hidden = false;
  }

  load() {
    this.loading ??= fetch(this.address)
      .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`${answer.status}`))))
      .then(({ keyframes }) => {
        this.keyframes = keyframes.map((keyframe) => ({ ...keyframe, image: Object.assign(new Image(), { src: keyframe.url }) }));
        const atEnd = this.slider.value === this.slider.max;
        const share = Number(this.slider.value) / Number(this.slider.max);
        this.slider.max = String(keyframes.length);
        this.slider.value = String(atEnd ? keyframes.length : Math.min(keyframes.length - 1, Math.round(share * keyframes.length)));
        this.show();
      })
      .catch(() => {
        this.loading = null;
        this.where.value = "The film can’t be read just now.";
      });
    return this.loading;
  }

  async scrub() {
    this.halt();
    await this.load();
    this.show();
  }

  show() {
    const keyframe = this.keyframes?.[Number(this.slider.value)];
    this.sheet.hidden = !keyframe;
    this.tray.classList.toggle("past", Boolean(keyframe));
    if (keyframe) this.sheet.src = keyframe.url;
    const text = keyframe ? `step ${keyframe.step} of ${this.of}` : "finished";
    this.where.value = text;
    this.seen?.(keyframe);
    this.slider.setAttribute("aria-valuetext", text);
    const share = (100 * Number(this.slider.value)) / Number(this.slider.max);
    this.slider.style.setProperty("--share", `${share}%`);
  }

  async play() {
    this.mark(true);
    this.timer = -1;
    await this.load();
    if (!this.keyframes) return this.halt();
    await Promise.allSettled(this.keyframes.map((keyframe) => keyframe.image.decode()));
    if (!this.timer) return;
    if (this.slider.value === this.slider.max) this.slider.value = "0";
    this.show();
    this.timer = setInterval(() => this.beat(), calm.matches ? 4 * BEAT : BEAT);
  }

  beat() {
    this.slider.value = String(Number(this.slider.value) + 1);
    this.show();
    if (this.slider.value === this.slider.max) this.halt();
  }

  halt() {
    clearInterval(this.timer);
    this.timer = null;
    this.mark(false);
  }

  mark(playing) {
    this.button.classList.toggle("playing", playing);
    this.button.setAttribute("aria-label", playing ? "Stop" : "Play how it developed");
  }
}
