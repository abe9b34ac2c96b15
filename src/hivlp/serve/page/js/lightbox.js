// One picture at a time: PhotoSwipe where it is there (swipe, pinch), else a plain dialog; with what is known of it beside.

import { dateOf, fileName, icon, iconButton, make, titleOf } from "./dom.js";
import { part } from "./parts.js";

const LARGE = 2048;
const SMALL = 720; // pixels that the long side of a small picture is drawn at
const HIDDEN = new Set(["width", "height", "taken"]);

export class Lightbox {
  constructor(grid, app, face) {
    Object.assign(this, { grid, app, face });
    this.details = false;
  }

  /** Open the picture of a place in the grid's order. */
  async open(at) {
    this.single = null;
    const hit = await this.grid.fetch(at);
    if (hit) await this.begin(at, hit);
  }

  /** Open an item by its id, whether the grid has it or not. */
  async openItem(id) {
    if (this.current?.id === id) return;
    const tile = [...this.grid.tiles.values()].find((each) => each.hit?.id === id);
    if (tile) return this.open(tile.at);
    try {
      const hit = await this.app.service.item(id);
      const base = this.app.service.base;
      this.single = { original: `${base}/items/${id}/original`, thumbnail: `${base}/items/${id}/thumbnail`, ...hit };
      await this.begin(0, this.single);
    } catch {
      this.face.closed(); // it has gone since the address was kept
    }
  }

  hit(at) {
    return this.single ?? this.grid.hit(at);
  }

  get count() {
    return this.single ? 1 : this.grid.length;
  }

  close() {
    const { view } = this;
    // PhotoSwipe closes nothing that is still opening.
    if (view?.opener?.isOpening) view.on("openingAnimationEnd", () => view.close());
    else view?.close();
  }

  async begin(at, hit) {
    const photoswipe = await part("photoswipe");
    if (this.view && this.current?.id === hit.id) return; // a double click
    this.close();
    this.view = null;
    this.at = at;
    this.current = hit;
    this.view = photoswipe ? this.swipe(photoswipe.default, at) : this.dialog(at);
    this.face.opened(hit.id);
  }

  moved(at, hit) {
    this.at = at;
    if (!hit) return;
    this.current = hit;
    this.face.opened(hit.id);
    this.describe(hit);
  }

  closed(view) {
    if (view !== this.view) return;
    this.view = this.current = null;
    this.face.closed();
    if (!this.single) this.grid.focus(this.at);
    this.single = null;
  }

  // With PhotoSwipe.

  slide(at) {
    const hit = this.hit(at);
    if (!hit) {
      const show = (found) => (found ? this.view?.refreshSlideContent(at) : this.view?.goTo(this.count - 1));
      this.grid.fetch(at).then(show, () => {});
      return { html: "", loading: true };
    }
    // The long side as it will be made, so that the picture lies where its small version did.
    const [width, height] = [hit.width || 1024, hit.height || 1024];
    const long = Math.max(width, height);
    const scale = long < SMALL ? Math.min(4, SMALL / long) : Math.min(1, LARGE / long);
    return {
      src: `${hit.thumbnail}?size=${LARGE}`,
      msrc: `${hit.thumbnail}?size=320`,
      width: Math.round(width * scale),
      height: Math.round(height * scale),
      alt: titleOf(hit),
    };
  }

