// The pause button of one card. Pauses are not stored. A page that is opened later, or another visitor's page, shows the
// job as running until the button is pressed there.

const LATE_PREVIEW_MS = 3_000; // after a pause, previews from before it may still arrive for this long

export class Pause {
  constructor(card) {
    this.card = card;
    this.isPaused = false;
    this.step = 0; // of the last preview
    this.button = card.part("pause");
    this.button.addEventListener("click", () => this.toggle());
  }

  // Only a running job can be paused, by visitors who may cancel it.
  setAvailable(isRunning) {
    const { can_cancel, kind } = this.card.job;
    this.button.hidden = !(isRunning && can_cancel && kind === "generate");
  }

  // A preview of a later step, long after the pause, means that it runs again.
  onPreview(step) {
    this.setAvailable(true);
    if (this.isPaused && step > this.step && Date.now() > this.latePreviewsEnd) this.show(false);
    this.step = step;
  }

  toggle() {
    const isPaused = !this.isPaused;
    return this.card.submitFrom(this.button, "POST", `${this.card.address}/${isPaused ? "pause" : "resume"}`, () => this.show(isPaused));
  }

  show(isPaused) {
    this.isPaused = isPaused;
    this.latePreviewsEnd = Date.now() + LATE_PREVIEW_MS;
    this.button.textContent = isPaused ? "Resume" : "Pause";
    this.card.part("time-left").textContent = isPaused ? "paused" : "running";
  }
}
