// Small pieces that every page is made of: elements, messages, tables of a figure.

// h("a", { href: "/", class: "x" }, "text", child): text is always text, never markup.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function fill(id, ...children) {
  const place = typeof id === "string" ? byId(id) : id;
  place.replaceChildren(...children.flat().filter(Boolean));
  place.removeAttribute("aria-busy");
  return place;
}

// The same, but only when `key` has changed: what the reader has opened or scrolled stays as it is.
export function refill(id, key, make) {
  const place = byId(id), text = JSON.stringify(key);
  if (place.dataset.key === text) return;
  place.dataset.key = text;
  fill(place, ...make());
}

// Does what replaces elements, and gives the focus back to the one with the same `data-focus`.
export function keepingFocus(work) {
  const mark = document.activeElement?.dataset?.focus;
  work();
  if (!mark) return;
  const same = [...document.querySelectorAll("[data-focus]")].find((element) => element.dataset.focus === mark);
  if (same && same !== document.activeElement) same.focus({ preventScroll: true });
}

// Says something to a screen reader, without moving the focus.
export function announce(text) {
  byId("announcer").textContent = text;
}

export function notice(text, kind = "note") {
  const place = byId("notice");
  place.replaceChildren(...(Array.isArray(text) ? text : [text]));
  place.className = `notice notice-${kind}`;
  place.hidden = false;
}

export function emptyBox(title, ...body) {
  return h("div", { class: "empty-box" }, h("h2", {}, title), h("p", {}, ...body));
}

// A table of plain rows. columns: [title, cell(row) -> text or node, class]; the first column names the row.
export function table(columns, rows, { caption, label } = {}) {
  const head = h("tr", {}, columns.map(([title, , kind]) => h("th", { scope: "col", class: kind ?? "" }, title)));
  const body = rows.map((row) => h("tr", { class: row.rowClass ?? "" }, columns.map(([, cell, kind], i) => (
    h(i === 0 ? "th" : "td", i === 0 ? { scope: "row", class: kind ?? "" } : { class: kind ?? "" }, cell(row))))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label ?? caption ?? "Table" },
    h("table", { class: "numbers" }, caption ? h("caption", {}, caption) : null, h("thead", {}, head), h("tbody", {}, body)));
}

// Runs `work` while a button shows that it does; what goes wrong is told in the notice of the page.
export async function busy(button, work) {
  const label = button.textContent;
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    notice(error.message, "error");
    return undefined;
  } finally {
    button.disabled = false;
    button.textContent = label;
  }
}

// Asks before what cannot be taken back for good; resolves with whether to do it. The keyboard's Escape means no.
export function ask(title, text, yes) {
  return new Promise((resolve) => {
    const answer = (value) => () => dialog.close(value);
    const dialog = h("dialog", { class: "panel ask", "aria-labelledby": "ask-title", onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      h("h2", { id: "ask-title" }, title), h("p", {}, text),
      h("p", { class: "actions" }, h("button", { type: "button", class: "secondary", onclick: answer("no") }, "Keep it"), h("button", { type: "button", class: "danger", onclick: answer("yes") }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A button for what ends something that runs: the first press asks, the second does it.
export function confirmed(label, question, work, attributes = {}) {
  let armed = 0;
  const button = h("button", { type: "button", class: "secondary", ...attributes, onclick: async () => {
    if (Date.now() - armed > 5000) {
      armed = Date.now();
      button.textContent = question;
      setTimeout(() => { if (Date.now() - armed >= 5000) button.textContent = label; }, 5100);
      return;
    }
    armed = 0;
    button.textContent = label;
    await busy(button, work);
  } }, label);
  return button;
}
