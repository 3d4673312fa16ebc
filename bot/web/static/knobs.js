// The controls of the mixing desk. Each knows how to show itself, and says in its status what became of what was sent:
// sending, waiting, made from a step on, or refused with its sentence.

import { texts } from "/static/desk_texts.js";

const KEY_PAUSE_MS = 400; // after the last key on a slider, its value is final
const KEY_STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -4, PageUp: 4 };
const MIN_WEIGHT = 0.01; // a part with no weight would leave the prompt, and its slider with it

export class Knob {
  constructor(desk, element) {
    Object.assign(this, { desk, element, numbers: [], refusal: "" });
  }

  get steering() {
    return this.desk.steering;
  }

  // What was sent last, if the server has not made or refused it yet.
  get isUnsettled() {
    return this.steering.isPending(this) || this.newestView?.state === "waiting";
  }

  get newestView() {
    return this.steering.views.get(this.numbers.at(-1));
  }

  onAccepted(numbers) {
    this.numbers = numbers;
    this.refusal = "";
  }

  onRefused(sentence) {
    this.refusal = sentence;
    this.desk.announce(sentence);
  }

  renderStatus() {
    const view = this.newestView;
    const isRefused = !this.steering.isPending(this) && (this.refusal || view?.state === "refused");
    const text = this.steering.isPending(this) ? texts.sending
      : isRefused ? texts.refused
      : view?.state === "waiting" ? texts.waiting
      : view ? texts.made(view.step)
      : "";
    const status = this.element.querySelector(".knob-status");
    if (text !== status.textContent) status.textContent = text;
    status.dataset.kind = isRefused ? "refused" : view?.state === "made" && !this.isUnsettled ? "made" : "waiting";
    const reason = this.element.querySelector(".knob-reason");
    reason.textContent = isRefused ? this.refusal || view.reason : "";
    reason.hidden = !isRefused;
  }
}

// A slider that reports its moves: `onMove(isReleased)`. A held key counts as a drag.
export function watchSlider(slider, keyStep, onMove) {
  let keyTimer = 0;
  slider.addEventListener("keydown", (event) => {
    const steps = event.key === "Home" || event.key === "End" ? Infinity : KEY_STEPS[event.key];
    if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    slider.valueAsNumber = steps !== Infinity ? Number((slider.valueAsNumber + steps * keyStep).toFixed(4))
      : Number(event.key === "Home" ? slider.min : slider.max);
    onMove(false);
    clearTimeout(keyTimer);
    keyTimer = setTimeout(() => onMove(true), KEY_PAUSE_MS);
  });
  slider.addEventListener("input", () => onMove(false));
  slider.addEventListener("change", () => onMove(true));
}

export function showSlider(slider, value, digits) {
  slider.valueAsNumber = value;
  const text = value.toFixed(digits);
  slider.setAttribute("aria-valuetext", text);
  slider.closest("label").querySelector(".knob-value").textContent = text;
  const share = (slider.valueAsNumber - Number(slider.min)) / (Number(slider.max) - Number(slider.min));
  slider.style.setProperty("--fill", `${100 * share}%`);
}

// The sliders of the prompt's parts. The positive weights add up to 1, as the server keeps them: what one gains, the
// others lose in proportion.
export class ConceptKnobs {
  constructor(desk, box) {
    Object.assign(this, { desk, box, knobs: [], weights: [] });
    this.template = document.getElementById("concept-knob").content.firstElementChild;
  }

  get last() {
    return this.knobs[this.lastMoved];
  }

  render({ concepts, mixed }) {
    const words = JSON.stringify(concepts.map((concept) => concept.text));
    if (words !== this.words) this.build(concepts);
    this.words = words;
    if (!this.isDragged && !this.last?.isUnsettled) this.show(concepts.map((concept) => concept.weight), mixed);
    for (const knob of this.knobs) knob.renderStatus();
  }

  build(concepts) {
    const focused = this.knobs.findIndex((knob) => knob.element.contains(document.activeElement));
    const old = this.knobs;
    this.knobs = concepts.map((concept, index) => this.createKnob(concept.text || texts.noWords, index, old[index]));
    this.box.replaceChildren(...this.knobs.map((knob) => knob.element));
    this.box.classList.toggle("single", concepts.length === 1);
    this.isDragged = false;
    if (focused >= 0) this.knobs[Math.min(focused, concepts.length - 1)].slider.focus();
  }

