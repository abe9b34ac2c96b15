// The justified grid: any number of pictures, of which only those near the window are elements.
//
// Hits are held in blocks. Where their number is known (browsing), every block has its place from the start, so that the
// scroll bar spans the whole collection, and a block is loaded when it comes near; otherwise blocks follow one another.

import { justify, ratioOf } from "./justify.js";
import { fillTile, makeTile } from "./tile.js";

export const BLOCK = 80;
const TALLEST = 15_000_000; // pixels that every browser lays out
const SETTLED = 90; // milliseconds without scrolling after which what is in sight is loaded
const FAST = 4; // pixels a millisecond beyond which pictures are not asked for

export class Grid {
  /**
   * @param {HTMLElement} root an ordered list.
   * @param {object} face what the page does: load(offset, count, signal) gives {hits, next}; open(place); more(hit) and
   *   less(hit); changed() when the selection has; failed(error); thumbnail(hit, pixels) and withDates() say what is shown;
   *   seen(hit) tells the first one in the window.
   */
  constructor(root, face) {
    this.root = root;
    this.face = face;
    this.blocks = [];
    this.tiles = new Map();
    this.spare = [];
    this.picked = new Map(); // id -> hit
    this.anchor = -1;
    this.active = 0;
    this.generation = 0;
    this.width = 0;
    this.last = { top: 0, time: 0, speed: 0 };
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focusin", (event) => {
      const tile = event.target.closest("li");
      if (tile) this.focused(tile.at);
    });
    addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.resized()).observe(root);
  }

  // What is shown.

  /** Show an answer: `hits` of the first block, `total` where it is known, `next` where there may be more. */
  show({ hits, total, next }, top = 0) {
    this.generation += 1;
    for (const block of this.blocks) block.abort?.abort();
    this.blocks = [{ start: 0, offset: 0, count: total === null ? hits.length : Math.min(BLOCK, total), hits }];
    this.total = total;
    this.next = total === null ? next : null;
    this.cut = false;
    if (total !== null) {
      const fits = Math.floor((TALLEST / (this.target() + this.gap())) * this.columns());
      this.cut = total > fits; // the others are beyond the end of the scroll bar
      for (let offset = BLOCK; offset < Math.min(total, fits); offset += BLOCK) {
        this.blocks.push({ start: offset, offset, count: Math.min(BLOCK, total - offset), hits: null });
      }
      this.closeUp(0);
    }
    this.active = 0;
    this.anchor = -1;
    this.layOut();
    if (scrollY !== top) scrollTo(0, top);
    // What is in sight comes first, then what is around it.
    this.render(0);
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.render(), SETTLED);
  }

  get length() {
    const end = this.blocks.at(-1);
    return end ? end.start + end.count : 0;
  }

  /** Whether nothing is there, and nothing may follow. */
  get empty() {
    return !this.length && this.next === null;
  }

  blockOf(at) {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle].start <= at) low = middle;
      else high = middle - 1;
    }
    return this.blocks[low];
  }

  /** The hit at a place of the order, or undefined while it is not loaded. */
  hit(at) {
    const block = this.blockOf(at);
    return block?.hits?.[at - block.start];
  }

  /** The hit at a place, loaded if need be. */
  async fetch(at) {
    for (let block = this.blockOf(at); block && !block.hits; block = this.blockOf(at)) {
      block.asked = true; // though it is not in sight
      await this.load(block); // if it turns out short, the place is in the next one
    }
    if (at >= this.length - 5) await this.extend();
    return this.hit(at);
  }

  gap() {
    return this.width < 600 ? 4 : 8;
  }

  target() {
    return this.width < 600 ? 128 : Math.min(260, Math.max(190, this.width / 6.2));
  }

  columns() {
    return Math.max(1, this.width / (this.target() * 1.15));
  }

  measure(block) {
    if (!block.hits) {
      block.height = Math.ceil(block.count / this.columns()) * (this.target() + this.gap());
      return;
    }
    const last = block === this.blocks.at(-1) && this.next === null;
    const made = justify(block.hits.map(ratioOf), this.width, this.target(), this.gap(), last);
    block.rows = made.rows;
    block.height = made.height;
  }

  layOut() {
    this.width = this.root.clientWidth;
    for (const block of this.blocks) this.measure(block);
    this.place();
  }

  place() {
    let top = 0;
    for (const block of this.blocks) {
      block.top = top;
      top += block.height;
    }
    this.root.style.height = `${Math.max(0, top - this.gap())}px`;
  }

  resized() {
    if (!this.blocks.length || this.root.clientWidth === this.width || !this.root.clientWidth) return;
    const at = this.atTop();
    this.layOut();
    const block = this.blockOf(at);
    const row = block.rows?.findLast((each) => each.first <= at - block.start);
    if (scrollY > 0) scrollTo(0, this.offset() + block.top + (row?.top ?? 0));
    this.render();
  }

  offset() {
    return this.root.getBoundingClientRect().top + scrollY;
  }

  /** The place in the order of the first picture in the window. */
  atTop() {
    const top = Math.max(0, scrollY - this.offset() + 90);
    const block = this.blocks.find((each) => each.top + each.height > top) ?? this.blocks.at(-1);
    const row = block.rows?.find((each) => block.top + each.top + each.height > top);
    return block.start + (row?.first ?? 0);
  }

  // Scrolling.

  scrolled() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame((now) => {
      this.waiting = 0;
      const passed = Math.max(1, now - this.last.time);
      this.last = { top: scrollY, time: now, speed: Math.abs(scrollY - this.last.top) / passed };
      this.render();
    });
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.last.speed = 0;
      this.render();
    }, SETTLED);
  }

  render(around = 1) {
    if (this.root.hidden || !this.blocks.length) return;
    const offset = this.offset();
    const top = scrollY - offset;
    const reach = around * innerHeight;
    const [from, to] = [top - reach, top + innerHeight + reach];
    const calm = this.last.speed < FAST;
    const wanted = new Map();
    const missing = [];
    for (let place = this.firstBlock(from); place < this.blocks.length; place += 1) {
      const block = this.blocks[place];
      if (block.top > to) break;
      if (!block.hits) {
        missing.push(block);
        continue;
      }
      for (const row of block.rows) {
        const above = block.top + row.top;
        if (above > to || above + row.height < from) continue;
        row.left.forEach((left, column) => {
          const hit = block.hits[row.first + column];
          const key = wanted.has(hit.id) ? `${hit.id}@${block.start + row.first + column}` : hit.id;
          wanted.set(key, [hit, block.start + row.first + column, left, above, row.widths[column], row.height]);
        });
      }
    }
    for (const [key, tile] of this.tiles) {
      if (wanted.has(key) || tile.contains(document.activeElement)) continue;
      this.tiles.delete(key);
      this.release(tile);
    }
    for (const [key, given] of wanted) this.put(key, given, calm);
    if (calm) {
      for (const block of missing) this.load(block).catch(() => {});
      for (const block of this.blocks) {
        if (block.abort && !missing.includes(block) && !block.asked) block.abort.abort();
      }
      if (this.next !== null && this.total === null && top + 3 * innerHeight > this.blocks.at(-1).top) this.extend();
    }
    this.face.seen(this.hit(this.atTop()));
  }

  firstBlock(from) {
    let low = 0;
    let high = this.blocks.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.blocks[middle].top + this.blocks[middle].height < from) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Where files have gone a block has fewer hits than it has places: what follows moves up. */
  closeUp(place) {
    const block = this.blocks[place];
    const gone = block.count - block.hits.length;
    if (!gone) return;
    block.count = block.hits.length;
    this.total -= gone;
    for (const each of this.blocks.slice(place + 1)) each.start -= gone;
    for (const name of ["active", "anchor"]) if (this[name] >= block.start + block.count + gone) this[name] -= gone;
  }

  async load(block) {
    if (block.hits || block.loading) return block.loading;
    const generation = this.generation;
    block.abort = new AbortController();
    block.loading = this.face
      .load(block.offset, BLOCK, block.abort.signal)
      .then((answer) => {
        if (generation !== this.generation) return;
        const before = block.height;
        const above = this.offset() + block.top + before <= scrollY;
        block.hits = answer.hits;
        this.closeUp(this.blocks.indexOf(block));
        this.measure(block);
        this.place();
        // What is in sight stays where it is, whatever becomes of the rows above it.
        if (above && block.height !== before) scrollBy(0, block.height - before);
        this.render();
      })
      .catch((error) => {
        if (error.name !== "AbortError" && generation === this.generation) this.face.failed(error);
        throw error;
      })
      .finally(() => {
        block.loading = block.abort = null;
      });
    return block.loading;
  }

  /** One more block of an order whose length is not known. */
  async extend() {
    if (this.next === null || this.total !== null) return;
    this.extending ??= this.append().finally(() => (this.extending = null));
    await this.extending;
  }

  async append() {
    const generation = this.generation;
    try {
      const answer = await this.face.load(this.next, BLOCK);
      if (generation !== this.generation) return;
      this.next = answer.hits.length ? answer.next : null;
      const { hits } = answer;
      if (hits.length) this.blocks.push({ start: this.length, count: hits.length, hits });
      this.measure(this.blocks.at(-1));
      this.place();
      this.render();
    } catch (error) {
      if (generation === this.generation) this.face.failed(error);
    }
  }

  // Tiles.

  put(key, [hit, at, left, top, width, height], calm) {
    let tile = this.tiles.get(key);
    if (!tile) {
      tile = this.spare.pop() ?? makeTile(this.face, (at, range) => this.pick(at, range));
      this.tiles.set(key, tile);
      if (!tile.isConnected) this.root.append(tile);
      tile.hidden = false;
    }
    if (tile.hit !== hit) {
      fillTile(tile, hit, this.face);
      this.mark(tile);
    }
    if (tile.at !== at) {
      tile.at = at;
      tile.setAttribute("aria-posinset", at + 1);
      tile.setAttribute("aria-setsize", this.total ?? -1);
      tile.main.tabIndex = at === this.active ? 0 : -1;
    }
    const box = `${left},${top},${width},${height}`;
    if (tile.box !== box) {
      tile.box = box;
      tile.style.transform = `translate(${left}px, ${top}px)`;
      tile.style.width = `${width}px`;
      tile.style.height = `${height}px`;
    }
    if (calm && !tile.image.src && hit.thumbnail) {
      const pixels = Math.max(width, height) * Math.min(2, devicePixelRatio) > 400 ? 640 : 320;
      tile.image.fetchPriority = at < 4 ? "high" : "low";
      tile.image.src = this.face.thumbnail(hit, pixels);
    }
  }

  release(tile) {
    tile.hidden = true;
    tile.image.removeAttribute("src"); // what is under way is not loaded for nobody
    tile.image.classList.remove("there");
    tile.hit = null;
    tile.at = -1;
    if (this.spare.length < 300) this.spare.push(tile);
    else tile.remove();
  }

  // Selection.

  mark(tile) {
    const picked = this.picked.has(tile.hit?.id);
    tile.classList.toggle("picked", picked);
    tile.pick.setAttribute("aria-checked", picked);
  }

  marked() {
    for (const tile of this.tiles.values()) this.mark(tile);
    this.root.classList.toggle("picking", this.picked.size > 0);
    this.face.changed();
  }

  /** Select or not; with `range`, all from the last one picked up to this one, loaded where need be. */
  async pick(at, range = false) {
    const hit = this.hit(at);
    if (!hit) return;
    if (range && this.anchor >= 0) {
      const [first, end] = [Math.min(this.anchor, at), Math.max(this.anchor, at)];
      for (let place = first; place <= end; place += 1) {
        const each = this.hit(place) ?? (await this.fetch(place));
        if (each) this.picked.set(each.id, each);
      }
    } else if (!this.picked.delete(hit.id)) {
      this.picked.set(hit.id, hit);
    }
    if (!range) this.anchor = at;
    this.marked();
  }

  pickAll() {
    for (const block of this.blocks) for (const hit of block.hits ?? []) this.picked.set(hit.id, hit);
    this.marked();
  }

  clear() {
    this.picked.clear();
    this.anchor = -1;
    this.marked();
  }

  // The keyboard.

  focused(at) {
    if (at === this.active) return;
    const before = [...this.tiles.values()].find((tile) => tile.at === this.active);
    if (before) before.main.tabIndex = -1;
    this.active = at;
    const now = [...this.tiles.values()].find((tile) => tile.at === at);
    if (now) now.main.tabIndex = 0;
  }

  /** Move the focus to a place of the order, which is brought into sight. */
  async focus(at) {
    const hit = await this.fetch(at);
    if (!hit) return;
    const block = this.blockOf(at);
    const row = block.rows.findLast((each) => each.first <= at - block.start);
    const top = this.offset() + block.top + row.top;
    const head = document.querySelector(".bar").offsetHeight + 12;
    if (top < scrollY + head) scrollTo(0, top - head);
    else if (top + row.height > scrollY + innerHeight - 24) scrollTo(0, top + row.height - innerHeight + 24);
    this.render();
    const tile = [...this.tiles.values()].find((each) => each.at === at);
    tile?.main.focus({ preventScroll: true });
  }

  rowStep(at, step) {
    const place = this.blocks.indexOf(this.blockOf(at));
    const block = this.blocks[place];
    const row = block.rows.findLastIndex((each) => each.first <= at - block.start);
    const column = at - block.start - block.rows[row].first;
    const middle = block.rows[row].left[column] + block.rows[row].widths[column] / 2;
    let [beside, other] = [block, block.rows[row + step]];
    if (!other) {
      beside = this.blocks[place + step];
      if (!beside) return at;
      if (!beside.rows?.length) return step > 0 ? beside.start : block.start - 1;
      other = step > 0 ? beside.rows[0] : beside.rows.at(-1);
    }
    let best = 0;
    other.left.forEach((left, index) => {
      const distance = Math.abs(left + other.widths[index] / 2 - middle);
      if (distance < Math.abs(other.left[best] + other.widths[best] / 2 - middle)) best = index;
    });
    return beside.start + other.first + best;
  }

  key(event) {
    const tile = event.target.closest("li");
    if (!tile || event.altKey) return;
    const { at, hit } = tile;
    const moves = {
      ArrowRight: () => at + 1,
      ArrowLeft: () => at - 1,
      ArrowDown: () => this.rowStep(at, 1),
      ArrowUp: () => this.rowStep(at, -1),
      Home: () => 0,
      End: () => this.length - 1,
    };
    const control = event.ctrlKey || event.metaKey;
    if (moves[event.key] && !control) {
      event.preventDefault();
      const to = Math.min(this.length - 1, Math.max(0, moves[event.key]()));
      if (event.shiftKey && this.anchor < 0) this.pick(at);
      this.focus(to).then(() => event.shiftKey && this.pick(to, true));
    } else if (event.key === " " && event.target === tile.main) {
      event.preventDefault();
      this.pick(at, event.shiftKey);
    } else if (control && event.key === "a") {
      event.preventDefault();
      this.pickAll();
    } else if (!control && event.key === "m") this.face.more(hit);
    else if (!control && event.key === "l") this.face.less(hit);
  }
}
