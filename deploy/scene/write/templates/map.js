"use strict";
const scene = JSON.parse(document.getElementById("scene").textContent);
const picture = document.getElementById("picture");
const canvas = document.querySelector("canvas");
const context = canvas.getContext("2d");
const byId = (id) => document.getElementById(id);
const total = scene.scores.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const hidden = new Set();
let minScore = scene.min_score, shown = [], hovered = -1, pinned = -1;
let zoom = 1, left = 0, top_ = 0, fitZoom = 1; // scene pixel (x, y) is at ((x - left) * zoom, (y - top_) * zoom)

function formatNumber(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function element(tag, options, ...inner) {
  const created = Object.assign(document.createElement(tag), options || {});
  created.append(...inner);
  return created;
}

function classMark(label) {
  const created = element("i", { className: "mark" });
  created.style.setProperty("--of-class", scene.classes[label].color);
  return created;
}

function filter() {
  shown = [];
  const counts = scene.classes.map(() => 0);
  for (let i = 0; i < total; i++) {
    if (scene.scores[i] < minScore) break; // best first
    counts[scene.labels[i]]++;
    if (!hidden.has(scene.labels[i])) shown.push(i);
  }
  byId("count").textContent = shown.length === total
    ? (total === 1 ? "1 object" : `${formatNumber(total, 0)} objects`) : `${formatNumber(shown.length, 0)} of ${formatNumber(total, 0)} objects`;
  byId("value").textContent = minScore.toFixed(2);
  byId("score").value = minScore;
  scene.classes.forEach((_, label) => {
    const row = byId(`class-${label}`);
    row.checked = !hidden.has(label);
    row.parentElement.lastChild.textContent = formatNumber(counts[label], 0);
  });
  byId("all").textContent = hidden.size ? "Show all" : "Hide all";
  if (pinned >= 0 && !shown.includes(pinned)) pinned = -1;
  const maxListed = 100;
  byId("list").replaceChildren(...shown.slice(0, maxListed).map((i) => {
    const go = element("button", { type: "button", onclick: () => goTo(i) }, classMark(scene.labels[i]),
      element("span", { textContent: scene.classes[scene.labels[i]].name }),
      element("span", { className: "number", textContent: scene.scores[i].toFixed(2) }));
    go.dataset.object = i;
    return element("li", {}, go);
  }));
  byId("more").textContent = shown.length > maxListed ? `and ${formatNumber(shown.length - maxListed, 0)} more on the map` : "";
  byId("nothing").hidden = shown.length > 0;
  byId("nothing").textContent = total ? "No object matches the filters." : "No object was detected in this scene.";
  saveView();
  showTooltip();
  draw();
}

function saveView() {
  const facts = [];
  if (minScore > scene.min_score) facts.push(`score=${minScore.toFixed(2)}`);
  if (hidden.size) facts.push(`hide=${[...hidden].sort((a, b) => a - b).join(",")}`);
  if (pinned >= 0) facts.push(`object=${pinned}`);
  history.replaceState(null, "", facts.length ? `#${facts.join("&")}` : location.pathname + location.search);
}

function loadView() {
  const facts = new URLSearchParams(location.hash.slice(1));
  const score = Number(facts.get("score"));
  if (score > minScore && score <= 1) minScore = score;
  (facts.get("hide") || "").split(",").filter(Boolean).map(Number).forEach((label) => scene.classes[label] && hidden.add(label));
  const object = facts.has("object") ? Number(facts.get("object")) : -1;
  return Number.isInteger(object) && object < total ? object : -1;
}

function freeArea() { // the part of the window beside the panel
  const panel = byId("panel").getBoundingClientRect();
  return innerWidth <= 720
    ? { x: 0, y: 0, width: innerWidth, height: Math.max(120, panel.top) }
    : { x: panel.right, y: 0, width: innerWidth - panel.right, height: innerHeight };
}

function fit() {
  const view = freeArea(), edge = 16;
  fitZoom = Math.min((view.width - 2 * edge) / scene.width, (view.height - 2 * edge) / scene.height);
  zoom = fitZoom;
  left = scene.width / 2 - (view.x + view.width / 2) / zoom;
  top_ = scene.height / 2 - (view.y + view.height / 2) / zoom;
  draw();
}

function zoomAt(factor, x, y) {
  const next = Math.min(Math.max(zoom * factor, fitZoom / 2), Math.max(16, fitZoom));
  left += x / zoom - x / next;
  top_ += y / zoom - y / next;
  zoom = next;
  draw();
}

function goTo(i) {
  const [x1, y1, x2, y2] = scene.boxes[i], view = freeArea();
  const side = Math.max(x2 - x1, y2 - y1);
  zoom = Math.min(Math.max(zoom, Math.min(view.width, view.height) / (side * 8)), 8);
  left = (x1 + x2) / 2 - (view.x + view.width / 2) / zoom;
  top_ = (y1 + y2) / 2 - (view.y + view.height / 2) / zoom;
  pin(i);
}

function pin(i) {
  pinned = i;
  hovered = -1;
  saveView();
  showTooltip();
  draw();
}

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}

