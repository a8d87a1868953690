// The table of all trials: filtered, sorted and cut into pages, so that ten thousand are as quick as ten.
import { h, announce, keepingFocus } from "./dom.js";
import { broken, sorted } from "./facts.js";
import * as format from "./format.js";

const PAGE = 25;
const SHOWN = {
  front: ["The front", (row) => row.on_front],
  kept: ["Within the limits", (row, kept) => row.val !== null && (!kept || kept.has(row.trial))],
  measured: ["Measured to the end", (row) => row.val !== null && row.state === "complete"],
  all: ["All", () => true],
  stopped: ["Stopped early", (row) => row.state === "stopped"],
  infeasible: ["Infeasible", (row) => row.state === "infeasible"],
  failed: ["Failed", (row) => row.state === "failed"],
};
const OVER = { maxDrop: "loses too much", maxSize: "too large", maxLatency: "too slow" };

export class TrialTable {
  constructor(place, study) {
    this.place = place;
    this.study = study;
    this.rows = [];
    this.filter = "front";
    this.sort = { key: "size_bytes", descending: false };
    this.page = 0;
    this.turned = null; // the button that turned the page last
    this.build();
  }

  // points: of the server; kept: the trials within the limits, or null; chosen: the best of them.
  update({ points, rows, limits, kept, split, chosen }) {
    Object.assign(this, { points, rows, limits, kept, split, chosen });
    this.origins.replaceChildren(...Object.entries(points.origins).flatMap(([name, text], i) => [i ? "; " : "", h("b", {}, name), `, ${text}`]), ".");
    this.render();
  }

  build() {
    this.select = h("select", { id: "trials-shown", onchange: () => { this.filter = this.select.value; this.turned = null; this.turn(0); } },
      Object.entries(SHOWN).map(([value, [label]]) => h("option", { value }, label)));
    this.count = h("span", { class: "count", role: "status" });
    this.previous = h("button", { type: "button", class: "secondary", onclick: () => { this.turned = this.previous; this.turn(this.page - 1); } }, "Previous");
    this.next = h("button", { type: "button", class: "secondary", onclick: () => { this.turned = this.next; this.turn(this.page + 1); } }, "Next");
    this.head = h("tr");
    this.body = h("tbody");
    this.origins = h("p", { class: "note" });
    this.place.replaceChildren(
      h("div", { class: "bar" }, h("label", {}, "Show ", this.select), h("span", { class: "pager" }, this.count, this.previous, this.next)),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of all trials" },
        h("table", { class: "numbers trials" }, h("thead", {}, this.head), this.body)),
      this.origins);
  }

  columns() {
    const { metric_name: name, is_share: isShare, direction } = this.points;
    const title = format.capital(name);
    const interval = (low, high, text) => (low === null ? null : h("small", {}, `${text(low)} to ${text(high)}`));
    const metric = (value) => format.metric(value, isShare);
    return [
      ["Trial", "trial", (row) => h("a", { href: `/studies/${this.study}/trials/${row.trial}`, "data-focus": `trial ${row.trial}` }, String(row.trial))],
      ["State", "state", (row) => this.state(row), "text"],
      [`${title}, validation`, "val", (row) => [metric(row.val), interval(row.val_low, row.val_high, metric)]],
      [`${title}, test`, "test", (row) => metric(row.test)],
      ["Lost", "drop", (row) => format.drop(row.drop, direction)],
      ["File", "size_bytes", (row) => format.bytes(row.size_bytes)],
      ["Latency", "latency_ms", (row) => [format.ms(row.latency_ms), row.origin === "cascade" && row.latency_ms !== null ? h("small", {}, "mean over samples") : null]],
      ["Ratio to dense, 95 % interval", "ratio", (row) => [row.ratio === null ? "–" : row.ratio.toFixed(3), interval(row.ratio_low, row.ratio_high, (v) => v.toFixed(3))]],
      ["Budget spent", "spent_s", (row) => format.duration(row.spent_s)],
    ];
  }

  state(row) {
    const tags = [];
    if (row.trial === this.chosen?.trial) tags.push(h("span", { class: "tag" }, "best that remains"));
    else if (row.on_front) tags.push(h("span", { class: "tag tag-front" }, "front"));
    if (this.kept && row.val !== null && !this.kept.has(row.trial)) {
      tags.push(h("span", { class: "tag tag-lossy" }, broken(row, this.limits, this.split).map((name) => OVER[name]).join(", ")));
    }
    const word = row.state === "complete" ? row.origin : row.state;
    return [word, ...tags.flatMap((tag) => [" ", tag])];
  }

  turn(page) {
    this.page = page;
    this.render();
    // A button that is disabled under the reader's fingers loses the focus: its neighbour takes it.
    if (this.next.disabled && this.turned === this.next) this.previous.focus();
    if (this.previous.disabled && this.turned === this.previous) this.next.focus();
    announce(this.count.textContent);
  }

  order(key) {
    this.sort = { key, descending: this.sort.key === key ? !this.sort.descending : false };
    this.turned = null;
    this.turn(0);
  }

  render() {
    keepingFocus(() => this.replace());
  }

  replace() {
    const [, shows] = SHOWN[this.filter];
    const found = sorted(this.rows.filter((row) => shows(row, this.kept)), this.sort.key, this.sort.descending);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const start = this.page * PAGE, page = found.slice(start, start + PAGE);
    const columns = this.columns();
    this.head.replaceChildren(...columns.map(([title, key, , kind]) => {
      const isSorted = this.sort.key === key;
      return h("th", { scope: "col", class: kind ?? "", "aria-sort": isSorted ? (this.sort.descending ? "descending" : "ascending") : null },
        h("button", { type: "button", class: "sort", "data-key": key, "data-focus": `sort ${key}`, onclick: () => this.order(key) }, title, isSorted ? (this.sort.descending ? " ↓" : " ↑") : ""));
    }));
    this.body.replaceChildren(...page.map((row) => this.line(row, columns)));
    if (!page.length) this.body.append(h("tr", {}, h("td", { colSpan: columns.length, class: "text none" }, "No trial of this kind.")));
    this.count.textContent = found.length ? `${(start + 1).toLocaleString("en")} to ${(start + page.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "none";
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
  }

  line(row, columns) {
    const isOut = this.kept && row.val !== null && !this.kept.has(row.trial);
    const kind = row.trial === this.chosen?.trial ? "is-knee" : isOut || row.state !== "complete" ? "is-lossy" : "";
    return h("tr", { class: kind, "data-trial": String(row.trial) }, columns.map(([, , cell, css], i) => (
      i === 0 ? h("th", { scope: "row" }, cell(row)) : h("td", { class: css ?? "" }, cell(row)))));
  }
}
