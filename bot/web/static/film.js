// The slider over the film: from pure noise to the finished pictures. Loads nothing before its first use. `onKeyframe(keyframe)`
// is called with the keyframe that is shown, or with undefined for the finished pictures.

const prefersReducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const FRAME_MS = 90;
const MAX_KEYFRAMES = 48; // most keyframes of a film

export class Film {
  constructor(bar, grid, job) {
    this.address = job.keyframes;
    this.totalSteps = job.steps;
    this.slider = bar.querySelector(".slider");
    this.positionLabel = bar.querySelector(".film-position");
    this.button = bar.querySelector(".play");
    this.scale = bar.querySelector(".scale");
    this.captionLabel = bar.querySelector(".film-caption");
    this.captions = [];
    this.keyframeImage = document.createElement("img");
    this.keyframeImage.className = "keyframe";
    this.keyframeImage.alt = "";
    this.keyframeImage.hidden = true;
    grid.append(this.keyframeImage);
    this.slider.max = String(Math.min(MAX_KEYFRAMES, job.steps)); // until the list is loaded
    this.slider.value = this.slider.max;
    this.slider.addEventListener("pointerenter", () => this.load());
    this.slider.addEventListener("focus", () => this.load());
    this.slider.addEventListener("input", () => this.scrub());
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.show();
    bar.hidden = false;
  }

  load() {
    this.loading ??= fetch(this.address)
      .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`${response.status}`))))
      .then(({ keyframes, captions }) => {
        this.keyframes = keyframes.map((keyframe) => ({ ...keyframe, image: Object.assign(new Image(), { src: keyframe.url }) }));
        const isAtEnd = this.slider.value === this.slider.max;
        const share = Number(this.slider.value) / Number(this.slider.max);
        this.slider.max = String(keyframes.length);
        this.showMarks(captions);
        this.slider.value = String(isAtEnd ? keyframes.length : Math.min(keyframes.length - 1, Math.round(share * keyframes.length)));
        this.show();
      })
      .catch(() => {
        this.loading = null;
        this.positionLabel.value = "The film could not be loaded. Try again.";
      });
    return this.loading;
  }

  // Where somebody said something while the picture developed: a press on a mark shows the picture at that moment.
  showMarks(captions) {
    this.captions = captions;
    for (const caption of captions) {
      const index = this.findFrame(caption.step);
      const mark = Object.assign(document.createElement("button"), { type: "button", className: "film-mark", title: formatCaption(caption) });
      mark.setAttribute("aria-label", `Step ${caption.step}: ${formatCaption(caption)}`);
      mark.style.setProperty("--at", String(index / this.keyframes.length));
      mark.addEventListener("click", () => {
        this.stop();
        this.slider.value = String(index);
        this.show();
      });
      this.scale.append(mark);
    }
  }

  // The first keyframe that a change can be seen in; the finished pictures if there is none.
  findFrame(step) {
    const index = this.keyframes.findIndex((keyframe) => keyframe.step >= step);
    return index < 0 ? this.keyframes.length : index;
  }

  // What was said last: all of it, if several said something between two keyframes.
  showCaption(index) {
    const said = this.captions.filter((caption) => this.findFrame(caption.step) <= index);
    const newest = said.length ? this.findFrame(said.at(-1).step) : 0;
    this.captionLabel.value = said.filter((caption) => this.findFrame(caption.step) === newest).map(formatCaption).join(" · ");
    this.captionLabel.hidden = !this.captions.length;
  }

  async scrub() {
    this.stop();
    await this.load();
    this.show();
  }

  show() {
    const keyframe = this.keyframes?.[Number(this.slider.value)];
    this.keyframeImage.hidden = !keyframe;
    if (keyframe) this.keyframeImage.src = keyframe.url;
    const text = keyframe ? `step ${keyframe.step} of ${this.totalSteps}` : "finished";
    this.positionLabel.value = text;
    this.showCaption(Number(this.slider.value));
    this.onKeyframe?.(keyframe);
    this.slider.setAttribute("aria-valuetext", text);
    const percent = (100 * Number(this.slider.value)) / Number(this.slider.max);
    this.slider.style.setProperty("--fill", `${percent}%`);
  }

  async play() {
    this.setPlaying(true);
    this.timer = -1;
    await this.load();
    if (!this.keyframes) return this.stop();
    await Promise.allSettled(this.keyframes.map((keyframe) => keyframe.image.decode()));
    if (!this.timer) return;
    if (this.slider.value === this.slider.max) this.slider.value = "0";
    this.show();
    this.timer = setInterval(() => this.advance(), prefersReducedMotion.matches ? 4 * FRAME_MS : FRAME_MS);
  }

  advance() {
    this.slider.value = String(Number(this.slider.value) + 1);
    this.show();
    if (this.slider.value === this.slider.max) this.stop();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.setPlaying(false);
  }

  setPlaying(isPlaying) {
    this.button.classList.toggle("playing", isPlaying);
    this.button.setAttribute("aria-label", isPlaying ? "Stop" : "Play the film");
  }
}

function formatCaption({ speaker, text }) {
  return speaker ? `${speaker}: ${text}` : text;
}
