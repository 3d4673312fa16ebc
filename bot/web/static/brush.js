// A brush over a picture: strokes by mouse, pen, finger or keys, undo, and the resulting mask. The canvas has the
// picture's size.

const STRIPE_COLOURS = ["#ff4a33", "#fff4ee"]; // one of the two shows on any picture
const STRIPE_WIDTH = 1 / 40; // of the picture's longer side
const ARROW_STEP = 0.25; // the move of an arrow key, of the brush's size

export class Brush {
  // `cursor`: the element that shows the brush. `onChange()` is called after every stroke.
  constructor(canvas, cursor, onChange) {
    Object.assign(this, { canvas, cursor, onChange, strokes: [], isErasing: false, isDown: false });
    const on = (kind, handler) => canvas.addEventListener(kind, (event) => handler.call(this, event));
    on("pointerdown", this.onPointerDown);
    on("pointermove", this.onPointerMove);
    for (const kind of ["pointerup", "pointercancel"]) on(kind, this.endStroke);
    on("keydown", this.onKeyDown);
    on("focus", () => this.moveCursor());
    on("pointerleave", () => (this.cursor.hidden = true));
    on("blur", () => (this.endStroke(), (this.cursor.hidden = true)));
  }

  // Start on a picture of this size, with earlier strokes; the brush is in the middle.
  reset(width, height, strokes = []) {
    Object.assign(this.canvas, { width, height });
    this.position = [width / 2, height / 2];
    this.pattern = createStripes(this.canvas.getContext("2d"), Math.max(4, Math.round(STRIPE_WIDTH * Math.max(width, height))));
    this.strokes = [...strokes];
    this.endStroke();
    this.repaint();
  }

  // `share`: the brush's size, of the picture's shorter side.
  resize(share) {
    this.size = Math.max(1, share * Math.min(this.canvas.width, this.canvas.height));
    this.moveCursor();
  }

  get isEmpty() {
    return this.strokes.every((stroke) => stroke.isEraser);
  }

  onPointerDown(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.position = this.toCanvasPoint(event);
    this.startStroke();
  }

  onPointerMove(event) {
    this.position = this.toCanvasPoint(event);
    this.moveCursor();
    if (!this.isDown || !this.canvas.hasPointerCapture(event.pointerId)) return;
    const coalesced = event.getCoalescedEvents?.() ?? [];
    for (const pointerEvent of coalesced.length ? coalesced : [event]) this.extendStroke(this.toCanvasPoint(pointerEvent));
  }

  toCanvasPoint({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) / width) * this.canvas.width, ((clientY - top) / height) * this.canvas.height];
  }

  startStroke() {
    this.isDown = true;
    this.strokes.push({ size: this.size, isEraser: this.isErasing, points: [] });
    this.extendStroke(this.position);
  }

  extendStroke(point) {
    const stroke = this.strokes.at(-1);
    stroke.points.push(point);
    drawStroke(this.canvas.getContext("2d"), { ...stroke, points: stroke.points.slice(-2) }, this.pattern);
    this.onChange();
  }

  endStroke() {
    this.isDown = false;
    this.cursor.classList.remove("down");
  }

  // Arrows move the brush, Space starts and ends a stroke.
  onKeyDown(event) {
    const step = Math.max(1, this.size * ARROW_STEP);
    const [x, y] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else if (event.key === " ") event.repeat || (this.isDown ? this.endStroke() : this.startStroke());
    else if (x || y) this.moveBy(x, y);
    else return;
    event.preventDefault();
    this.moveCursor();
    this.cursor.classList.toggle("down", this.isDown);
  }

  moveBy(x, y) {
    const { width, height } = this.canvas;
    this.position = [Math.min(width, Math.max(0, this.position[0] + x)), Math.min(height, Math.max(0, this.position[1] + y))];
    if (this.isDown) this.extendStroke(this.position);
  }

  moveCursor() {
    const { width, height } = this.canvas;
    const setPercent = (name, value, total) => this.cursor.style.setProperty(name, `${(100 * value) / total}%`);
    setPercent("left", this.position[0], width);
    setPercent("top", this.position[1], height);
    setPercent("width", this.size, width);
    this.cursor.hidden = false;
  }

  undo() {
    this.endStroke();
    this.strokes.pop();
    this.repaint();
  }

  clear() {
    this.endStroke();
    this.strokes = [];
    this.repaint();
  }

  repaint() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) drawStroke(context, stroke, this.pattern);
    this.onChange();
  }

  // The mask as PNG: white where it was painted, black elsewhere.
  renderMask() {
    const { width, height } = this.canvas;
    const maskCanvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = maskCanvas.getContext("2d");
    for (const stroke of this.strokes) drawStroke(context, stroke, "#fff");
    Object.assign(context, { globalCompositeOperation: "destination-over", fillStyle: "#000" });
    context.fillRect(0, 0, width, height);
    return new Promise((resolve) => maskCanvas.toBlob(resolve, "image/png"));
  }
}

// A canvas pattern of slanting stripes: tiles of this many pixels whose edges match.
function createStripes(context, side) {
  const tile = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const tileContext = tile.getContext("2d");
  tileContext.fillStyle = STRIPE_COLOURS[0];
  tileContext.fillRect(0, 0, side, side);
  tileContext.fillStyle = STRIPE_COLOURS[1];
  for (const left of [-side, 0]) {
    tileContext.beginPath();
    for (const [x, y] of [[left + side / 2, 0], [left + side, 0], [left + 2 * side, side], [left + 1.5 * side, side]]) tileContext.lineTo(x, y);
    tileContext.fill();
  }
  return context.createPattern(tile, "repeat");
}

function drawStroke(context, { size, isEraser, points }, colour) {
  const [[x, y], ...rest] = points;
  context.globalCompositeOperation = isEraser ? "destination-out" : "source-over";
  Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round", strokeStyle: colour, fillStyle: colour });
  context.beginPath();
  if (!rest.length) return context.arc(x, y, size / 2, 0, 2 * Math.PI), context.fill(); // not all browsers draw a line of zero length
  context.moveTo(x, y);
  for (const point of rest) context.lineTo(...point);
  context.stroke();
}
