"use strict";
const scene = JSON.parse(document.getElementById("scene").textContent);
const picture = document.getElementById("picture");
const canvas = document.querySelector("canvas");
const pen = canvas.getContext("2d");
const by = (id) => document.getElementById(id);
const total = scene.scores.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const off = new Set();
let least = scene.least, shown = [], hovered = -1, pinned = -1;
let zoom = 1, left = 0, top_ = 0, whole = 1; // scene pixel (x, y) is at ((x - left) * zoom, (y - top_) * zoom)

function words(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function part(tag, options, ...inner) {
  const made = Object.assign(document.createElement(tag), options || {});
  made.append(...inner);
  return made;
}

function mark(label) {
  const made = part("i", { className: "mark" });
  made.style.setProperty("--of-class", scene.classes[label].color);
  return made;
}

function filter() {
  shown = [];
  const counts = scene.classes.map(() => 0);
  for (let i = 0; i < total; i++) {
    if (scene.scores[i] < least) break; // best first
    counts[scene.labels[i]]++;
    if (!off.has(scene.labels[i])) shown.push(i);
  }
  by("count").textContent = shown.length === total
    ? (total === 1 ? "1 object" : `${words(total, 0)} objects`) : `${words(shown.length, 0)} of ${words(total, 0)} objects`;
  by("value").textContent = least.toFixed(2);
  by("score").value = least;
  scene.classes.forEach((_, label) => {
    const row = by(`class-${label}`);
    row.checked = !off.has(label);
    row.parentElement.lastChild.textContent = words(counts[label], 0);
  });
  by("all").textContent = off.size ? "Show all" : "Hide all";
  if (pinned >= 0 && !shown.includes(pinned)) pinned = -1;
  const most = 100;
  by("list").replaceChildren(...shown.slice(0, most).map((i) => {
    const go = part("button", { type: "button", onclick: () => visit(i) }, mark(scene.labels[i]),
      part("span", { textContent: scene.classes[scene.labels[i]].name }),
      part("span", { className: "number", textContent: scene.scores[i].toFixed(2) }));
    go.dataset.object = i;
    return part("li", {}, go);
  }));
  by("more").textContent = shown.length > most ? `and ${words(shown.length - most, 0)} more on the map` : "";
  by("nothing").hidden = shown.length > 0;
  by("nothing").textContent = total ? "No object passes the filters." : "Nothing was found in this scene.";
  remember();
  tell();
  draw();
}

function remember() {
  const facts = [];
  if (least > scene.least) facts.push(`score=${least.toFixed(2)}`);
  if (off.size) facts.push(`hide=${[...off].sort((a, b) => a - b).join(",")}`);
  if (pinned >= 0) facts.push(`object=${pinned}`);
  history.replaceState(null, "", facts.length ? `#${facts.join("&")}` : location.pathname + location.search);
}

function recall() {
  const facts = new URLSearchParams(location.hash.slice(1));
  const score = Number(facts.get("score"));
  if (score > least && score <= 1) least = score;
  (facts.get("hide") || "").split(",").filter(Boolean).map(Number).forEach((label) => scene.classes[label] && off.add(label));
  const object = facts.has("object") ? Number(facts.get("object")) : -1;
  return Number.isInteger(object) && object < total ? object : -1;
}

function free() { // the part of the window that the panel leaves
  const panel = by("panel").getBoundingClientRect();
  return innerWidth <= 720
    ? { x: 0, y: 0, width: innerWidth, height: Math.max(120, panel.top) }
    : { x: panel.right, y: 0, width: innerWidth - panel.right, height: innerHeight };
}

function fit() {
  const room = free(), edge = 16;
  whole = Math.min((room.width - 2 * edge) / scene.width, (room.height - 2 * edge) / scene.height);
  zoom = whole;
  left = scene.width / 2 - (room.x + room.width / 2) / zoom;
  top_ = scene.height / 2 - (room.y + room.height / 2) / zoom;
  draw();
}

function magnify(factor, x, y) {
  const next = Math.min(Math.max(zoom * factor, whole / 2), Math.max(16, whole));
  left += x / zoom - x / next;
  top_ += y / zoom - y / next;
  zoom = next;
  draw();
}

function visit(i) {
  const [x1, y1, x2, y2] = scene.boxes[i], room = free();
  const side = Math.max(x2 - x1, y2 - y1);
  zoom = Math.min(Math.max(zoom, Math.min(room.width, room.height) / (side * 8)), 8);
  left = (x1 + x2) / 2 - (room.x + room.width / 2) / zoom;
  top_ = (y1 + y2) / 2 - (room.y + room.height / 2) / zoom;
  pin(i);
}

function pin(i) {
  pinned = i;
  hovered = -1;
  remember();
  tell();
  draw();
}

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}

