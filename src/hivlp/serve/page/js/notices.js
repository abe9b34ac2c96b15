// What stands where pictures would: nothing yet, nothing found, something wrong.

import { $, make } from "./dom.js";
import { isSearch } from "./query.js";

function show(title, text, ...actions) {
  const place = $("notice");
  place.replaceChildren(make("h1", { text: title }), make("p", { text }), make("div", { class: "actions" }, ...actions));
  place.hidden = false;
}

const action = (text, onclick) => make("button", { type: "button", class: "quiet", text, onclick });

export const notices = {
  /** An answer without hits: an empty collection, or too narrow a question. */
  nothing(app, { reset, filters, add }) {
    const { asked, about } = app;
    const narrowed = Object.keys(asked.where).length > 0 || asked.after || asked.before;
    if (narrowed) {
      show("Nothing matches", "No picture meets these filters.", action("Remove the filters", filters), action("Show everything", reset));
    } else if (isSearch(asked) && about?.items) {
      show("Nothing found", "Try other words, or a picture.", action("Show everything", reset));
    } else {
      const how = about?.writable ? "Add a folder or drop pictures, and they can be found by what they show." : "This collection has no pictures.";
      show("Nothing here yet", how, about?.writable && action("Add pictures", add));
    }
  },

  failed(error, again) {
    const title = error.status === 401 ? "A token is needed" : error.status ? "That did not work" : "Out of reach";
    show(title, error.message, error.status !== 401 && action("Try again", again));
  },
};