  createKnob(words, index, old) {
    const knob = new Knob(this.desk, this.template.cloneNode(true));
    if (old) Object.assign(knob, { numbers: old.numbers, refusal: old.refusal });
    knob.slider = knob.element.querySelector(".slider");
    const name = knob.element.querySelector(".knob-name");
    name.textContent = name.title = words;
    knob.slider.setAttribute("aria-label", texts.weightOf(words));
    watchSlider(knob.slider, 0.05, (isReleased) => this.move(index, isReleased));
    return knob;
  }

  show(weights, mixed) {
    this.weights = weights;
    const positives = weights.filter((weight) => weight > 0).length;
    weights.forEach((weight, index) => {
      const { slider } = this.knobs[index];
      slider.min = mixed ? "0" : String(Math.min(-1, weight));
      slider.max = String(Math.max(1, weight));
      slider.disabled = weight > 0 && positives === 1; // it has the whole weight, whatever is set
      showSlider(slider, weight, 2);
    });
  }

  move(index, isReleased) {
    const value = this.knobs[index].slider.valueAsNumber;
    this.show(shareWeights(this.weights, index, value), this.steering.state.mixed);
    this.lastMoved = index;
    this.isDragged = !isReleased;
    const weights = Object.fromEntries(this.weights.map((weight, part) => [part + 1, weight]));
    this.steering.move(this.last, { weights }, isReleased);
  }

  get steering() {
    return this.desk.steering;
  }
}

// Weights with `value` at `index`: the other positive ones share what is left of 1.
export function shareWeights(weights, index, value) {
  const others = weights.filter((weight, other) => other !== index && weight > 0);
  const most = 1 - MIN_WEIGHT * others.length;
  const chosen = Math.abs(value) < MIN_WEIGHT ? MIN_WEIGHT : Math.min(value, most);
  const [total, rest] = [others.reduce((sum, weight) => sum + weight, 0), chosen > 0 ? 1 - chosen : 1];
  const round = (weight) => Number(weight.toFixed(4));
  return weights.map((weight, other) => {
    if (other === index) return round(chosen);
    return weight > 0 ? round(Math.max(MIN_WEIGHT, (rest * weight) / total)) : weight;
  });
}

export class GuidanceKnob extends Knob {
  constructor(desk, element) {
    super(desk, element);
    this.slider = element.querySelector(".slider");
    this.slider.setAttribute("aria-label", texts.guidance);
    watchSlider(this.slider, 0.5, (isReleased) => this.move(isReleased));
  }

  render({ guidance }) {
    if (!this.isDragged && !this.isUnsettled) {
      this.slider.max = String(Math.max(20, Math.ceil(guidance)));
      showSlider(this.slider, guidance, 1);
    }
    this.renderStatus();
  }

  move(isReleased) {
    showSlider(this.slider, this.slider.valueAsNumber, 1);
    this.isDragged = !isReleased;
    this.steering.move(this, { guidance: this.slider.valueAsNumber }, isReleased);
  }
}

// More words: they join the prompt's first part, or get a slider of their own with an equal share.
export class SayForm extends Knob {
  constructor(desk, form) {
    super(desk, form);
    [this.field, this.ownSlider] = [form.querySelector("[type=text]"), form.querySelector("[type=checkbox]")];
    Object.assign(this.field, { placeholder: texts.sayExample, ariaLabel: texts.say });
    form.addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
  }

  render() {
    this.renderStatus();
  }

  submit() {
    const say = this.field.value.trim();
    if (!say || this.steering.isPending(this)) return;
    const positives = this.steering.state.concepts.filter((concept) => concept.weight > 0).length;
    const weight = Number((1 / Math.max(1, positives)).toFixed(2));
    this.steering.press(this, this.ownSlider.checked ? { say, weight } : { say });
  }

  onAccepted(numbers) {
    super.onAccepted(numbers);
    this.field.value = "";
  }
}

export class NegativeForm extends Knob {
  constructor(desk, form) {
    super(desk, form);
    this.field = form.querySelector("[type=text]");
    Object.assign(this.field, { placeholder: texts.nothing, ariaLabel: texts.negative });
    this.field.addEventListener("input", () => (this.isEdited = true));
    form.addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
  }

  render({ negative }) {
    if (!this.isEdited && !this.isUnsettled) this.field.value = negative;
    this.renderStatus();
  }

  submit() {
    this.isEdited = false;
    const negative = this.field.value.trim();
    if (negative !== this.steering.state.negative) this.steering.press(this, { negative });
  }
}