function paint() {
  const pixelRatio = devicePixelRatio || 1;
  const width = Math.round(innerWidth * pixelRatio), height = Math.round(innerHeight * pixelRatio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
  context.clearRect(0, 0, innerWidth, innerHeight);
  context.imageSmoothingEnabled = zoom * scene.width / picture.naturalWidth < 3;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, -left * zoom, -top_ * zoom, scene.width * zoom, scene.height * zoom);
  context.beginPath(); // of all skipped tiles at once, so that their overlaps are not darker
  for (const [x1, y1, x2, y2] of scene.skipped) {
    context.rect((x1 - left) * zoom, (y1 - top_) * zoom, (x2 - x1) * zoom, (y2 - y1) * zoom);
  }
  context.fillStyle = "rgba(110, 120, 130, .4)";
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = dark.matches ? "#aab4be" : "#5d6873";
  for (const [x1, y1, x2, y2] of scene.unreadable) {
    const [a, b, c, d] = [(x1 - left) * zoom, (y1 - top_) * zoom, (x2 - left) * zoom, (y2 - top_) * zoom];
    context.strokeRect(a, b, c - a, d - b);
    context.beginPath(); context.moveTo(a, b); context.lineTo(c, d); context.moveTo(a, d); context.lineTo(c, b); context.stroke();
  }
  const edge = shown.length > 4000 ? 0 : 1; // many objects are drawn without dark edges, for speed
  for (let n = shown.length - 1; n >= 0; n--) outline(shown[n], edge, 2);
  if (hovered >= 0) outline(hovered, 2, 3);
  if (pinned >= 0) outline(pinned, 2, 3);
  placeTooltip();
  drawScaleBar();
}

function screenBox(i) {
  const [x1, y1, x2, y2] = scene.boxes[i], minSide = 7;
  const width = Math.max((x2 - x1) * zoom, minSide), height = Math.max((y2 - y1) * zoom, minSide);
  const x = ((x1 + x2) / 2 - left) * zoom - width / 2, y = ((y1 + y2) / 2 - top_) * zoom - height / 2;
  return [x, y, width, height];
}

function screenPath(i) { // of an oriented box, which does not shrink below the smallest box
  const [x1, y1, x2, y2] = scene.boxes[i], [x, y, w, h] = screenBox(i);
  const grown = Math.min(w / (x2 - x1), h / (y2 - y1));
  const path = new Path2D();
  if (!scene.corners) path.rect(x, y, w, h);
  else {
    const points = scene.corners[i], middle = [0, 1].map((k) => points.reduce((sum, point) => sum + point[k], 0) / 4);
    const at = ([px, py]) => [(middle[0] - left) * zoom + (px - middle[0]) * grown, (middle[1] - top_) * zoom + (py - middle[1]) * grown];
    points.forEach((point, n) => (n ? path.lineTo(...at(point)) : path.moveTo(...at(point))));
    path.closePath();
  }
  return path;
}

