// The map of the collection: each picture a point, near to those that look alike; up to a million.

import { $, count, iconButton, make, titleOf, toast } from "./dom.js";
import { canvasPainter, glPainter } from "./painter.js";

const NEAR = 14; // pixels around the pointer in which a point is found
const MOST_PICKED = 1000; // as many as one answer may have
const SETTLED = 140; // milliseconds without movement after which pictures are laid on points
const ROOM = 58; // pixels that a picture on the map takes
const MOST_IN_SIGHT = 1500; // points beyond which there are none
const CELLS = 256; // a side of the grid that points are looked up by

let open = null;

/** Show the map, loaded anew if the index is another one. */
export async function openMap(root, app, face) {
  if (open?.service === app.service) return open.resume(app);
  open = new CollectionMap(root, app, face);
  await open.begin();
}

class CollectionMap {
  constructor(root, app, face) {
    Object.assign(this, { root, app, face, service: app.service });
    this.view = { x: 0, y: 0, scale: 1 };
  }

  async begin() {
    this.root.replaceChildren(make("section", { class: "notice" }, make("h1", { text: "Drawing the map" }), make("p", { text: "The first time takes a while: every picture finds its place among those that look alike." })));
    try {
      while (!(this.points = await this.service.map())) await new Promise((done) => setTimeout(done, 700));
    } catch (error) {
      open = null;
      this.root.replaceChildren(make("section", { class: "notice" }, make("h1", { text: "No map" }), make("p", { text: error.message })));
      return;
    }
    this.places = new Map();
    this.points.ids.forEach((id, place) => this.places.set(Number(id), place));
    this.index();
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": "Map of the collection. Arrow keys move, plus and minus zoom, Enter opens the picture in the middle." });
    this.tip = make("div", { class: "tip", hidden: true });
    this.box = make("div", { class: "box", hidden: true });
    this.layer = make("div", { class: "layer", "aria-hidden": "true" });
    this.legend = make("p", { class: "legend" });
    this.root.replaceChildren(
      this.canvas, this.layer, this.box, this.tip, this.legend,
      make("div", { class: "zooms" },
        iconButton("less", "Zoom out", () => this.zoom(1 / 1.6), { class: "ghost" }),
        iconButton("more", "Zoom in", () => this.zoom(1.6), { class: "ghost" }),
        iconButton("close", "Back to the pictures", () => $("show-map").click(), { class: "ghost" })),
    );
    this.painter = glPainter(this.canvas, this.points.xy) ?? canvasPainter(this.renewed(), this.points.xy);
    this.listen();
    this.resume(this.app);
  }

  /** A canvas that no context was asked of. */
  renewed() {
    const next = this.canvas.cloneNode();
    this.canvas.replaceWith(next);
    this.canvas = next;
    return next;
  }

  resume(app) {
    this.app = app;
    const hits = app.asked.text || app.asked.terms.length ? (app.answer?.hits ?? []) : [];
    const found = hits.map((hit) => this.places.get(hit.id)).filter((place) => place !== undefined);
    this.painter.highlight(found);
    this.legend.textContent = `${count(this.points.ids.length)} pictures${found.length ? `, ${count(found.length)} of the search marked` : ""}. Drag to move, scroll to zoom, Shift and drag to select.`;
    this.draw();
  }

  // Where things are.

  /** Points by the cells of a grid: those of cell c are order[starts[c]] to order[starts[c + 1]]. */
  index() {
    const { xy, ids } = this.points;
    const cell = (place) => {
      const column = Math.min(CELLS - 1, Math.max(0, Math.floor(((xy[2 * place] + 1) / 2) * CELLS)));
      const row = Math.min(CELLS - 1, Math.max(0, Math.floor(((xy[2 * place + 1] + 1) / 2) * CELLS)));
      return row * CELLS + column;
    };
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    for (let place = 0; place < ids.length; place += 1) this.starts[cell(place) + 1] += 1;
    for (let each = 0; each < CELLS * CELLS; each += 1) this.starts[each + 1] += this.starts[each];
    const next = this.starts.slice();
    this.order = new Uint32Array(ids.length);
    for (let place = 0; place < ids.length; place += 1) this.order[next[cell(place)]++] = place;
  }

  /** Pixels of the window for one unit of the map. */
  get unit() {
    return (Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / 2) * 0.94 * this.view.scale;
  }

