// The mixing desk beside a developing picture: its author moves what the picture follows while it develops.

import { language, texts } from "/static/desk_texts.js";
import { ConceptKnobs, GuidanceKnob, NegativeForm, SayForm } from "/static/knobs.js";
import { SaidList } from "/static/said_list.js";
import { Steering } from "/static/steering.js";
import { TileTools } from "/static/tile_tools.js";

const template = document.getElementById("desk");
let isOpenByDefault = matchMedia("(width >= 46rem)").matches; // where it stands beside the pictures; then as the visitor chose

export class Desk {
  constructor(card) {
    this.card = card;
    this.steering = new Steering(card.address, () => this.render());
    this.list = new SaidList(card, this.steering);
  }

  // Called with each state of the job. `isRunning`: its worker draws it now. The author's desk opens once the server
  // says what can be changed; others see the list. At the end the list is loaded again: what still waited is refused.
  update(isRunning) {
    const { job, isEnded } = this.card;
    this.isOffered = isRunning && !isEnded && job.author.you && job.kind === "generate";
    const isOver = isEnded && this.isLoaded && this.steering.views.size > 0 && !this.wasEnded;
    this.wasEnded = isEnded;
    if (isOver || (!this.isLoaded && (this.isOffered || job.steered))) this.load();
    this.render();
  }

  // The pictures that develop once all that waits is made, if that is known.
  get images() {
    return this.isOffered ? this.steering.state?.images : undefined;
  }

  load() {
    this.isLoaded = true;
    return this.steering.load();
  }

  // After a broken connection, whose events are lost.
  reload() {
    if (this.steering.state && !this.card.isEnded) this.load();
  }

  takeEvent(event) {
    this.isLoaded = true;
    this.steering.takeEvent(event);
    if (!this.images && !this.card.isEnded) this.card.showTiles(event.steering.images);
  }

  open() {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.lang = language;
    for (const part of this.element.querySelectorAll("[data-text]")) part.textContent = texts[part.dataset.text];
    const part = (name) => this.element.querySelector(`.${name}`);
    this.concepts = new ConceptKnobs(this, part("concepts"));
    this.knobs = [new GuidanceKnob(this, part("guidance-knob")), new SayForm(this, part("say-form")), new NegativeForm(this, part("negative-form"))];
    this.tools = new TileTools(this);
    this.element.open = isOpenByDefault;
    let isPressed = false; // by the visitor, before it opens or closes
    this.element.addEventListener("toggle", ({ target }) => {
      if (target !== this.element) return; // the event comes a task later, when the card may have taken the desk away
      isOpenByDefault = target.open;
      this.card.element.classList.toggle("steering", target.open);
      if (isPressed) this.scrollBelowPictures();
    });
    this.element.querySelector("summary").addEventListener("click", () => (isPressed = true));
    this.card.part("side").prepend(this.element);
  }

  // On a narrow screen the pictures stay at the top: the opened desk is scrolled to just below them.
  scrollBelowPictures() {
    const [grid, log] = [this.card.part("grid"), this.card.element.closest(".log")];
    if (!this.element?.open || getComputedStyle(grid).position !== "sticky") return;
    const free = this.element.getBoundingClientRect().top - log.getBoundingClientRect().top - grid.offsetHeight;
    log.scrollTop += Math.max(0, free);
  }

  // Its focus goes to the message, so that a keyboard stays where it was.
  close() {
    const hadFocus = this.element.contains(document.activeElement) || this.tools.hasFocus;
    this.element.remove();
    this.tools.remove();
    this.element = null;
    this.card.element.classList.remove("steering");
    if (hadFocus) this.card.element.focus({ preventScroll: true });
  }

  announce(text) {
    if (this.element) this.element.querySelector(".desk-news").textContent = text;
  }

  render() {
    this.list.render();
    const { state, left, obstacle } = this.steering;
    const isOpen = Boolean(this.isOffered && state && !obstacle);
    if (isOpen && !this.element) this.open();
    if (!isOpen && this.element) this.close();
    if (!isOpen) return;
    this.element.querySelector(".left").textContent = left === null ? "" : texts.left(left);
    this.concepts.render(state);
    for (const knob of this.knobs) knob.render(state);
    this.tools.render(state);
    this.announceNewest();
  }

  // For a screen reader, one sentence for each own change: what it was, and from which step it holds.
  announceNewest() {
    const view = this.steering.list.findLast((one) => one.author.you && one.state !== "waiting");
    const number = view?.number ?? 0;
    if (number === this.announced) return;
    if (this.announced !== undefined) this.announce(`${view.text}: ${view.reason || texts.holds(view.step)}`);
    this.announced = number;
  }
}