  swipe(PhotoSwipe, at) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const view = new PhotoSwipe({
      index: at,
      dataSource: [],
      loop: false,
      counter: false,
      bgOpacity: 1,
      showHideAnimationType: still ? "none" : "fade",
      showAnimationDuration: 140,
      hideAnimationDuration: 120,
      paddingFn: (viewport) => (viewport.x < 700
        ? { top: 56, bottom: 96, left: 0, right: 0 }
        : { top: 60, bottom: 84, left: 60, right: this.details ? 360 : 60 }),
      closeTitle: "Close (Esc)",
      zoomTitle: "Zoom (z)",
      arrowPrevTitle: "Previous",
      arrowNextTitle: "Next",
      errorMsg: "This picture cannot be shown.",
    });
    view.addFilter("numItems", () => this.count);
    view.addFilter("itemData", (data, place) => this.slide(place));
    view.on("uiRegister", () => {
      view.ui.registerElement({ name: "about", appendTo: "root", onInit: (element) => this.panel(element) });
    });
    view.on("change", () => this.moved(view.currIndex, this.hit(view.currIndex)));
    view.on("keydown", ({ originalEvent }) => this.key(originalEvent));
    view.on("destroy", () => this.closed(view));
    view.init();
    view.element.setAttribute("aria-label", "Picture");
    view.element.setAttribute("aria-modal", "true");
    this.refresh = () => view.updateSize(true);
    this.describe(this.current);
    return view;
  }

  // Without it.

  dialog(at) {
    const image = make("img");
    const about = make("div");
    const step = (by) => this.grid.fetch(this.at + by).then((hit) => hit && this.count > 1 && show(this.at + by, hit));
    const dialog = make(
      "dialog",
      { class: "plain-lightbox", "aria-label": "Picture" },
      make("button", { type: "button", class: "ghost back", "aria-label": "Previous", text: "‹", onclick: () => step(-1) }),
      image,
      make("button", { type: "button", class: "ghost on", "aria-label": "Next", text: "›", onclick: () => step(1) }),
      iconButton("close", "Close", () => dialog.close(), { class: "ghost shut" }),
      about,
    );
    const show = (place, hit) => {
      Object.assign(image, { src: `${hit.thumbnail}?size=${LARGE}`, alt: titleOf(hit) });
      this.moved(place, hit);
    };
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") step(1);
      else if (event.key === "ArrowLeft") step(-1);
      else this.key(event);
    });
    const view = { close: () => dialog.close() };
    dialog.addEventListener("close", () => {
      dialog.remove();
      this.closed(view);
    });
    this.panel(about);
    this.refresh = () => {};
    document.body.append(dialog);
    dialog.showModal();
    show(at, this.hit(at));
    return view;
  }

  // What is known of a picture.

  panel(element) {
    this.place = element;
    element.classList.add("about");
  }

  describe(hit) {
    if (!this.place || !hit) return;
    const facts = [
      ["Taken", dateOf(hit.taken)],
      ["Size", hit.width ? `${hit.width} × ${hit.height}` : ""],
      ...Object.entries(hit.metadata ?? {})
        .filter(([name, value]) => !HIDDEN.has(name) && value !== null && (Array.isArray(value) || typeof value !== "object"))
        .map(([name, value]) => [name, [value].flat().join(", ")]),
      ["File", hit.path],
    ].filter(([, value]) => value);
    const scores = Object.entries(hit.scores ?? {});
    const act = (name, text, onclick) => make("button", { type: "button", onclick }, icon(name), make("span", { text }));
    const same = hit.duplicates ?? [];
    this.place.replaceChildren(
      make("div", { class: "caption" },
        make("strong", { text: titleOf(hit) }),
        make("span", { text: dateOf(hit.taken) }),
        make("span", { class: "levels", text: scores.map(([level, score]) => `${level} ${score.toFixed(3)}`).join("   ") })),
      make("div", { class: "acts" },
        act("more", "More like this", () => this.leave(() => this.face.more(hit))),
        act("less", "Less like this", () => this.leave(() => this.face.less(hit))),
        make("a", { href: hit.original, download: fileName(hit.path), text: "Download" }),
        make("button", { type: "button", class: "facts-toggle", "aria-expanded": this.details, text: "Details", onclick: () => this.toggle() })),
      make("div", { class: "facts", hidden: !this.details, tabindex: 0, role: "region", "aria-label": "Details" },
        make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })))),
        same.length > 0 && make("div", {}, make("h3", { text: `${same.length} like it` }),
          make("ul", {}, ...same.map(({ id, path }) => make("li", {},
            make("img", { src: this.app.service.thumbnail(id, 160), alt: "", loading: "lazy" }), make("span", { text: fileName(path) })))))),
    );
  }

  toggle() {
    this.details = !this.details;
    this.describe(this.current);
    this.place.classList.toggle("with-facts", this.details);
    this.refresh();
    this.place.querySelector(".facts-toggle").focus();
  }

  leave(then) {
    this.close();
    then();
  }

  key(event) {
    if (event.key === "m") this.leave(() => this.face.more(this.hit(this.at)));
    else if (event.key === "l") this.leave(() => this.face.less(this.hit(this.at)));
    else if (event.key === "i") this.toggle();
  }
}
