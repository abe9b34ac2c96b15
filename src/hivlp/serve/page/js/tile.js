// A tile of the grid: one picture, and what can be done with it. Tiles are used again for other pictures.

import { dateOf, icon, make, titleOf } from "./dom.js";

const HELD = 450; // milliseconds after which a finger selects instead of opening

/** An empty tile; `pick` is called with its place in the order, and whether a range ends there. */
export function makeTile(face, pick) {
  const image = make("img", { alt: "", decoding: "async", draggable: "false" });
  image.addEventListener("load", () => image.classList.add("there"));
  image.addEventListener("error", () => image.closest("li")?.classList.add("broken"));
  const name = make("span", { class: "name" });
  const main = make("button", { type: "button", class: "open", tabindex: -1 }, image, name);
  const date = make("span", { class: "date", "aria-hidden": "true" });
  const folded = make("span", { class: "folded", "aria-hidden": "true" });
  const scores = make("span", { class: "scores", "aria-hidden": "true" });
  const select = make("button", { type: "button", class: "pick", role: "checkbox", tabindex: -1 }, icon("check"));
  const more = make("button", { type: "button", class: "more", tabindex: -1, title: "More like this (m)" }, icon("more"));
  const less = make("button", { type: "button", class: "less", tabindex: -1, title: "Less like this (l)" }, icon("less"));
  const tile = make("li", { class: "tile" }, main, select, more, less, date, folded, scores);
  Object.assign(tile, { image, main, name, date, folded, scores, pick: select, more, less });
  onLongPress(main, () => pick(tile.at, false));
  main.addEventListener("click", (event) => {
    const picking = event.pointerType === "touch" && tile.closest(".picking");
    if (event.shiftKey || event.ctrlKey || event.metaKey || picking) pick(tile.at, event.shiftKey);
    else face.open(tile.at);
  });
  select.addEventListener("click", (event) => pick(tile.at, event.shiftKey));
  more.addEventListener("click", () => face.more(tile.hit));
  less.addEventListener("click", () => face.less(tile.hit));
  return tile;
}

/** Call `then` when a finger rests on an element; that press is then no click, and opens no menu. */
function onLongPress(element, then) {
  let timer = 0;
  let held = false;
  element.addEventListener("pointerdown", (event) => {
    held = false;
    if (event.pointerType !== "touch") return;
    timer = setTimeout(() => {
      held = true;
      then();
    }, HELD);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) element.addEventListener(end, () => clearTimeout(timer));
  element.addEventListener("contextmenu", (event) => event.pointerType === "touch" && event.preventDefault());
  element.addEventListener("click", (event) => held && event.stopImmediatePropagation());
}

/** Show a hit in a tile. */
export function fillTile(tile, hit, face) {
  if (tile.hit?.id !== hit.id || tile.hit?.thumbnail !== hit.thumbnail) {
    tile.image.classList.remove("there");
    tile.image.removeAttribute("src");
    tile.classList.remove("broken");
  }
  tile.hit = hit;
  const title = titleOf(hit);
  const date = dateOf(hit.taken);
  const same = hit.duplicates?.length ?? 0;
  tile.main.setAttribute("aria-label", [title, date, same ? `and ${same} like it` : ""].filter(Boolean).join(", "));
  tile.name.textContent = title;
  tile.pick.setAttribute("aria-label", `Select ${title}`);
  tile.more.setAttribute("aria-label", `More like ${title}`);
  tile.less.setAttribute("aria-label", `Less like ${title}`);
  tile.date.textContent = face.withDates() ? date : "";
  tile.folded.textContent = same ? `${same + 1}` : "";
  tile.folded.title = same ? `${same + 1} alike, folded into one` : "";
  tile.scores.textContent = Object.entries(hit.scores ?? {})
    .map(([level, score]) => `${level} ${score.toFixed(2)}`)
    .join("\n");
}
