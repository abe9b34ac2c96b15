// Parts from the npm registry, which the wheel has where npm was there when it was built; without them the page is plainer.

const listed = fetch("/static/vendor/parts.json")
  .then((response) => (response.ok ? response.json() : {}))
  .catch(() => ({}));

/** A part's module, or null where this installation lacks it. */
export async function part(name) {
  const { [name]: files } = await listed;
  if (!files) return null;
  for (const file of files.filter((each) => each.endsWith(".css"))) {
    if (document.querySelector(`link[href="/static/vendor/${file}"]`)) continue;
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: `/static/vendor/${file}` });
    document.head.append(link);
    await new Promise((done) => (link.onload = link.onerror = done));
  }
  return import(`/static/vendor/${files.find((each) => each.endsWith(".js"))}`).catch(() => null);
}
