// The page: what is asked and what is shown, and everything that changes the one and so the other.

import { Service, state as serviceState } from "./api.js";
import { $, count, dateOf, isPicture, make, pictures, toast } from "./dom.js";
import { Filters } from "./filters.js";
import { BLOCK, Grid } from "./grid.js";
import { Indexing } from "./indexing.js";
import { Inspector } from "./inspector.js";
import { Lightbox } from "./lightbox.js";
import { notices } from "./notices.js";
import { part } from "./parts.js";
import { fromAddress, isSearch, requestOf, sameHits, toAddress, uploads } from "./query.js";
import { Selection } from "./selection.js";
import { Terms } from "./terms.js";
import { followTheme } from "./theme.js";

const app = {
  asked: fromAddress(location.search),
  service: new Service(),
  about: null, // the index, as /api/state tells of it
  limits: {},
  fields: [],
  answer: null, // the last first page
};

// Searching.

let searching = null;

/** Ask what is asked now and show it; what was under way is given up. */
async function search({ since = performance.now(), top = 0 } = {}) {
  searching?.abort();
  const own = (searching = new AbortController());
  const slow = setTimeout(() => document.body.classList.add("slow"), 250);
  try {
    const answer = await load(0, BLOCK, own.signal);
    if (own.signal.aborted) return;
    app.answer = answer;
    app.since = since;
    const total = withDates() ? answer.total : null;
    $("grid").classList.toggle("dated", withDates());
    $("notice").hidden = true;
    $("grid").hidden = false;
    grid.show({ hits: answer.hits, total, next: answer.next_offset }, top);
    drawnFirst();
    if (grid.empty) notices.nothing(app, { reset, filters: clearFilters, add: () => indexing.open() });
    tell(answer);
    inspector.answered(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    failed(error, () => search({ top }));
  } finally {
    clearTimeout(slow);
    if (own === searching) document.body.classList.remove("slow");
  }
}

async function load(offset, k, signal) {
  const { request, uploads: files } = requestOf(app.asked, app.about?.fields ?? {}, { k, offset });
  const answer = await app.service.search(request, files, signal);
  return { ...answer, next: answer.next_offset };
}

/** From the keystroke until the first result is drawn, as performance.getEntriesByName("first-result") has it. */
function drawnFirst() {
  if (app.since === undefined) return;
  const since = app.since;
  const done = () => {
    app.since = undefined;
    requestAnimationFrame(() => setTimeout(() => performance.measure("first-result", { start: since })));
  };
  const first = $("grid").querySelector("li:not([hidden]) img");
  if (!first || first.complete) done();
  else first.addEventListener("load", done, { once: true });
}

function failed(error, again) {
  if (error.status === 429) {
    const seconds = Math.max(1, error.retry);
    toast(`The service is busy; trying again in ${seconds} s.`);
    setTimeout(again, 1000 * seconds);
    return;
  }
  $("status").textContent = "";
  $("corner").hidden = true;
  $("grid").hidden = true;
  notices.failed(error, again);
}

function tell(answer) {
  const searched = isSearch(app.asked);
  const loaded = grid.length;
  const more = answer.next_offset !== null;
  const shown = grid.cut ? `; the first ${count(loaded)} are here` : "";
  if (grid.empty) $("status").textContent = "No pictures";
  else if (withDates() && answer.total !== null) $("status").textContent = pictures(answer.total) + shown;
  else $("status").textContent = more ? "Best first" : pictures(loaded);
  const total = answer.timings_ms?.total;
  $("corner").hidden = total === undefined || app.asked.view === "map";
  $("corner").textContent = total === undefined ? "" : `${total < 10 ? total.toFixed(1) : Math.round(total)} ms`;
  $("order").querySelector("[value=relevance]").disabled = !searched;
  $("order").value = !searched && app.asked.order === "relevance" ? "newest" : app.asked.order;
  document.title = searched && app.asked.text ? `${app.asked.text} · hivlp` : "hivlp";
}

const withDates = () => (isSearch(app.asked) ? app.asked.order !== "relevance" : true);

// Changing what is asked.

/** Take on a change; `push` makes it a step of the browser's history. */
export function change(part, { push = true, since } = {}) {
  const before = app.asked;
  app.asked = { ...before, ...part };
  const same = sameHits(before, app.asked);
  if (push) {
    history.replaceState({ ...history.state, top: scrollY }, ""); // where Back leads to
    history.pushState({ top: 0 }, "", toAddress(app.asked));
  }
  else history.replaceState(history.state, "", toAddress(app.asked));
  follow(same, { since });
}

function follow(same, from) {
  const { asked } = app;
  if ($("text").value !== asked.text) $("text").value = asked.text;
  terms.show(asked.terms);
  $("clear").hidden = !isSearch(asked);
  $("keep-text").hidden = !asked.text.trim();
  filters.show(asked);
  if (!same) search(from);
  showView();
}

async function showView() {
  const map = app.asked.view === "map";
  $("show-map").setAttribute("aria-pressed", map);
  $("main").hidden = map;
  document.body.classList.toggle("mapping", map);
  $("map").hidden = !map;
  if (map) {
    const { openMap } = await import("./map.js");
    openMap($("map"), app, { open: (id) => lightbox.openItem(id), pick: (hits) => pickAll(hits) });
  } else if (grid.blocks.length) grid.render();
  if (app.asked.item) lightbox.openItem(app.asked.item);
  else lightbox.close();
}

function pickAll(hits) {
  for (const hit of hits) grid.picked.set(hit.id, hit);
  grid.marked();
}

function reset() {
  change({ text: "", terms: [], where: {}, after: "", before: "", order: "relevance", item: 0, view: "" });
}

const clearFilters = () => change({ where: {}, after: "", before: "" });

function addTerm(kind, value, weight) {
  const rest = app.asked.terms.filter((term) => term.kind !== kind || term.value !== value);
  change({ terms: [...rest, { kind, value, weight }], order: "relevance", item: 0, view: "" });
  scrollTo(0, 0);
}

const more = (hit) => {
  addTerm("item", hit.id, 1);
  toast(`More like ${hit.caption || "this picture"}`);
};
const less = (hit) => {
  addTerm("item", hit.id, -0.5);
  toast(`Less like ${hit.caption || "this picture"}`);
};

async function searchByPicture(file) {
  if (!file || !isPicture(file)) return toast("That is no picture.");
  if (app.about?.can_encode?.image === false) return toast("This collection has no model for pictures: look for more like one of its own.");
  const most = app.limits.upload_bytes ?? Infinity;
  const sent = file.size > most ? await smaller(file) : file;
  const name = `p${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  uploads.set(name, sent);
  addTerm("upload", name, 1);
}

/** A picture that is too large to send, at a size that the model sees no difference in. */
async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, 1600 / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

// Parts of the page.

const grid = new Grid($("grid"), {
  load,
  more,
  less,
  failed: (error) => toast(error.message),
  open: (at) => lightbox.open(at),
  changed: () => selection.show(),
  withDates,
  thumbnail: (hit, size) => `${hit.thumbnail}?size=${size}`,
  seen: (hit) => showWhen(hit),
});
const selection = new Selection($("selection"), grid, {
  more: (hits) => {
    grid.clear();
    change({ terms: hits.slice(0, 16).map((hit) => ({ kind: "item", value: hit.id, weight: 1 })), text: "", view: "" });
  },
});
const lightbox = new Lightbox(grid, app, {
  more,
  less,
  opened: (id) => {
    if (app.asked.item === id) return;
    const first = !app.asked.item;
    app.asked = { ...app.asked, item: id };
    history[first ? "pushState" : "replaceState"]({ top: scrollY, opened: first }, "", toAddress(app.asked));
  },
  closed: () => {
    if (!app.asked.item) return;
    app.asked = { ...app.asked, item: 0 };
    history.replaceState({ top: scrollY }, "", toAddress(app.asked));
  },
});
const terms = new Terms($("terms"), app, { change: (list) => change({ terms: list }) });
const filters = new Filters($("filters"), $("narrowed"), app, { change: (part) => change(part) });
const inspector = new Inspector($("inspector"), $("corner"), app);
const indexing = new Indexing($("indexing"), app, { finished: refresh });

let whenHiding = 0;

/** The month of what is at the top of the window, while one scrolls by date. */
function showWhen(hit) {
  const shown = hit && withDates() && scrollY > 300 ? dateOf(hit.taken, true) : "";
  $("when").textContent = shown;
  $("when").hidden = !shown;
  clearTimeout(whenHiding);
  whenHiding = setTimeout(() => ($("when").hidden = true), 1200);
}

$("text").addEventListener("input", (event) => {
  // While one types, the address follows without a step of history for each letter.
  change({ text: event.target.value, item: 0, view: "" }, { push: !app.typing, since: event.timeStamp });
  app.typing = true;
});
$("text").addEventListener("change", () => (app.typing = false));
$("text").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") {
    event.preventDefault();
    grid.focus(grid.active);
  } else if (event.key === "Enter" && event.shiftKey) {
    event.preventDefault();
    keepText();
  } else if (event.key === "Backspace" && !event.target.value && app.asked.terms.length) {
    change({ terms: app.asked.terms.slice(0, -1) });
  } else if (event.key === "Escape") event.target.blur();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  app.typing = false;
  if (matchMedia("(pointer: coarse)").matches) $("text").blur(); // the keyboard makes room
});

function keepText() {
  const text = app.asked.text.trim();
  if (text) change({ text: "", terms: [...app.asked.terms, { kind: "text", value: text, weight: 1 }] });
  $("text").focus();
}

$("keep-text").addEventListener("click", keepText);
$("clear").addEventListener("click", () => {
  change({ text: "", terms: [] });
  $("text").focus();
});
$("mark").addEventListener("click", (event) => {
  event.preventDefault();
  reset();
  scrollTo(0, 0);
});
$("by-picture").addEventListener("click", () => $("picture").click());
$("picture").addEventListener("change", (event) => {
  if (event.target.files[0]) searchByPicture(event.target.files[0]);
  event.target.value = "";
});
$("order").addEventListener("change", (event) => change({ order: event.target.value }));
$("show-filters").addEventListener("click", () => filters.toggle());
$("show-map").addEventListener("click", () => change({ view: app.asked.view === "map" ? "" : "map" }));
$("show-indexing").addEventListener("click", () => indexing.open());
$("show-help").addEventListener("click", () => $("help").showModal());
$("corner").addEventListener("click", () => inspector.toggle());
$("index").addEventListener("change", (event) => {
  location.assign(toAddress({ ...fromAddress(""), index: event.target.value }));
});

addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  searchByPicture(file);
});
let dragged = 0;
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.includes("Files") || $("indexing").open) return;
  dragged += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", () => {
  dragged = Math.max(0, dragged - 1);
  $("drop").hidden = dragged === 0;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  if (!$("indexing").open && event.dataTransfer?.files[0]) searchByPicture(event.dataTransfer.files[0]);
});
addEventListener("popstate", (event) => {
  const before = app.asked;
  app.asked = fromAddress(location.search);
  app.typing = false;
  if (app.asked.index !== before.index) return location.reload();
  follow(sameHits(before, app.asked), { since: undefined, top: event.state?.top });
  if (event.state?.top !== undefined && sameHits(before, app.asked)) scrollTo(0, event.state.top);
});

/** Shortcuts of single keys, where nobody is typing. */
async function bindKeys() {
  const keys = await part("tinykeys");
  if (!keys) return;
  const quietly = (action) => (event) => {
    if (event.target.closest("input, select, textarea, dialog, .pswp") || document.querySelector("dialog[open], .pswp")) return;
    event.preventDefault();
    action();
  };
  (keys.tinykeys ?? keys.default)(window, {
    "/": quietly(() => $("text").select()),
    f: quietly(() => filters.toggle()),
    g: quietly(() => $("show-map").click()),
    i: quietly(() => inspector.toggle()),
    "Shift+?": quietly(() => $("help").showModal()),
    Escape: quietly(() => (grid.picked.size ? grid.clear() : inspector.close())),
  });
}

// Beginning.

/** Learn anew what the service has, as after pictures were added, and ask again. */
async function refresh() {
  await learn();
  await search({ since: undefined, top: scrollY });
}

async function learn() {
  const { indexes, limits } = await serviceState();
  app.limits = limits ?? {};
  app.about = indexes.find((each) => each.name === app.asked.index) ?? indexes[0] ?? null;
  app.service = new Service(app.about?.name);
  const choice = $("index");
  choice.hidden = indexes.length < 2;
  choice.replaceChildren(...indexes.map(({ name }) => make("option", { value: name, text: name })));
  choice.value = app.about?.name ?? "";
  $("show-indexing").hidden = !app.about?.writable;
  $("by-picture").hidden = app.about?.can_encode?.image === false;
  $("text").disabled = app.about?.can_encode?.text === false;
  if ($("text").disabled) $("text").placeholder = "No model for texts";
  app.service.get("/fields").then(({ fields }) => {
    app.fields = fields;
    filters.show(app.asked);
  }, () => {});
}

followTheme($("theme"));
bindKeys();
history.replaceState({ top: scrollY }, "", location.href);
try {
  await learn();
  follow(true);
  await search();
  const { index } = app.asked;
  if (index && index !== app.about?.name) toast(`There is no collection ${index} here: this is ${app.about?.name}.`);
  indexing.resume();
} catch (error) {
  failed(error, () => location.reload());
}
document.documentElement.dataset.ready = "";
