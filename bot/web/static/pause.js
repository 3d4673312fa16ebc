// The pause button of one card. Pauses are not stored. A page that is opened later, or another visitor's page, shows the
// job as running until the button is pressed there.

const FLYING = 3_000; // milliseconds in which previews from before the pause may still arrive

export class Pause {
  constructor(card) {
    this.card = card;
    this.on = false;
    this.step = 0; // of the last preview
    this.button = card.part("pause");
    this.button.addEventListener("click", () => this.press());
  }

  // Only a running job can be paused, by visitors who may cancel it.
  offer(running) {
    const { can_cancel, task } = this.card.job;
    this.button.hidden = !(running && can_cancel && task === "develop");
  }

  // A preview of a later step, long after the pause, means that it runs again.
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