function outline(i, edge, width) {
  const [x, y, w, h] = screenBox(i);
  if (x > innerWidth || y > innerHeight || x + w < 0 || y + h < 0) return;
  const path = screenPath(i);
  if (edge) {
    context.strokeStyle = edge > 1 ? "#fff" : "rgba(0, 0, 0, .65)";
    context.lineWidth = width + 2 * edge;
    context.stroke(path);
  }
  context.strokeStyle = scene.classes[scene.labels[i]].color;
  context.lineWidth = width;
  context.stroke(path);
}

function isOn(i, x, y, reach) { // the box itself, not only the upright box around it
  if (!scene.corners) return true;
  const path = screenPath(i), ratio = devicePixelRatio || 1;
  context.lineWidth = 2 * reach;
  return context.isPointInPath(path, x * ratio, y * ratio) || context.isPointInStroke(path, x * ratio, y * ratio);
}

function objectAt(x, y, reach) {
  let found = -1, area = Infinity;
  for (const i of shown) { // the smallest of several, which the others would hide
    const [a, b, w, h] = screenBox(i);
    if (x >= a - reach && x <= a + w + reach && y >= b - reach && y <= b + h + reach && w * h < area && isOn(i, x, y, reach)) {
      found = i;
      area = w * h;
    }
  }
  return found;
}

function sidesPx(i) {
  const [x1, y1, x2, y2] = scene.boxes[i];
  if (!scene.corners) return [x2 - x1, y2 - y1];
  const [a, b, c] = scene.corners[i];
  return [Math.hypot(b[0] - a[0], b[1] - a[1]), Math.hypot(c[0] - b[0], c[1] - b[1])];
}

