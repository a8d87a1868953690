// The report: draws its figures, and switches between points of the front.
import { draw } from "./plots.js";

{
  const data = JSON.parse(document.getElementById("report-data").textContent);

  function show(name) {
    const place = document.getElementById(`figure-${name}`), figure = data.figures[name];
    if (place && figure) draw(place, figure, data.config);
  }

  function drawAll() {
    for (const name of Object.keys(data.figures)) show(name);
  }

  const factors = (point, i) => (point.ranks[i] ? `, two factors of rank ${point.ranks[i]}` : "");

  function fillTable(point) {
    const body = document.querySelector("#layer-table tbody");
    if (!body) return;
    body.replaceChildren(...data.layers.map((layer, i) => {
      const row = document.createElement("tr");
      const removed = layer.channels ? 100 * (1 - point.kept[i] / layer.channels) : 0;
      const cells = [layer.name, layer.kind, layer.group, layer.channels, point.kept[i], `${removed.toFixed(0)}%`, point.bits[i] || "–", [factors(point, i).slice(2), layer.skip && `left as it is: ${layer.skip}`].filter(Boolean).join("; ")];
      cells.forEach((text, column) => {
        const cell = document.createElement(column === 0 ? "th" : "td");
        if (column === 0) cell.scope = "row";
        if (column < 3 || column === 7) cell.className = "text";
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    }));
  }

  function fillFigure(point) {
    const figure = data.figures.layers;
    if (!figure) return;
    const removed = data.layers.map((layer, i) => (layer.channels ? 100 * (1 - point.kept[i] / layer.channels) : 0));
    const [share, bits] = figure.data;
    const hover = data.layers.map((layer, i) => {
      const name = layer.name.replaceAll("<", "&lt;"), why = layer.skip.replaceAll("<", "&lt;");
      if (point.blocks[i]) return `${name}: removed with its block ${point.blocks[i].replaceAll("<", "&lt;")}`;
      const text = `${name}: ${point.kept[i]} of ${layer.channels} channels kept, ${point.bits[i]} bits${factors(point, i)}`;
      return why ? `${text}<br>left as it is: ${why}` : text;
    });
    figure.data = [
      { ...share, x: removed, text: removed.map((r) => (r ? `${r.toFixed(0)} %` : "")), hovertext: hover, marker: { color: point.blocks.map((b) => data.share_colors[b ? "gone" : "kept"]) } },
      { ...bits, x: point.bits, text: point.bits.map((b) => (b ? String(b) : "")), hovertext: hover, marker: { color: point.bits.map((b) => data.bit_colors[b] || data.share_colors.gone) } },
    ];
    show("layers");
  }

  function choose(trial) {
    for (const box of document.querySelectorAll("[data-plan]")) box.hidden = Number(box.dataset.plan) !== trial;
    const point = data.points.find((p) => p.trial === trial);
    if (!point) return;
    fillTable(point);
    fillFigure(point);
  }

  drawAll();
  const select = document.getElementById("point-select");
  if (select) {
    choose(Number(select.value));
    select.addEventListener("change", () => choose(Number(select.value)));
    for (const button of document.querySelectorAll(".pick")) {
      button.addEventListener("click", () => {
        select.value = button.dataset.trial;
        choose(Number(select.value));
        document.getElementById("point").scrollIntoView({ behavior: "smooth" });
      });
    }
  }
}
