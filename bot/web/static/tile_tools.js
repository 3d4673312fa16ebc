// Keep, drop and split on each developing picture.

import { language, texts } from "/static/desk_texts.js";
import { createButton } from "/static/rows.js";

const MAX_PICTURES = 4;

export class TileTools {
  constructor(desk) {
    Object.assign(this, { desk, boxes: new Map() }); // number of the picture → its buttons
  }

  get steering() {
    return this.desk.steering;
  }

  get hasFocus() {
    return [...this.boxes.values()].some((box) => box.contains(document.activeElement));
  }

  // `images`: the pictures that develop once all that waits is made.
  render({ images }) {
    const { card } = this.desk;
    card.showTiles(images);
    this.showParent([...card.tiles.values()]);
    const state = images.join();
    if (state === this.state) return;
    this.state = state;
    const hadFocus = this.hasFocus || this.wantsFocus;
    this.wantsFocus = false;
    this.remove();
    for (const n of images) {
      const box = this.createBox(n, images);
      this.boxes.set(n, box);
      card.tiles.get(n).append(box);
    }
    if (hadFocus) this.boxes.values().next().value.querySelector("button:enabled")?.focus();
  }

  // Until its own first preview, a new picture of a split looks as the one that it leaves.
  showParent(tiles) {
    const preview = this.desk.card.tiles.get(this.parent)?.firstElementChild.src;
    for (const tile of preview ? tiles : []) {
      if (tile.firstElementChild.src) continue;
      tile.firstElementChild.src = preview;
      tile.classList.add("has-preview");
    }
  }

  createBox(n, images) {
    const box = document.createElement("div");
    Object.assign(box, { className: "tile-tools", lang: language });
    box.setAttribute("role", "group");
    box.setAttribute("aria-live", "off"); // the messages around it are a log, which is read aloud
    box.setAttribute("aria-label", texts.picture(n));
    this.showActions(box, n, images);
    return box;
  }

  showActions(box, n, images) {
    const isOnly = images.length === 1;
    const free = MAX_PICTURES - images.length;
    const add = (text, label, onClick) => {
      const button = createButton(text, label);
      button.addEventListener("click", onClick);
      box.append(button);
      return button;
    };
    box.replaceChildren(Object.assign(document.createElement("span"), { className: "tile-number", textContent: n }));
    if (!isOnly) add(texts.keep, texts.keepLabel(n), () => this.send({ keep: [n] }));
    if (!isOnly) add(texts.drop, texts.dropLabel(n), () => this.send({ drop: [n] }));
    const split = add(texts.split, free ? texts.splitLabel(n) : texts.noPlace, () => {
      if (free === 1) return this.send({ split: { image: n, into: 2 } });
      box.replaceChildren();
      for (let into = 2; into <= free + 1; into += 1) add(`× ${into}`, texts.splitInto(n, into), () => this.send({ split: { image: n, into } }));
      add("✕", texts.close, () => (this.showActions(box, n, images), box.lastElementChild.focus()));
      box.querySelector("button").focus();
    });
    split.disabled = !free;
  }

  // The buttons rest until the server has answered; then the keyboard goes on at the first of them.
  send(body) {
    this.wantsFocus = this.hasFocus;
    this.parent = body.split?.image;
    for (const box of this.boxes.values()) for (const button of box.querySelectorAll("button")) button.disabled = true;
    this.desk.list.showNotice("");
    this.steering.press(this, body);
  }

  onAccepted() {
    this.state = "";
  }

  onRefused(sentence) {
    this.state = "";
    this.desk.list.showNotice(sentence);
  }

  remove() {
    for (const box of this.boxes.values()) box.remove();
    this.boxes.clear();
  }
}