function showTooltip() {
  const i = hovered >= 0 ? hovered : pinned;
  for (const button of byId("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.object) === pinned));
  }
  const tip = byId("tip");
  tip.style.visibility = i >= 0 ? "visible" : "hidden";
  tip.classList.toggle("pinned", hovered < 0 && pinned >= 0);
  if (i < 0) return;
  const [x1, y1, x2, y2] = scene.boxes[i];
  const facts = [["Score", scene.scores[i].toFixed(3)],
    ["Size", `${sidesPx(i).map((side) => formatNumber(side, 0)).join(" × ")} px`]];
  if (scene.sizes_m && scene.sizes_m[i]) facts.push(["", `${scene.sizes_m[i].map((side) => formatNumber(side, 0)).join(" × ")} m`]);
  if (scene.headings_deg && scene.headings_deg[i] !== null) {
    const heading = scene.headings_deg[i];
    facts.push(["Heading", `${formatNumber(heading, 0)}° or ${formatNumber(heading + 180, 0)}°`]);
  }
  if (scene.lonlat && scene.lonlat[i]) {
    const [longitude, latitude] = scene.lonlat[i];
    facts.push(["Latitude", `${Math.abs(latitude).toFixed(6)}° ${latitude < 0 ? "S" : "N"}`],
      ["Longitude", `${Math.abs(longitude).toFixed(6)}° ${longitude < 0 ? "W" : "E"}`]);
  }
  facts.push(["Column, row", `${formatNumber((x1 + x2) / 2, 0)}, ${formatNumber((y1 + y2) / 2, 0)}`],
    ["Tile", `r${Math.floor(scene.tiles[i] / scene.columns)}c${scene.tiles[i] % scene.columns}`]);
  const list = element("dl");
  for (const [name, value] of facts) list.append(element("dt", { textContent: name }), element("dd", { textContent: value }));
  tip.replaceChildren(element("b", {}, classMark(scene.labels[i]), scene.classes[scene.labels[i]].name), list);
  placeTooltip();
}

function placeTooltip() {
  const i = hovered >= 0 ? hovered : pinned;
  if (i < 0) return;
  const [x, y, w, h] = screenBox(i), tip = byId("tip"), gap = 12;
  const beside = x + w + gap + tip.offsetWidth < innerWidth ? x + w + gap : x - gap - tip.offsetWidth;
  tip.style.left = `${Math.max(8, beside)}px`;
  tip.style.top = `${Math.min(Math.max(8, y + h / 2 - tip.offsetHeight / 2), innerHeight - tip.offsetHeight - 8)}px`;
}

function drawScaleBar() {
  const unit = scene.gsd_m ? zoom / scene.gsd_m : zoom; // window pixels per meter, or per scene pixel
  const aim = Math.min(120, innerWidth / 4) / unit, power = 10 ** Math.floor(Math.log10(aim));
  const length = [5, 2, 1].find((step) => step * power <= aim) * power;
  const text = !scene.gsd_m ? `${formatNumber(length, length < 1 ? 1 : 0)} px`
    : length >= 1000 ? `${formatNumber(length / 1000, 0)} km` : `${formatNumber(length, length < 1 ? 1 : 0)} m`;
  byId("scale").firstChild.textContent = text;
  byId("scale").lastChild.style.width = `${length * unit}px`;
}

const pointers = new Map();
let movedPx = 0;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  movedPx = pointers.size > 1 ? Infinity : 0;
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) {
    const found = objectAt(event.clientX, event.clientY, 2);
    canvas.classList.toggle("over", found >= 0);
    if (found !== hovered && event.pointerType === "mouse") { hovered = found; showTooltip(); draw(); }
    return;
  }
  const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
  movedPx += Math.abs(dx) + Math.abs(dy);
  if (pointers.size === 2) {
    const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const was = Math.hypot(before.clientX - other.clientX, before.clientY - other.clientY);
    const is = Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
    if (was > 0) zoomAt(is / was, (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
  }
  left -= dx / zoom / pointers.size;
  top_ -= dy / zoom / pointers.size;
  pointers.set(event.pointerId, event);
  canvas.classList.add("moving");
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.remove("moving");
    if (name === "pointerup" && movedPx < 5) pin(objectAt(event.clientX, event.clientY, event.pointerType === "mouse" ? 2 : 12));
  });
}
canvas.addEventListener("pointerleave", () => { if (hovered >= 0) { hovered = -1; showTooltip(); draw(); } });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoomAt(2, event.clientX, event.clientY));
canvas.addEventListener("keydown", (event) => {
  const step = 80 / zoom, keys = {
    "+": () => zoomAt(1.5, innerWidth / 2, innerHeight / 2), "=": () => zoomAt(1.5, innerWidth / 2, innerHeight / 2),
    "-": () => zoomAt(1 / 1.5, innerWidth / 2, innerHeight / 2), "0": fit, Escape: () => pin(-1),
    ArrowLeft: () => { left -= step; draw(); }, ArrowRight: () => { left += step; draw(); },
    ArrowUp: () => { top_ -= step; draw(); }, ArrowDown: () => { top_ += step; draw(); },
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
byId("in").onclick = () => zoomAt(1.6, innerWidth / 2, innerHeight / 2);
byId("out").onclick = () => zoomAt(1 / 1.6, innerWidth / 2, innerHeight / 2);
byId("fit").onclick = fit;
byId("fold").onclick = () => {
  byId("fold").setAttribute("aria-expanded", String(!byId("panel").classList.toggle("folded")));
  if (zoom === fitZoom) fit();
};
byId("score").oninput = (event) => { minScore = Number(event.target.value); filter(); };
byId("all").onclick = () => {
  if (hidden.size) hidden.clear(); else scene.classes.forEach((_, label) => hidden.add(label));
  filter();
};
scene.classes.forEach((kind, label) => {
  const box = element("input", { type: "checkbox", id: `class-${label}`, checked: true });
  box.onchange = () => { box.checked ? hidden.delete(label) : hidden.add(label); filter(); };
  byId("classes").append(element("label", { className: "row" }, box, classMark(label), element("span", { textContent: kind.name }),
    element("span", { className: "number" })));
});
for (const [name, value] of scene.facts) byId("facts").append(element("dt", { textContent: name }), element("dd", { textContent: value }));
byId("score").min = scene.min_score;
byId("panel").classList.toggle("folded", innerWidth <= 720);
byId("fold").setAttribute("aria-expanded", String(innerWidth > 720));
addEventListener("resize", draw);
dark.addEventListener("change", draw);

const selected = loadView();
picture.decode().catch(() => {}).then(() => {
  filter();
  fit();
  if (selected >= 0 && shown.includes(selected)) goTo(selected);
  document.body.dataset.ready = "yes";
});