function paint() {
  const sharp = devicePixelRatio || 1;
  const width = Math.round(innerWidth * sharp), height = Math.round(innerHeight * sharp);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  pen.clearRect(0, 0, innerWidth, innerHeight);
  pen.imageSmoothingEnabled = zoom * scene.width / picture.naturalWidth < 3;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, -left * zoom, -top_ * zoom, scene.width * zoom, scene.height * zoom);
  pen.lineWidth = 1.5;
  pen.strokeStyle = dark.matches ? "#aab4be" : "#5d6873";
  for (const [x1, y1, x2, y2] of scene.holes) {
    const [a, b, c, d] = [(x1 - left) * zoom, (y1 - top_) * zoom, (x2 - left) * zoom, (y2 - top_) * zoom];
    pen.strokeRect(a, b, c - a, d - b);
    pen.beginPath(); pen.moveTo(a, b); pen.lineTo(c, d); pen.moveTo(a, d); pen.lineTo(c, b); pen.stroke();
  }
  const most = shown.length > 4000 ? 0 : 1; // a crowd is drawn without dark edges, which is faster
  for (let n = shown.length - 1; n >= 0; n--) outline(shown[n], most, 2);
  if (hovered >= 0) outline(hovered, 2, 3);
  if (pinned >= 0) outline(pinned, 2, 3);
  place();
  ruler();
}

function sides(i) {
  const [x1, y1, x2, y2] = scene.boxes[i], least = 7;
  const width = Math.max((x2 - x1) * zoom, least), height = Math.max((y2 - y1) * zoom, least);
  const x = ((x1 + x2) / 2 - left) * zoom - width / 2, y = ((y1 + y2) / 2 - top_) * zoom - height / 2;
  return [x, y, width, height];
}

function outline(i, edge, width) {
  const [x, y, w, h] = sides(i);
  if (x > innerWidth || y > innerHeight || x + w < 0 || y + h < 0) return;
  if (edge) {
    pen.strokeStyle = edge > 1 ? "#fff" : "rgba(0, 0, 0, .65)";
    pen.lineWidth = width + 2 * edge;
    pen.strokeRect(x, y, w, h);
  }
  pen.strokeStyle = scene.classes[scene.labels[i]].color;
  pen.lineWidth = width;
  pen.strokeRect(x, y, w, h);
}

function under(x, y, reach) {
  let found = -1, area = Infinity;
  for (const i of shown) { // of several, the smallest: it could not be pointed at otherwise
    const [a, b, w, h] = sides(i);
    if (x >= a - reach && x <= a + w + reach && y >= b - reach && y <= b + h + reach && w * h < area) {
      found = i;
      area = w * h;
    }
  }
  return found;
}

