// The pause of one card. Nobody stores a pause: a page that is opened later shows a job that runs, and so does another
// visitor's, until the pause is pressed there.

const FLYING = 3_000; // milliseconds in which previews may still come that were made before the pause

export class Pause {
  constructor(card) {
    this.card = card;
    this.on = false;
    this.step = 0; // the last that was seen
    this.button = card.part("pause");
    this.button.addEventListener("click", () => this.press());
  }

  // Only what develops can be paused, by whoever may cancel it.
  offer(running) {
    const { may_cancel, task } = this.card.job;
    this.button.hidden = !(running && may_cancel && task === "develop");
  }

  // A preview of a further step, long after the pause: it runs again.
  seen(step) {
    this.offer(true);
    if (this.on && step > this.step && Date.now() > this.until) this.show(false);
    this.step = step;
  }

  press() {
    const on = !this.on;
    return this.card.press(this.button, "POST", `${this.card.address}/${on ? "pause" : "resume"}`, () => this.show(on));
  }

  show(on) {
    this.on = on;
    this.until = Date.now() + FLYING;
    this.button.textContent = on ? "Resume" : "Pause";
    this.card.part("left").textContent = on ? "paused" : "developing";
  }
}
