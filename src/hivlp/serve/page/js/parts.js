// Parts from the npm registry, which the wheel has where npm was there when it was built; without them the page is plainer.

const place = (file) => new URL(`../vendor/${file}`, import.meta.url).href;
const listed = fetch(place("parts.json"))
  .then((response) => (response.ok ? response.json() : {}))
  .catch(() => ({}));

/** A part's module, or null where this installation lacks it. */
export async function part(name) {
  const { [name]: files } = await listed;
  if (!files) return null;
  for (const file of files.filter((each) => each.endsWith(".css"))) {
    if (document.querySelector(`link[href="${place(file)}"]`)) continue;
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: place(file) });
    document.head.append(link);
    await new Promise((done) => (link.onload = link.onerror = done));
  }
  return import(place(files.find((each) => each.endsWith(".js")))).catch(() => null);
}
