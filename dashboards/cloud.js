// Thousands of points behind a plotly figure, on one canvas. Plotly's own fast scatter compiles code from text, which
// the security policy of these pages forbids; its SVG scatter takes seconds for ten thousand points, this a few ms.

const NEAR_PX = 7;
const clouds = new WeakMap(); // element -> { canvas, tip, traces, at }

// Points that the axes have to make room for; drawn by plotly, seen by nobody.
export function corners(traces) {
  return traces.filter((trace) => trace.x.length).map((trace) => {
    const x = [extreme(trace.x, Math.min), extreme(trace.x, Math.max)];
    return { type: "scatter", mode: "markers", x, y: [trace.y[0], trace.y[0]], yaxis: trace.yaxis, opacity: 0, hoverinfo: "skip", showlegend: false };
  });
}

const extreme = (values, of) => values.reduce((a, b) => of(a, b));

// Shows these traces behind the figure in `place`; an empty list takes the canvas away.
export function cloud(place, traces) {
  let own = clouds.get(place);
  if (!own && !traces.length) return;
  if (!own) own = attach(place);
  own.traces = traces;
  paint(place, own);
}

function attach(place) {
  const canvas = document.createElement("canvas"), tip = document.createElement("div");
  canvas.className = "cloud";
  canvas.setAttribute("aria-hidden", "true"); // the table of all trials says the same
  tip.className = "cloud-tip";
  tip.hidden = true;
  const own = { canvas, tip, traces: [], at: [] };
  clouds.set(place, own);
  for (const event of ["plotly_afterplot", "plotly_relayouting"]) place.on(event, () => paint(place, own));
  place.addEventListener("pointermove", (event) => requestAnimationFrame(() => point(place, own, event)));
  place.addEventListener("pointerleave", () => { tip.hidden = true; });
  let down = null;
  place.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; }, true);
  addEventListener("pointerup", (event) => {
    const still = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4;
    down = null;
    const found = still && nearest(place, own, event);
    if (found) place.dispatchEvent(new CustomEvent("cloudclick", { detail: found.trial }));
  }, true);
  return own;
}

function paint(place, own) {
  const box = place.querySelector(".svg-container"), layout = place._fullLayout;
  if (!box || !layout) return;
  if (own.canvas.parentElement !== box) box.prepend(own.canvas);
  if (own.tip.parentElement !== place) place.append(own.tip);
  const scale = devicePixelRatio || 1, { width, height } = layout;
  own.canvas.width = width * scale;
  own.canvas.height = height * scale;
  own.canvas.style.width = `${width}px`;
  own.canvas.style.height = `${height}px`;
  const pen = own.canvas.getContext("2d");
  pen.scale(scale, scale);
  own.at = own.traces.flatMap((trace) => strew(pen, trace, layout));
}

// Draws one trace and returns where its points came to lie.
function strew(pen, trace, layout) {
  const x = layout.xaxis, y = trace.yaxis === "y2" ? layout.yaxis2 : layout.yaxis;
  const { marker } = trace, size = marker.size, at = [];
  pen.save();
  pen.beginPath();
  pen.rect(x._offset, y._offset, x._length, y._length);
  pen.clip();
  pen.fillStyle = marker.color;
  pen.strokeStyle = marker.color;
  for (let i = 0; i < trace.x.length; i += 1) {
    const left = x._offset + x.d2p(trace.x[i]), top = y._offset + y.d2p(trace.y[i]);
    if (left < x._offset || left > x._offset + x._length || top < y._offset || top > y._offset + y._length) continue;
    pen.globalAlpha = Array.isArray(marker.opacity) ? marker.opacity[i] : marker.opacity ?? 1;
    mark(pen, marker.symbol, left, top, size);
    at.push({ left, top, trial: trace.customdata[i], name: trace.name });
  }
  pen.restore();
  return at;
}

function mark(pen, symbol, left, top, size) {
  const half = size / 2;
  if (symbol === "line-ns") { pen.fillRect(left - 0.5, top - half, 1, size); return; }
  pen.beginPath();
  if (symbol === "x-thin") {
    pen.moveTo(left - half, top - half); pen.lineTo(left + half, top + half);
    pen.moveTo(left + half, top - half); pen.lineTo(left - half, top + half);
    pen.stroke();
  } else if (symbol === "square") pen.fillRect(left - half, top - half, size, size);
  else { pen.arc(left, top, half, 0, 2 * Math.PI); pen.fill(); }
}

function nearest(place, own, event) {
  const box = own.canvas.getBoundingClientRect(), left = event.clientX - box.left, top = event.clientY - box.top;
  let best = null, distance = NEAR_PX;
  for (const one of own.at) {
    const far = Math.hypot(one.left - left, one.top - top);
    if (far < distance) { best = one; distance = far; }
  }
  return best;
}

function point(place, own, event) {
  const found = event.pointerType === "touch" ? null : nearest(place, own, event);
  own.tip.hidden = !found;
  if (!found) return;
  own.tip.textContent = `trial ${found.trial}, ${found.name}`;
  own.tip.style.left = `${found.left + 14}px`;
  own.tip.style.top = `${found.top + 6}px`;
}
