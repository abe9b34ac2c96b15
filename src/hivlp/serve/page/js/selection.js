// What to do with the pictures that are selected.

import { count, fileName, iconButton, make, pictures, toast } from "./dom.js";
import { MOST_BYTES, Zip } from "./zip.js";

const AT_ONCE = 4;

export class Selection {
  constructor(root, grid, face) {
    Object.assign(this, { root, grid, face });
  }

  show() {
    const { picked } = this.grid;
    if (this.working) return;
    this.root.hidden = picked.size === 0;
    if (!picked.size) return;
    const act = (text, onclick) => make("button", { type: "button", text, onclick });
    this.root.replaceChildren(
      make("span", { class: "count", text: `${count(picked.size)} selected` }),
      act("Download zip", () => this.zip()),
      act(picked.size > 1 ? "Download files" : "Download", () => this.files()),
      act("Copy paths", () => this.copy()),
      act("More like these", () => this.face.more([...picked.values()])),
      iconButton("close", "Clear the selection", () => this.grid.clear(), { class: "ghost" }),
    );
  }

  async zip() {
    const hits = [...this.grid.picked.values()];
    const own = new AbortController();
    const bar = make("progress", { max: hits.length, value: 0, "aria-label": "Pictures packed" });
    const text = make("span", { class: "count", text: `0 of ${count(hits.length)}` });
    this.working = true;
    this.root.replaceChildren(text, bar, make("button", { type: "button", text: "Cancel", onclick: () => own.abort() }));
    try {
      const zip = new Zip();
      const waiting = [];
      for (let place = 0; place < hits.length; place += 1) {
        for (let ahead = waiting.length; ahead < Math.min(hits.length, place + AT_ONCE); ahead += 1) {
          waiting.push(original(hits[ahead], own.signal));
          waiting[ahead].catch(() => {}); // it is looked at in its turn
        }
        zip.add(fileName(hits[place].path), await waiting[place]);
        waiting[place] = null;
        bar.value = place + 1;
        text.textContent = `${count(place + 1)} of ${count(hits.length)}`;
      }
      save(URL.createObjectURL(zip.blob()), "pictures.zip", true);
      toast(`${pictures(hits.length)} packed.`);
    } catch (error) {
      own.abort();
      if (error instanceof RangeError) toast(`More than ${Math.round(MOST_BYTES / 1e9)} GB: download the files one by one.`);
      else if (error.name !== "AbortError") toast(error.message);
    } finally {
      this.working = false;
      this.show();
    }
  }

  async files() {
    for (const hit of [...this.grid.picked.values()]) {
      save(hit.original, fileName(hit.path));
      await new Promise((done) => setTimeout(done, 250)); // browsers drop what comes all at once
    }
  }

  async copy() {
    const paths = [...this.grid.picked.values()].map((hit) => hit.path).join("\n");
    try {
      await navigator.clipboard.writeText(paths);
      toast(this.grid.picked.size === 1 ? "Path copied." : `${count(this.grid.picked.size)} paths copied.`);
    } catch {
      // Without https, elsewhere than on this machine, browsers offer no clipboard.
      save(URL.createObjectURL(new Blob([paths], { type: "text/plain" })), "paths.txt", true);
    }
  }
}

async function original(hit, signal) {
  const response = await fetch(hit.original, { signal });
  if (!response.ok) throw new Error(`${fileName(hit.path)} cannot be read.`);
  return new Uint8Array(await response.arrayBuffer());
}

function save(address, name, own = false) {
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  if (own) setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
