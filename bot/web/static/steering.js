// What was asked of one developing picture: sends changes one request at a time, and keeps what the server answers.
//
// A picture takes few changes, and a drag has many positions: while a slider moves, only its newest value is sent, about
// three times a second, and only when it is released once few changes are left.

import { fetchJson, RequestError, sendRequest } from "/static/sse.js";

const MIN_PAUSE_MS = 100; // between two requests
const DRAG_PAUSE_MS = 350; // between two requests while a slider moves
const FEW_CHANGES = 16;

// The number of the newest change.
const countChanges = (amendments) => Math.max(0, ...[...amendments].map((view) => view.number));

export class Steering {
  // `onChange()` is called whenever anything here has changed.
  constructor(address, onChange) {
    Object.assign(this, { address, onChange });
    this.views = new Map(); // number → the amendment as the server describes it
    Object.assign(this, { state: null, left: null, obstacle: "" });
    this.queue = []; // {control, body}: presses, in order
    this.moved = new Map(); // control → the body of its newest value
    this.released = new Set(); // moved controls whose value is final
    this.inFlight = null;
    this.lastSent = this.movedSince = -DRAG_PAUSE_MS; // milliseconds of the page
  }

  get list() {
    return [...this.views.values()].sort((one, other) => one.number - other.number);
  }

  // What is loaded may arrive after a change that was made later: then it knows fewer changes, and says nothing new.
  async load() {
    const answer = await fetchJson(`${this.address}/amendments`);
    if (!answer) return;
    const isOutdated = countChanges(answer.amendments) < countChanges(this.views.values());
    if (isOutdated) answer.amendments.forEach((view) => this.merge(view));
    else this.take(answer);
  }

  // `steering`: as it will be once all that waits is made; null if the job is over. `obstacle`: why it cannot be changed.
  take({ amendments, steering, left, obstacle }) {
    for (const view of amendments) this.merge(view);
    Object.assign(this, { state: steering, left, obstacle });
    this.onChange();
  }

  // An older answer may come after a newer event: what is made or refused stays so. Only answers say who `you` are.
  merge(view) {
    const known = this.views.get(view.number) ?? view;
    const { state, step, reason } = known.state === "waiting" ? view : known;
    const author = "you" in view.author ? view.author : known.author;
    this.views.set(view.number, { ...known, ...view, state, step, reason, author });
  }

  // An event of the page's stream, of what is made. Where it tells more than a change of ours that is made, what is to
  // be expected is loaded.
  takeEvent({ amendment }) {
    const isOurs = this.views.get(amendment.number)?.author.you;
    this.merge(amendment);
    const isBehind = this.list.some((view) => view.state === "waiting" && view.number < amendment.number);
    if (!isOurs || isBehind || amendment.state === "refused" || this.views.size < amendment.number) this.loadSoon();
    this.onChange();
  }

  loadSoon() {
    clearTimeout(this.loadTimer);
    this.loadTimer = setTimeout(() => this.load(), DRAG_PAUSE_MS);
  }

  isPending(control) {
    return this.moved.has(control) || this.inFlight === control || this.queue.some((entry) => entry.control === control);
  }

  // The newest value of a slider. `isReleased`: the last one of its drag.
  move(control, body, isReleased) {
    if (!this.moved.size) this.movedSince = performance.now();
    this.moved.set(control, body);
    if (isReleased) this.released.add(control);
    this.schedule();
    this.onChange();
  }

  press(control, body) {
    this.queue.push({ control, body });
    this.schedule();
    this.onChange();
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.inFlight || !(this.queue.length || this.moved.size)) return;
    const isFinal = this.queue.length || this.released.size;
    if (!isFinal && this.left !== null && this.left <= FEW_CHANGES) return;
    const due = isFinal ? this.lastSent + MIN_PAUSE_MS : Math.max(this.lastSent, this.movedSince) + DRAG_PAUSE_MS;
    this.timer = setTimeout(() => this.send(), Math.max(0, due - performance.now()));
  }

  takeNext() {
    if (this.queue.length) return this.queue.shift();
    const [control] = this.released.size ? this.released : this.moved.keys();
    const body = this.moved.get(control);
    this.moved.delete(control);
    const isReleased = this.released.delete(control);
    const text = JSON.stringify(body);
    const isKnown = control.dragged === text; // it was released where it was sent last
    control.dragged = isReleased ? "" : text;
    return isKnown ? null : { control, body };
  }

  async send() {
    const next = this.takeNext();
    if (!next) return this.schedule(), this.onChange();
    const { control, body } = next;
    this.inFlight = control;
    this.lastSent = performance.now();
    this.onChange();
    try {
      const answer = await sendRequest("POST", `${this.address}/amend`, body);
      control.onAccepted(answer.amendments.map((view) => view.number));
      this.inFlight = null;
      this.take(answer);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      this.inFlight = null;
      control.onRefused(error.message);
    }
    this.onChange();
    this.schedule();
  }
}