function tell() {
  const i = hovered >= 0 ? hovered : pinned;
  for (const button of by("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.object) === pinned));
  }
  const tip = by("tip");
  tip.style.visibility = i >= 0 ? "visible" : "hidden";
  tip.classList.toggle("pinned", hovered < 0 && pinned >= 0);
  if (i < 0) return;
  const [x1, y1, x2, y2] = scene.boxes[i];
  const facts = [["Score", scene.scores[i].toFixed(3)],
    ["Size", `${words(x2 - x1, 0)} × ${words(y2 - y1, 0)} px`]];
  if (scene.gsd_m) facts.push(["", `${words((x2 - x1) * scene.gsd_m, 0)} × ${words((y2 - y1) * scene.gsd_m, 0)} m`]);
  if (scene.places && scene.places[i]) {
    const [longitude, latitude] = scene.places[i];
    facts.push(["Latitude", `${Math.abs(latitude).toFixed(6)}° ${latitude < 0 ? "S" : "N"}`],
      ["Longitude", `${Math.abs(longitude).toFixed(6)}° ${longitude < 0 ? "W" : "E"}`]);
  }
  facts.push(["Column, row", `${words((x1 + x2) / 2, 0)}, ${words((y1 + y2) / 2, 0)}`],
    ["Tile", `r${Math.floor(scene.tiles[i] / scene.columns)}c${scene.tiles[i] % scene.columns}`]);
  const list = part("dl");
  for (const [name, value] of facts) list.append(part("dt", { textContent: name }), part("dd", { textContent: value }));
  tip.replaceChildren(part("b", {}, mark(scene.labels[i]), scene.classes[scene.labels[i]].name), list);
  place();
}

function place() {
  const i = hovered >= 0 ? hovered : pinned;
  if (i < 0) return;
  const [x, y, w, h] = sides(i), tip = by("tip"), gap = 12;
  const beside = x + w + gap + tip.offsetWidth < innerWidth ? x + w + gap : x - gap - tip.offsetWidth;
  tip.style.left = `${Math.max(8, beside)}px`;
  tip.style.top = `${Math.min(Math.max(8, y + h / 2 - tip.offsetHeight / 2), innerHeight - tip.offsetHeight - 8)}px`;
}

function ruler() {
  const unit = scene.gsd_m ? zoom / scene.gsd_m : zoom; // window pixels per meter, or per scene pixel
  const aim = Math.min(120, innerWidth / 4) / unit, power = 10 ** Math.floor(Math.log10(aim));
  const length = [5, 2, 1].find((step) => step * power <= aim) * power;
  const text = !scene.gsd_m ? `${words(length, length < 1 ? 1 : 0)} px`
    : length >= 1000 ? `${words(length / 1000, 0)} km` : `${words(length, length < 1 ? 1 : 0)} m`;
  by("scale").firstChild.textContent = text;
  by("scale").lastChild.style.width = `${length * unit}px`;
}

const fingers = new Map();
let traveled = 0;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  traveled = fingers.size > 1 ? Infinity : 0;
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) {
    const found = under(event.clientX, event.clientY, 2);
    canvas.classList.toggle("over", found >= 0);
    if (found !== hovered && event.pointerType === "mouse") { hovered = found; tell(); draw(); }
    return;
  }
  const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
  traveled += Math.abs(dx) + Math.abs(dy);
  if (fingers.size === 2) {
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    const was = Math.hypot(before.clientX - other.clientX, before.clientY - other.clientY);
    const is = Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
    if (was > 0) magnify(is / was, (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
  }
  left -= dx / zoom / fingers.size;
  top_ -= dy / zoom / fingers.size;
  fingers.set(event.pointerId, event);
  canvas.classList.add("moving");
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    fingers.delete(event.pointerId);
    canvas.classList.remove("moving");
    if (name === "pointerup" && traveled < 5) pin(under(event.clientX, event.clientY, event.pointerType === "mouse" ? 2 : 12));
  });
}
canvas.addEventListener("pointerleave", () => { if (hovered >= 0) { hovered = -1; tell(); draw(); } });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  magnify(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => magnify(2, event.clientX, event.clientY));
canvas.addEventListener("keydown", (event) => {
  const step = 80 / zoom, keys = {
    "+": () => magnify(1.5, innerWidth / 2, innerHeight / 2), "=": () => magnify(1.5, innerWidth / 2, innerHeight / 2),
    "-": () => magnify(1 / 1.5, innerWidth / 2, innerHeight / 2), "0": fit, Escape: () => pin(-1),
    ArrowLeft: () => { left -= step; draw(); }, ArrowRight: () => { left += step; draw(); },
    ArrowUp: () => { top_ -= step; draw(); }, ArrowDown: () => { top_ += step; draw(); },
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
by("in").onclick = () => magnify(1.6, innerWidth / 2, innerHeight / 2);
by("out").onclick = () => magnify(1 / 1.6, innerWidth / 2, innerHeight / 2);
by("fit").onclick = fit;
by("fold").onclick = () => {
  by("fold").setAttribute("aria-expanded", String(!by("panel").classList.toggle("folded")));
  if (zoom === whole) fit();
};
by("score").oninput = (event) => { least = Number(event.target.value); filter(); };
by("all").onclick = () => {
  if (off.size) off.clear(); else scene.classes.forEach((_, label) => off.add(label));
  filter();
};
scene.classes.forEach((kind, label) => {
  const box = part("input", { type: "checkbox", id: `class-${label}`, checked: true });
  box.onchange = () => { box.checked ? off.delete(label) : off.add(label); filter(); };
  by("classes").append(part("label", { className: "row" }, box, mark(label), part("span", { textContent: kind.name }),
    part("span", { className: "number" })));
});
for (const [name, value] of scene.facts) by("facts").append(part("dt", { textContent: name }), part("dd", { textContent: value }));
by("score").min = scene.least;
by("panel").classList.toggle("folded", innerWidth <= 720);
by("fold").setAttribute("aria-expanded", String(innerWidth > 720));
addEventListener("resize", draw);
dark.addEventListener("change", draw);

const recalled = recall();
picture.decode().catch(() => {}).then(() => {
  filter();
  fit();
  if (recalled >= 0 && shown.includes(recalled)) visit(recalled);
  document.body.dataset.ready = "yes";
});
