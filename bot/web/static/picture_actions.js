// The actions on one picture: inpaint, outpaint, use as init image, watch it turn into noise.
// A row chooses the picture; its actions open below.

import { openEditor } from "/static/edit.js";
import { createButton, createDownload, createRow } from "/static/rows.js";

const PANS = [["←", "left"], ["→", "right"], ["↑", "up"], ["↓", "down"]];

export class PictureActions {
  constructor(card, pictures) {
    this.card = card;
    this.panel = document.createElement("div");
    this.panel.className = "picture-actions";
    this.panel.id = `picture-actions-${card.job.id}`;
    this.panel.hidden = true;
    this.choiceRow = createRow("More", "More actions on one picture");
    this.buttons = pictures.map((picture) => this.createToggle(picture));
    this.choiceRow.append(...this.buttons);
  }

  get rows() {
    return [this.choiceRow, this.panel];
  }

  createToggle(picture) {
    const button = createButton(`${picture.n} …`, `More actions on picture ${picture.n}`);
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-controls", this.panel.id);
    button.addEventListener("click", () => this.togglePanel(picture, button));
    this.card.highlightOnHover(picture.n, button);
    return button;
  }

  togglePanel(picture, button) {
    const isOpen = button.getAttribute("aria-expanded") !== "true";
    for (const other of this.buttons) other.setAttribute("aria-expanded", String(isOpen && other === button));
    this.panel.hidden = !isOpen;
    this.panel.setAttribute("role", "group");
    this.panel.setAttribute("aria-label", `Actions on picture ${picture.n}`);
    this.panel.replaceChildren(...(isOpen ? this.buildActions(picture) : []));
  }

  buildActions(picture) {
    const { card } = this;
    const { n } = picture;
    const changeRow = createRow("", "Change it");
    const initImageButton = createButton("Use as init image", `Use picture ${n} as an init image`);
    initImageButton.addEventListener("click", () => this.useAsInitImage(picture));
    const dissolveRow = createRow("", "Film of the forward process");
    dissolveRow.append(createDownload("↓ Dissolve", `film of picture ${n} as it turns into noise`, picture.dissolve, `${card.job.id}-${n}-dissolving.webp`));
    if (picture.round_trip) dissolveRow.append(createDownload("↓ … and back", `film of picture ${n} as it turns into noise and back`, picture.round_trip, `${card.job.id}-${n}-and-back.webp`));
    changeRow.append(initImageButton);
    if (card.job.kind !== "generate") return [changeRow, dissolveRow];
    const editButton = createButton("Edit …", `Edit a part of picture ${n}`);
    editButton.addEventListener("click", () => openEditor(card.job, picture));
    const zoomRow = createRow("Zoom", "Zoom out");
    for (const factor of [1.5, 2]) zoomRow.append(card.createRequestButton(`${factor}×`, `Zoom out of picture ${n}, ${factor} times`, `${card.address}/zoom/${n}`, { body: { factor } }));
    if (picture.width !== picture.height) zoomRow.append(card.createRequestButton("1:1", `Make picture ${n} square: extend its shorter sides`, `${card.address}/zoom/${n}`, { body: { square: true } }));
    const panRow = createRow("Pan", "Pan");
    for (const [arrow, direction] of PANS) panRow.append(card.createRequestButton(arrow, `Pan ${direction} of picture ${n}`, `${card.address}/pan/${n}`, { body: { direction } }));
    changeRow.prepend(editButton);
    return [changeRow, zoomRow, panRow, dissolveRow];
  }

  useAsInitImage(picture) {
    const detail = { name: `${this.card.job.id}/${picture.n}`, url: picture.url };
    this.card.element.dispatchEvent(new CustomEvent("use-init-image", { bubbles: true, detail }));
  }
}
