// Thousands of points behind a plotly figure, on one canvas. Plotly's own fast scatter compiles code from text, which
// the security policy of these pages forbids; its SVG scatter takes seconds for ten thousand points, this a few ms.

const NEAR_PX = 7;
const clouds = new WeakMap(); // element -> { canvas, tip, traces, spots, sheet }

// Points that the axes have to make room for; drawn by plotly, seen by nobody.
export function corners(traces) {
  return traces.filter((trace) => trace.x.length).map((trace) => {
    const x = [extreme(trace.x, Math.min), extreme(trace.x, Math.max)];
    return { type: "scatter", mode: "markers", x, y: [trace.y[0], trace.y[0]], yaxis: trace.yaxis, opacity: 0, hoverinfo: "skip", showlegend: false };
  });
}

const extreme = (values, of) => values.reduce((a, b) => of(a, b));

// Shows these traces behind the figure in `place`; an empty list takes the canvas away. Where their points lie is known
// already if only their opacity is new.
export function cloud(place, traces) {
  let own = clouds.get(place);
  if (!own && !traces.length) return;
  if (!own) own = attach(place);
  const known = traces.length === own.spots.length && traces.every((trace, i) => trace.x === own.traces[i].x);
  own.traces = traces;
  if (known) press(own);
  else paint(place, own);
}

function attach(place) {
  const canvas = document.createElement("canvas"), tip = document.createElement("div");
  canvas.className = "cloud";
  canvas.setAttribute("aria-hidden", "true"); // the table of all trials says the same
  tip.className = "cloud-tip";
  tip.hidden = true;
  const own = { canvas, tip, traces: [], spots: [], sheet: null };
  clouds.set(place, own);
  for (const event of ["plotly_afterplot", "plotly_relayouting"]) place.on(event, () => paint(place, own));
  place.addEventListener("pointermove", (event) => requestAnimationFrame(() => point(place, own, event)));
  place.addEventListener("pointerleave", () => { tip.hidden = true; });
  let down = null;
  place.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; }, true);
  addEventListener("pointerup", (event) => {
    const still = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4;
    down = null;
    const found = still && !named(place) && nearest(own, event);
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
  own.canvas.width = Math.round(width * scale);
  own.canvas.height = Math.round(height * scale);
  own.canvas.style.width = `${width}px`;
  own.sheet = new ImageData(own.canvas.width, own.canvas.height);
  own.spots = own.traces.map((trace) => spotsOf(trace, layout, scale, own.sheet.width));
  press(own);
}

// The points of a trace within its axes: which they are, where they lie in the figure (pixels of the page, and the byte
// of the sheet), and the mark that stands for each.
function spotsOf(trace, layout, scale, width) {
  const x = layout.xaxis, y = trace.yaxis === "y2" ? layout.yaxis2 : layout.yaxis;
  const area = [x._offset, y._offset, x._length, y._length], which = [], left = [], top = [], bytes = [];
  for (let i = 0; i < trace.x.length; i += 1) {
    const across = x.d2p(trace.x[i]), down = y.d2p(trace.y[i]);
    if (!(across >= 0 && across <= x._length && down >= 0 && down <= y._length)) continue;
    which.push(i);
    left.push(across + x._offset);
    top.push(down + y._offset);
    bytes.push(4 * (Math.floor((down + y._offset) * scale) * width + Math.floor((across + x._offset) * scale)));
  }
  return { area: area.map((pixels) => pixels * scale), which, left, top, bytes, stamp: stampOf(trace.marker, scale, width) };
}

// All traces into one buffer, one over the other, and that onto the canvas: nothing hangs over the axes.
function press({ canvas, sheet, traces, spots }) {
  sheet.data.fill(0);
  spots.forEach((spot, i) => strew(sheet.data, traces[i].marker, spot));
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const area of new Map(spots.map((spot) => [spot.area.join(), spot.area])).values()) pen.putImageData(sheet, 0, 0, ...area);
}

// Drawn as paths, ten thousand points take five times as long.
function strew(data, marker, { which, bytes, stamp: { steps, inks } }) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(marker.color.slice(at, at + 2), 16));
  const opacities = Array.isArray(marker.opacity) ? marker.opacity : null, same = marker.opacity ?? 1;
  for (let i = 0; i < which.length; i += 1) {
    const opacity = opacities ? opacities[which[i]] : same;
    for (let k = 0; k < steps.length; k += 1) {
      const at = bytes[i] + steps[k], ink = inks[k] * opacity, sum = ink + data[at + 3] * (1 - ink / 255), share = ink / sum;
      data[at] += (red - data[at]) * share;
      data[at + 1] += (green - data[at + 1]) * share;
      data[at + 2] += (blue - data[at + 2]) * share;
      data[at + 3] = sum;
    }
  }
}

// A mark as the browser draws it, around the middle of a pixel: ink of 0 to 255, and how far from the middle it lies in
// the bytes of a sheet that is `width` pixels wide.
function stampOf(marker, scale, width) {
  const half = Math.ceil((marker.size * scale) / 2) + 1, side = 2 * half + 1;
  const pen = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  pen.translate(half + 0.5, half + 0.5);
  pen.scale(scale, scale);
  mark(pen, marker.symbol, marker.size / 2);
  const steps = [], inks = [];
  pen.getImageData(0, 0, side, side).data.forEach((ink, at) => {
    if (at % 4 !== 3 || !ink) return;
    const pixel = at >> 2;
    steps.push(4 * ((Math.floor(pixel / side) - half) * width + (pixel % side) - half));
    inks.push(ink);
  });
  return { steps, inks };
}

function mark(pen, symbol, half) {
  if (symbol === "line-ns") { pen.fillRect(-0.5, -half, 1, 2 * half); return; }
  pen.beginPath();
  if (symbol === "x-thin") {
    pen.moveTo(-half, -half); pen.lineTo(half, half);
    pen.moveTo(half, -half); pen.lineTo(-half, half);
    pen.stroke();
  } else if (symbol === "square") pen.fillRect(-half, -half, 2 * half, 2 * half);
  else { pen.arc(0, 0, half, 0, 2 * Math.PI); pen.fill(); }
}

function nearest(own, event) {
  const box = own.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = null, distance = NEAR_PX;
  own.spots.forEach(({ which, left, top }, k) => {
    for (let i = 0; i < which.length; i += 1) {
      const far = Math.hypot(left[i] - x, top[i] - y);
      if (far < distance) { best = { left: left[i], top: top[i], trial: own.traces[k].customdata[which[i]], name: own.traces[k].name }; distance = far; }
    }
  });
  return best;
}

// What plotly drew lies before the crowd, and it says itself what is under the pointer.
const named = (place) => place.querySelector(".hoverlayer .hovertext") !== null;

function point(place, own, event) {
  const found = event.pointerType === "touch" || named(place) ? null : nearest(own, event);
  own.tip.hidden = !found;
  if (!found) return;
  own.tip.textContent = `trial ${found.trial}, ${found.name}`;
  own.tip.style.left = `${found.left + 14}px`;
  own.tip.style.top = `${found.top + 6}px`;
}
