// The pictures that a prompt begins with: dropped, pasted, chosen, or finished ones of this room. They are drawn small
// here, and go out with the words. Knows files and the document; what is a picture and what may be asked the server says.

import { Refused } from "/static/wire.js";

const MOST = 5;
const LARGEST = 16 * 1024 * 1024; // bytes
const THUMB = 128; // pixels a side, twice what is shown
const OURS = /\/api\/jobs\/([0-9A-HJKMNP-TV-Z]{26})\/pictures\/([1-4])\.png$/;
const USUAL = { one: "60", several: "50" }; // percent that are drawn anew

export class Start {
  // `complain(sentence)` says what was left out.
  constructor(form, complain) {
    this.complain = complain;
    this.items = [];
    const at = (name) => form.querySelector(name);
    [this.box, this.list, this.slider, this.percent] = [".start", ".thumbs", ".strength", ".strength-said"].map(at);
    [this.title, this.opener, this.chooser] = [".drawn-title", ".bring", ".chooser"].map(at);
    this.opener.addEventListener("click", () => this.chooser.click());
    this.chooser.addEventListener("change", () => {
      this.add(this.chooser.files);
      this.chooser.value = "";
    });
    this.slider.addEventListener("input", () => {
      this.chosen = true;
      this.tell();
    });
    this.listen();
  }

  get any() {
    return this.items.length > 0;
  }

  listen() {
    const brings = ({ dataTransfer }) => ["Files", "text/uri-list"].some((kind) => dataTransfer?.types.includes(kind));
    const aim = (on) => document.body.classList.toggle("aimed", on);
    document.addEventListener("dragover", (event) => {
      if (!brings(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      aim(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || aim(false));
    document.addEventListener("drop", (event) => {
      aim(false);
      if (brings(event) && this.take(event.dataTransfer, event.target)) event.preventDefault();
    });
    document.addEventListener("paste", ({ clipboardData, target }) => {
      if (!clipboardData?.files.length || target.closest?.("dialog")) return;
      this.add(clipboardData.files);
    });
  }

  // What was dropped: files, or a picture of this page. False where it is an address that belongs into the prompt.
  take(dropped, target) {
    if (dropped.files.length) return this.add(dropped.files), true;
    const url = dropped.getData("text/uri-list").split(/\r?\n/)[0];
    const [, job, n] = (url.startsWith(`${location.origin}/`) && OURS.exec(url)) || [];
    if (job) this.use({ name: `${job}/${n}`, url });
    else if (target.matches?.("textarea, input")) return false;
    else this.complain("Drop picture files, or pictures of this page; from elsewhere, save them first.");
    return true;
  }

  add(files) {
    for (const file of files) {
      if (file.type && !file.type.startsWith("image/")) this.complain(`“${file.name}” is no picture.`);
      else if (file.size > LARGEST) this.complain(`“${file.name}” is too large: up to 16 MB are taken.`);
      else this.put({ file, name: file.name || "picture" });
    }
  }

  // A finished picture, by its job and number.
  use({ name, url }) {
    if (!this.items.some((item) => item.shot === name)) this.put({ shot: name, url, name: `picture ${name.split("/")[1]} of a job` });
  }

  put(item) {
    if (this.items.length >= MOST) return this.complain(`Up to ${MOST} pictures can begin a job.`);
    this.items.push(item);
    this.show();
  }

  remove(item) {
    const place = this.items.indexOf(item);
    this.items.splice(place, 1);
    this.complain("");
    this.show();
    (this.list.children[Math.min(place, this.items.length - 1)]?.querySelector("button") ?? this.opener).focus();
  }

  clear() {
    this.items = [];
    this.chosen = false;
    this.show();
  }

  show() {
    this.list.replaceChildren(...this.items.map((item, index) => this.thumb(item, index)));
    this.box.hidden = !this.any;
    this.box.dispatchEvent(new Event("brought"));
    if (!this.chosen) this.slider.value = this.items.length > 1 ? USUAL.several : USUAL.one;
    this.tell();
  }

  tell() {
    const several = this.items.length > 1;
    this.title.textContent = several ? `${this.items.length} pictures, blended. How much is drawn anew` : "How much is drawn anew";
    this.percent.value = `${this.slider.value} %`;
    this.slider.setAttribute("aria-valuetext", this.percent.value);
    this.slider.style.setProperty("--share", `${((this.slider.value - this.slider.min) / (this.slider.max - this.slider.min)) * 100}%`);
  }

  thumb(item, index) {
    const one = document.createElement("li");
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×", title: `Remove ${item.name}` });
    remove.setAttribute("aria-label", `Remove picture ${index + 1}: ${item.name}`);
    remove.addEventListener("click", () => this.remove(item));
    item.seen ??= item.shot ? Object.assign(new Image(), { src: item.url, alt: "" }) : small(item.file);
    one.append(item.seen, remove);
    return one;
  }

  // The body of `POST /api/jobs`. Finished pictures beside others go as files, too: the server takes either.
  async order(prompt) {
    const order = { prompt };
    if (!this.any) return order;
    if (this.chosen) order.strength = Number(this.slider.value) / 100;
    if (this.items.every((item) => item.shot)) return { ...order, shots: this.items.map((item) => item.shot) };
    const form = new FormData();
    form.append("order", new Blob([JSON.stringify(order)], { type: "application/json" }));
    for (const item of this.items) form.append("picture", await this.content(item), item.name);
    return form;
  }

  // A picture as a file.
  async content(item) {
    return item.file ?? fetched(item.url);
  }
}

// Drawn on a canvas and not by an address of its own: the page shows pictures from the server alone.
function small(file) {
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMB, height: THUMB });
  createImageBitmap(file).then(
    (picture) => {
      const side = Math.min(picture.width, picture.height);
      const [x, y] = [(picture.width - side) / 2, (picture.height - side) / 2];
      canvas.getContext("2d").drawImage(picture, x, y, side, side, 0, 0, THUMB, THUMB);
      picture.close();
    },
    () => canvas.classList.add("unseen-here"), // what this browser can't draw, the server may read
  );
  return canvas;
}

async function fetched(url) {
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) throw new Refused("A picture that it begins with can’t be fetched just now.");
  return answer.blob();
}
