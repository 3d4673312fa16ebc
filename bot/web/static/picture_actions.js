// The actions on one picture: inpaint, outpaint, use as init image, watch it turn into noise.
// A row chooses the picture; its actions unfold below.

import { edit } from "/static/edit.js";
import { button, download, group } from "/static/rows.js";

const PANS = [["←", "left"], ["→", "right"], ["↑", "up"], ["↓", "down"]];

export class PictureActions {
  constructor(card, pictures) {
    this.card = card;
    this.panel = document.createElement("div");
    this.panel.className = "picture-actions";
    this.panel.id = `picture-actions-${card.job.id}`;
    this.panel.hidden = true;
    this.choice = group("Go on", "Go on from a picture");
    this.buttons = pictures.map((picture) => this.toggle(picture));
    this.choice.append(...this.buttons);
  }

  get rows() {
    return [this.choice, this.panel];
  }

  toggle(picture) {
    const one = button(`${picture.n} …`, `Go on from picture ${picture.n}`);
    one.setAttribute("aria-expanded", "false");
    one.setAttribute("aria-controls", this.panel.id);
    one.addEventListener("click", () => this.unfold(picture, one));
    this.card.light(picture.n, one);
    return one;
  }

  unfold(picture, one) {
    const open = one.getAttribute("aria-expanded") !== "true";
    for (const other of this.buttons) other.setAttribute("aria-expanded", String(open && other === one));
    this.panel.hidden = !open;
    this.panel.setAttribute("role", "group");
    this.panel.setAttribute("aria-label", `Actions on picture ${picture.n}`);
    this.panel.replaceChildren(...(open ? this.buildActions(picture) : []));
  }

  buildActions(picture) {
    const { card } = this;
    const { n } = picture;
    const on = group("", "Change it");
    const start = button("Use as start", `Begin the next prompt with picture ${n}`);
    start.addEventListener("click", () => this.begin(picture));
    const away = group("", "Its way into noise");
    away.append(download("↓ Dissolve", `film of picture ${n} dissolving`, picture.dissolve, `${card.job.id}-${n}-dissolving.webp`));
    if (picture.round_trip) away.append(download("↓ … and back", `film of picture ${n} dissolving and coming back`, picture.round_trip, `${card.job.id}-${n}-and-back.webp`));
    on.append(start);
    if (card.job.task !== "develop") return [on, away];
    const paint = button("Edit …", `Edit a part of picture ${n}`);
    paint.addEventListener("click", () => edit(card.job, picture));
    const zoom = group("Zoom", "Zoom out");
    for (const factor of [1.5, 2]) zoom.append(card.button(`${factor}×`, `Zoom out of picture ${n}, ${factor} times`, `${card.address}/zoom/${n}`, { body: { factor } }));
    if (picture.width !== picture.height) zoom.append(card.button("1:1", `Make picture ${n} a square, with what may be around it`, `${card.address}/zoom/${n}`, { body: { square: true } }));
    const pan = group("Pan", "Pan");
    for (const [arrow, direction] of PANS) pan.append(card.button(arrow, `Pan ${direction} of picture ${n}`, `${card.address}/pan/${n}`, { body: { direction } }));
    on.prepend(paint);
    return [on, zoom, pan, away];
  }

  begin(picture) {
    const detail = { name: `${this.card.job.id}/${picture.n}`, url: picture.url };
    this.card.element.dispatchEvent(new CustomEvent("begin", { bubbles: true, detail }));
  }
}