  toMap(left, top) {
    return [
      this.view.x + (left - this.canvas.clientWidth / 2) / this.unit,
      this.view.y - (top - this.canvas.clientHeight / 2) / this.unit,
    ];
  }

  toWindow(place) {
    return [
      this.canvas.clientWidth / 2 + (this.points.xy[2 * place] - this.view.x) * this.unit,
      this.canvas.clientHeight / 2 - (this.points.xy[2 * place + 1] - this.view.y) * this.unit,
    ];
  }

  /** Points within a box of the map. */
  *within(x0, y0, x1, y1) {
    const { xy } = this.points;
    const clamp = (value) => Math.min(CELLS - 1, Math.max(0, Math.floor(((value + 1) / 2) * CELLS)));
    for (let row = clamp(y0); row <= clamp(y1); row += 1) {
      const [first, end] = [this.starts[row * CELLS + clamp(x0)], this.starts[row * CELLS + clamp(x1) + 1]];
      for (let at = first; at < end; at += 1) {
        const place = this.order[at];
        const [x, y] = [xy[2 * place], xy[2 * place + 1]];
        if (x >= x0 && x <= x1 && y >= y0 && y <= y1) yield place;
      }
    }
  }

  nearest(left, top) {
    const [x, y] = this.toMap(left, top);
    const reach = NEAR / this.unit;
    let [best, least] = [-1, reach * reach];
    for (const place of this.within(x - reach, y - reach, x + reach, y + reach)) {
      const distance = (this.points.xy[2 * place] - x) ** 2 + (this.points.xy[2 * place + 1] - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    }
    return best;
  }

  // Drawing.

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const { clientWidth: width, clientHeight: height } = this.canvas;
      if (!width || this.root.hidden) return;
      const started = performance.now();
      this.painter.paint({ ...this.view, unit: this.unit, width, height, ratio: Math.min(2, devicePixelRatio) });
      this.canvas.dataset.milliseconds = (performance.now() - started).toFixed(1);
      this.canvas.dataset.painter = this.painter.name;
      for (const image of this.layer.children) this.put(image);
      clearTimeout(this.settling);
      this.settling = setTimeout(() => this.layPictures(), SETTLED);
    });
  }

  put(image) {
    const [left, top] = this.toWindow(image.place);
    image.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px) translate(-50%, -50%)`;
  }

  /** Lay pictures on their points, as many as there is room for, where not too many are in sight. */
  layPictures() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const [x0, y0] = this.toMap(0, height);
    const [x1, y1] = this.toMap(width, 0);
    const taken = new Map(); // cell of the window -> where its picture lies, and whose it is
    const free = (column, row, left, top) => {
      for (let beside = 0; beside < 9; beside += 1) {
        const other = taken.get(`${column - 1 + (beside % 3)} ${row - 1 + Math.floor(beside / 3)}`);
        if (other && Math.abs(other.left - left) < ROOM && Math.abs(other.top - top) < ROOM) return false;
      }
      return true;
    };
    let seen = 0;
    for (const place of this.within(x0, y0, x1, y1)) {
      if ((seen += 1) > MOST_IN_SIGHT) {
        taken.clear();
        break;
      }
      const [left, top] = this.toWindow(place);
      const [column, row] = [Math.floor(left / ROOM), Math.floor(top / ROOM)];
      if (free(column, row, left, top)) taken.set(`${column} ${row}`, { left, top, place });
    }
    const wanted = new Set([...taken.values()].map((each) => each.place));
    for (const image of [...this.layer.children]) {
      if (!wanted.delete(image.place)) image.remove();
    }
    for (const place of wanted) {
      const image = make("img", { src: this.service.thumbnail(Number(this.points.ids[place]), 160), alt: "", fetchpriority: "low" });
      image.place = place;
      this.put(image);
      this.layer.append(image);
    }
  }

  zoom(factor, left = this.canvas.clientWidth / 2, top = this.canvas.clientHeight / 2) {
    const [x, y] = this.toMap(left, top);
    this.view.scale = Math.min(4000, Math.max(0.6, this.view.scale * factor));
    const [now, below] = this.toMap(left, top);
    this.move(x - now, y - below);
  }

  move(x, y) {
    this.view.x = Math.min(1.2, Math.max(-1.2, this.view.x + x));
    this.view.y = Math.min(1.2, Math.max(-1.2, this.view.y + y));
    this.tip.hidden = true;
    this.draw();
  }

  async point(left, top) {
    const place = this.nearest(left, top);
    this.pointed = place;
    if (place < 0) {
      this.tip.hidden = true;
      return;
    }
    const id = Number(this.points.ids[place]);
    const hit = await this.service.item(id).catch(() => null);
    if (this.pointed !== place || !hit) return;
    const image = make("img", { src: this.service.thumbnail(id), alt: "" });
    this.tip.replaceChildren(image, make("span", { text: titleOf(hit) }));
    this.tip.hidden = false;
    const [x, y] = this.toWindow(place);
    const { clientWidth, clientHeight } = this.canvas;
    const tall = 250;
    this.tip.style.transform = `translate(${Math.round(x + 220 > clientWidth ? x - 216 : x + 16)}px, ${Math.round(Math.min(Math.max(8, y - 40), clientHeight - tall))}px)`;
  }

  // Pointers and keys.

  listen() {
    const pointers = new Map();
    let start = null;
    let hover = 0;
    const at = (event) => {
      const { left, top } = this.canvas.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      start = { from: at(event), choosing: event.shiftKey, moved: false };
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const [left, top] = at(event);
      this.canvas.classList.toggle("choosing", event.shiftKey);
      const before = pointers.get(event.pointerId);
      if (!before) {
        clearTimeout(hover);
        hover = setTimeout(() => this.point(left, top), 60);
        return;
      }
      const others = [...pointers].filter(([id]) => id !== event.pointerId);
      pointers.set(event.pointerId, [left, top]);
      if (Math.hypot(left - start.from[0], top - start.from[1]) > 4) start.moved = true;
      if (start.choosing) this.frameBox(start.from, [left, top]);
      else if (others.length) {
        const [x, y] = others[0][1];
        this.zoom(Math.hypot(left - x, top - y) / Math.max(1, Math.hypot(before[0] - x, before[1] - y)), x, y);
      } else this.move((before[0] - left) / this.unit, (top - before[1]) / this.unit);
    });
    const up = (event) => {
      if (!pointers.delete(event.pointerId) || pointers.size) return;
      const end = at(event);
      this.box.hidden = true;
      if (start.choosing && start.moved) this.choose(start.from, end);
      else if (!start.moved && event.type === "pointerup") this.openAt(...end);
    };
    this.canvas.addEventListener("pointerup", up);
    this.canvas.addEventListener("pointercancel", up);
    this.canvas.addEventListener("pointerleave", () => {
      clearTimeout(hover);
      this.pointed = -1;
      this.tip.hidden = true;
    });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...at(event));
    }, { passive: false });
    this.canvas.addEventListener("keydown", (event) => {
      const step = 0.12 / this.view.scale;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (moves[event.key]) this.move(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.4);
      else if (event.key === "-") this.zoom(1 / 1.4);
      else if (event.key === "Enter") this.openMiddle();
      else if (event.key === "Escape") $("show-map").click();
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    addEventListener("themechange", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  openAt(left, top) {
    const place = this.nearest(left, top);
    if (place >= 0) this.face.open(Number(this.points.ids[place]));
  }

  openMiddle() {
    let [best, least] = [-1, Infinity];
    for (let place = 0; place < this.points.ids.length; place += 1) {
      const distance = (this.points.xy[2 * place] - this.view.x) ** 2 + (this.points.xy[2 * place + 1] - this.view.y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    }
    if (best >= 0) this.face.open(Number(this.points.ids[best]));
  }

  frameBox([left, top], [x, y]) {
    this.box.hidden = false;
    this.box.style.transform = `translate(${Math.min(left, x)}px, ${Math.min(top, y)}px)`;
    this.box.style.width = `${Math.abs(x - left)}px`;
    this.box.style.height = `${Math.abs(y - top)}px`;
  }

  /** Select the pictures in a box of the window. */
  async choose(from, to) {
    const [x0, y0] = this.toMap(Math.min(from[0], to[0]), Math.max(from[1], to[1]));
    const [x1, y1] = this.toMap(Math.max(from[0], to[0]), Math.min(from[1], to[1]));
    const ids = [];
    for (const place of this.within(x0, y0, x1, y1)) {
      ids.push(Number(this.points.ids[place]));
      if (ids.length >= MOST_PICKED) break;
    }
    if (!ids.length) return;
    const request = { k: ids.length, where: `id IN (${ids.join(", ")})` };
    try {
      this.face.pick((await this.service.search(request, new Map())).hits);
    } catch (error) {
      toast(error.message);
    }
  }
}
