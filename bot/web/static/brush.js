// A brush over a picture: strokes by mouse, pen, finger or keys, undo, and the resulting mask. The canvas has the
// picture's size.

const STRIPES = ["#ff4a33", "#fff4ee"]; // one of the two shows on any picture
const STRIPE = 1 / 40; // the stripes' width, of the picture's longer side
const NEAR = 0.25; // the move of an arrow key, of the brush's size

export class Brush {
  // `changed()` is called after every stroke.
  constructor(canvas, ring, changed) {
    Object.assign(this, { canvas, ring, changed, strokes: [], rubbing: false, down: false });
    const on = (kind, hear) => canvas.addEventListener(kind, (event) => hear.call(this, event));
    on("pointerdown", this.press);
    on("pointermove", this.move);
    for (const kind of ["pointerup", "pointercancel"]) on(kind, this.lift);
    on("keydown", this.key);
    on("focus", () => this.aim());
    on("pointerleave", () => (this.ring.hidden = true));
    on("blur", () => (this.lift(), (this.ring.hidden = true)));
  }

  // Show a new picture, with earlier strokes; the brush is in the middle.
  lay(width, height, strokes = []) {
    Object.assign(this.canvas, { width, height });
    this.at = [width / 2, height / 2];
    this.ink = striped(this.canvas.getContext("2d"), Math.max(4, Math.round(STRIPE * Math.max(width, height))));
    this.strokes = [...strokes];
    this.lift();
    this.repaint();
  }

  // `share`: the brush's size, of the picture's shorter side.
  resize(share) {
    this.size = Math.max(1, share * Math.min(this.canvas.width, this.canvas.height));
    this.aim();
  }

  get empty() {
    return this.strokes.every((stroke) => stroke.rub);
  }

  press(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.place(event);
    this.begin();
  }

  move(event) {
    this.at = this.place(event);
    this.aim();
    if (!this.down || !this.canvas.hasPointerCapture(event.pointerId)) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const one of between.length ? between : [event]) this.draw(this.place(one));
  }

  place({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) / width) * this.canvas.width, ((clientY - top) / height) * this.canvas.height];
  }

  begin() {
    this.down = true;
    this.strokes.push({ size: this.size, rub: this.rubbing, points: [] });
    this.draw(this.at);
  }

  draw(point) {
    const stroke = this.strokes.at(-1);
    stroke.points.push(point);
    paint(this.canvas.getContext("2d"), { ...stroke, points: stroke.points.slice(-2) }, this.ink);
    this.changed();
  }

  lift() {
    this.down = false;
    this.ring.classList.remove("down");
  }

  // Arrows move the brush, Space sets it down and lifts it.
  key(event) {
    const step = Math.max(1, this.size * NEAR);
    const [x, y] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else if (event.key === " ") event.repeat || (this.down ? this.lift() : this.begin());
    else if (x || y) this.go(x, y);
    else return;
    event.preventDefault();
    this.aim();
    this.ring.classList.toggle("down", this.down);
  }

  go(x, y) {
    const { width, height } = this.canvas;
    this.at = [Math.min(width, Math.max(0, this.at[0] + x)), Math.min(height, Math.max(0, this.at[1] + y))];
    if (this.down) this.draw(this.at);
  }

  aim() {
    const { width, height } = this.canvas;
    const put = (name, value, of) => this.ring.style.setProperty(name, `${(100 * value) / of}%`);
    put("left", this.at[0], width);
    put("top", this.at[1], height);
    put("width", this.size, width);
    this.ring.hidden = false;
  }

  undo() {
    this.lift();
    this.strokes.pop();
    this.repaint();
  }

  clear() {
    this.lift();
    this.strokes = [];
    this.repaint();
  }

  repaint() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) paint(context, stroke, this.ink);
    this.changed();
  }

  // The mask as PNG: white where it was painted, black elsewhere.
  mask() {
    const { width, height } = this.canvas;
    const sheet = Object.assign(document.createElement("canvas"), { width, height });
    const context = sheet.getContext("2d");
    for (const stroke of this.strokes) paint(context, stroke, "#fff");
    Object.assign(context, { globalCompositeOperation: "destination-over", fillStyle: "#000" });
    context.fillRect(0, 0, width, height);
    return new Promise((done) => sheet.toBlob(done, "image/png"));
  }
}

// A canvas pattern of slanting stripes: tiles of this many pixels whose edges match.
function striped(context, side) {
  const tile = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const on = tile.getContext("2d");
  on.fillStyle = STRIPES[0];
  on.fillRect(0, 0, side, side);
  on.fillStyle = STRIPES[1];
  for (const left of [-side, 0]) {
    on.beginPath();
    for (const [x, y] of [[left + side / 2, 0], [left + side, 0], [left + 2 * side, side], [left + 1.5 * side, side]]) on.lineTo(x, y);
    on.fill();
  }
  return context.createPattern(tile, "repeat");
}

function paint(context, { size, rub, points }, colour) {
  const [[x, y], ...rest] = points;
  context.globalCompositeOperation = rub ? "destination-out" : "source-over";
  Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round", strokeStyle: colour, fillStyle: colour });
  context.beginPath();
  if (!rest.length) return context.arc(x, y, size / 2, 0, 2 * Math.PI), context.fill(); // not all browsers draw a line of zero length
  context.moveTo(x, y);
  for (const point of rest) context.lineTo(...point);
  context.stroke();
}
