// What every page does: the theme, and whether the link to the server is alive.
import { byId } from "./dom.js";

const THEMES = ["auto", "dark", "light"];
const LINKS = { live: "Live", connecting: "Reconnecting …", lost: "Not connected" };

function showTheme() {
  byId("theme-name").textContent = document.documentElement.dataset.theme ?? "auto";
}

byId("theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  localStorage.setItem("theme", next);
  showTheme();
  dispatchEvent(new Event("themechange"));
});
showTheme();

export function showLink(state) {
  const place = byId("link-state");
  if (!place || place.dataset.link === state) return;
  place.dataset.link = state;
  place.textContent = LINKS[state];
}

export function problemBox(error) {
  const box = document.createElement("div");
  box.className = "empty-box";
  const title = document.createElement("h2"), text = document.createElement("p");
  title.textContent = error.status === 404 ? "There is nothing here" : "This could not be read";
  text.textContent = error.message;
  box.append(title, text);
  return box;
}
