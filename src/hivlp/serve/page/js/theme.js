// Light, dark, or as the system has it; the choice is kept in this browser.

const NEXT = { "": "dark", dark: "light", light: "" };
const SAID = { "": "Theme: as the system", dark: "Theme: dark", light: "Theme: light" };

export function followTheme(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.title = SAID[theme];
    button.setAttribute("aria-label", SAID[theme]);
    dispatchEvent(new Event("themechange"));
  };
  let theme = "";
  try {
    theme = localStorage.getItem("theme") ?? "";
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
  show(theme in NEXT ? theme : "");
  button.addEventListener("click", () => {
    theme = NEXT[document.documentElement.dataset.theme];
    show(theme);
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // As above.
    }
  });
}
