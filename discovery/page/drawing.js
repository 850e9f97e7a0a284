// The map: networks are bars with their containers below, services are frames, and a line connects the frames of a
// service on several networks. Cells shrink as their number grows, down to a status mark.

import { count, filled, networkName, OWN, short } from "./model.js";
import { drawn, endpoint, shape, STATUSES } from "./parts.js";

const SIZES = [
  { most: 36, width: 156, height: 42, gap: 8 },
  { most: 140, width: 116, height: 24, gap: 6 },
  { most: Infinity, width: 18, height: 18, gap: 4 },
];
const EDGE = 12; // padding of a band
const BAR = 34;
const STEM = 14;
const HEAD = 40; // height of a frame's title: name and virtual addresses
const HUES = 8;
const TITLE = 380; // maximum width of a service name
const THREADS = 8; // with more connecting lines than this, only the hovered service's are shown

const pencil = document.createElement("canvas").getContext("2d");
const widths = new Map();

function measure(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    if (widths.size > 20000) widths.clear();
    pencil.font = font;
    widths.set(key, pencil.measureText(text).width);
  }
  return widths.get(key);
}

function fit(text, width, font) {
  if (measure(text, font) <= width) return text;
  let low = 0, high = Math.min(text.length, 200);
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (measure(`${text.slice(0, middle)}…`, font) <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}

export function draw(networks, model, room, selected) {
  // An SVG of these networks, room pixels wide.
  const family = getComputedStyle(document.body).fontFamily;
  const fonts = { name: `600 13px ${family}`, small: `11px ${family}`, bar: `600 14px ${family}` };
  const cells = networks.reduce((sum, one) => sum + one.cells.length, 0);
  const size = SIZES.find((one) => cells <= one.most);
  const width = Math.max(280, room);
  const services = new Map(model.services.map((one) => [one.name, one]));
  const layers = { bands: [], threads: [], things: [] };
  const frames = new Map();
  const homes = new Map();
  let top = 0;
  for (const network of networks) {
    const rows = flow(groups(network.cells, services), size, width, fonts, services);
    top = band(network, rows, { top, width, size, fonts, services, layers, frames, homes, selected });
  }
  for (const [name, places] of frames) layers.threads.push(thread(places, selected?.kind === "service" && selected.id === name, name, width));
  for (const [id, places] of homes) {
    // A container on several networks: its cells are joined.
    const seen = new Set();
    const joined = places.filter((one) => !seen.has(one.network) && seen.add(one.network));
    if (joined.length > 1) layers.threads.push(thread(joined, selected?.kind === "container" && selected.id === id, "", width, "home", id));
  }
  return drawn("svg", {
    class: `drawing${layers.threads.filter(Boolean).length > THREADS ? " many" : ""}`, width, height: Math.max(0, top - 14), viewBox: `0 0 ${width} ${Math.max(1, top - 14)}`,
    role: "group", "aria-label": "Networks, their containers and services; arrow keys move, Enter opens",
  }, layers.bands, layers.threads, layers.things);
}

function groups(cells, services) {
  // Cells grouped by service: services on several networks first, cells without a service last.
  const found = byService(cells);
  const loose = found.get("") ?? [];
  found.delete("");
  const wide = (name) => (services.get(name)?.networks.length > 1 ? 0 : 1);
  const named = [...found].sort(([a], [b]) => wide(a) - wide(b) || a.localeCompare(b));
  return [...named, ...(loose.length ? [["", loose]] : [])];
}

function byService(cells) {
  const found = new Map();
  for (const one of cells) collect(found, one.service, one);
  return found;
}

function collect(lists, key, value) {
  // Append to the list of a key. A new list each time would take the square of their number.
  const found = lists.get(key);
  if (found) found.push(value);
  else lists.set(key, [value]);
}

function headline(service) {
  return service?.Virtual.length ? service.Virtual.join("  ") : "";
}

function flow(found, size, width, fonts, services) {
  // Lay out frames from left to right, wrapping into rows.
  const rows = [];
  let x = Infinity;
  for (const [name, cells] of found) {
    const room = width - 2 * EDGE - (name ? 2 * EDGE : 0);
    const most = Math.max(1, Math.floor((room + size.gap) / (size.width + size.gap)));
    const title = name ? Math.min(room, TITLE, Math.max(measure(name, fonts.name) + 74, measure(headline(services.get(name)), fonts.small) + 40)) : 0;
    const wanted = size.height > 20 ? cells.length : Math.max(6, Math.ceil(Math.sqrt(cells.length * 3)));
    const columns = Math.min(most, Math.max(wanted, Math.floor((title + size.gap) / (size.width + size.gap))), cells.length);
    const inner = Math.max(title, columns * (size.width + size.gap) - size.gap);
    const lines = Math.ceil(cells.length / columns);
    const frame = {
      name, cells, columns, cell: size.height > 20 ? (inner + size.gap) / columns - size.gap : size.width,
      width: inner + (name ? 2 * EDGE : 0),
      height: lines * (size.height + size.gap) - size.gap + (name ? HEAD + EDGE : 0),
    };
    if (x + frame.width > width - EDGE) {
      rows.push([]);
      x = EDGE;
    }
    rows.at(-1).push({ ...frame, x });
    x += frame.width + EDGE;
  }
  return rows;
}

function band(network, rows, { top, width, size, fonts, services, layers, frames, homes, selected }) {
  const hue = hash(network.name) % HUES;
  let y = top + BAR + STEM;
  const things = [];
  for (const [number, row] of rows.entries()) {
    for (const frame of row) {
      if (!number) things.push(drawn("path", { class: "stem", d: `M${frame.x + 22} ${y - STEM}v${STEM}` }));
      things.push(...group(frame, y, { size, fonts, services, homes, selected, network }));
      if (frame.name) collect(frames, frame.name, { ...frame, y, first: !number, last: number === rows.length - 1 });
    }
    y += Math.max(...row.map((one) => one.height)) + EDGE;
  }
  if (!rows.length) y = top + BAR;
  const hosts = network.name === "";
  const name = fit(networkName(network.name), width * 0.45, fonts.bar);
  const about = hosts ? "registered without a container" : [
    network.Driver, network.Internal ? "internal" : "", ...(network.Subnets.length ? network.Subnets : network.Gateways),
    ...filled(network), network.here ? "" : "on other nodes", `${network.all} ${network.all === 1 ? "endpoint" : "endpoints"}`,
  ].filter(Boolean).join(" · ");
  const here = 26 + measure(name, fonts.bar) + 14;
  layers.bands.push(drawn("rect", { class: `band hue-${hue}`, x: 0.5, y: top + 0.5, width: width - 1, height: y - top - 1, rx: 10 }));
  const bar = [
    drawn("rect", { class: `bar hue-${hue}`, x: 0.5, y: top + 0.5, width: width - 1, height: BAR - 1, rx: 10 }),
    drawn("text", { class: "network", x: EDGE + 4, y: top + 22 }, name),
    drawn("text", { class: "about", x: here, y: top + 22 }, fit(about, width - here - EDGE, fonts.small)),
  ];
  layers.bands.push(hosts ? drawn("g", {}, bar) : item("network", network.name, `Network ${network.name}: ${about}`, selected, bar));
  layers.things.push(...things);
  return y + 14;
}

function group(frame, y, { size, fonts, services, homes, selected, network }) {
  const found = [];
  const service = services.get(frame.name);
  const inset = frame.name ? EDGE : 0;
  if (frame.name) {
    const every = network.every.get(frame.name); // also those that the filters hide
    const states = count(every.map((one) => ({ Status: one.status })));
    const status = STATUSES.find((one) => states[one]) ?? "none";
    const virtual = headline(service);
    const good = states.passing ?? 0;
    const share = `${good}/${every.length}`;
    const label = `Service ${frame.name}: ${good} of ${every.length} passing here${virtual ? `; virtual address ${virtual}` : ""}`;
    found.push(item("service", frame.name, label, selected, [
      drawn("rect", { class: `frame ${status}`, x: frame.x + 0.5, y: y + 0.5, width: frame.width - 1, height: frame.height - 1, rx: 8 }),
      drawn("text", { class: "name", x: frame.x + EDGE, y: y + (virtual ? 18 : 25) }, fit(frame.name, frame.width - 2 * EDGE - 44, fonts.name)),
      drawn("text", { class: `share ${status}`, x: frame.x + frame.width - EDGE, y: y + (virtual ? 18 : 25) }, share),
      virtual ? drawn("text", { class: "virtual", x: frame.x + EDGE, y: y + 33 }, fit(`⇢ ${virtual}`, frame.width - 2 * EDGE, fonts.small)) : null,
    ]));
  }
  const room = { ...size, width: frame.cell };
  for (const [number, cell] of frame.cells.entries()) {
    const x = frame.x + inset + (number % frame.columns) * (frame.cell + size.gap);
    const at = y + (frame.name ? HEAD : 0) + Math.floor(number / frame.columns) * (size.height + size.gap);
    found.push(box(cell, x, at, room, fonts, selected));
    const place = cell.container && { x, y: at, width: frame.cell, height: size.height, network: network.name };
    if (place) collect(homes, cell.container, place);
  }
  return found;
}

function box(cell, x, y, size, fonts, selected) {
  const address = endpoint(cell.address, cell.port);
  const status = cell.status === "none" ? "" : `, ${cell.status}`;
  const ports = cell.ports.map(short);
  const published = ports.length ? `, published ${ports.join(", ")}` : "";
  const label = `${cell.name}${address ? `, ${address}` : ""}${status}${published}${cell.node && !cell.container ? `, on ${cell.node}` : ""}`;
  if (size.height < 20) return item(cell.kind, cell.id, label, selected, [shape(cell.status, size.width, x, y)], cell);
  const two = size.height > 30;
  return item(cell.kind, cell.id, label, selected, [
    drawn("rect", { class: `cell ${cell.status}`, x: x + 0.5, y: y + 0.5, width: size.width - 1, height: size.height - 1, rx: 6 }),
    shape(cell.status, 14, x + 7, y + (two ? 7 : 5)),
    drawn("text", { class: "name", x: x + 27, y: y + (two ? 18 : 16.5) }, fit(cell.name, size.width - 34, fonts.name)),
    two ? drawn("text", { class: "address", x: x + 27, y: y + 33 },
      fit([address || "no address", outside(ports)].filter(Boolean).join(" "), size.width - 34, fonts.small)) : null,
  ], cell);
}

function outside(ports) {
  // The first published port of the host, and how many more: "⇤8080 +1".
  const [first, ...rest] = ports;
  return first ? `⇤${first.split("→")[0]}${rest.length ? ` +${rest.length}` : ""}` : "";
}

function item(kind, id, label, selected, children, cell) {
  const chosen = selected?.kind === kind && selected.id === id;
  const related = !chosen && cell && ((selected?.kind === "container" && selected.id === cell.container)
    || (selected?.kind === "service" && selected.id === cell.service));
  return drawn("g", {
    class: `item${cell && children.length === 1 ? " dot" : ""}${chosen ? " chosen" : ""}${related ? " related" : ""}`, role: "button", tabindex: "-1",
    "data-kind": kind, "data-id": id, "data-key": cell?.key ?? `${kind} ${id}`, "aria-label": label, "aria-pressed": String(chosen),
  }, drawn("title", {}, label), children);
}

function thread(places, chosen, name, width, kind = "", container = "") {
  // From the bottom of each box to the top of the next, or along the right edge if rows are between them.
  const path = places.slice(1).map((to, number) => {
    const from = places[number];
    if (from.last === false || to.first === false) {
      const [x, ending] = [from.x + from.width, to.x + to.width];
      const out = Math.min(width - 4, Math.max(x, ending) + 40);
      return `M${x} ${from.y + 26}C${out} ${from.y + 26} ${out} ${to.y + 26} ${ending} ${to.y + 26}`;
    }
    const [x, y] = [from.x + from.width / 2, from.y + from.height];
    const [ending, end] = [to.x + to.width / 2, to.y];
    const bend = Math.max(24, Math.abs(end - y) / 2);
    return `M${x} ${y}C${x} ${y + bend} ${ending} ${end - bend} ${ending} ${end}`;
  }).join("");
  return path ? drawn("path", { class: `thread ${kind}${chosen ? " chosen" : ""}`, d: path, "data-service": name || null, "data-container": container || null }) : "";
}

function hash(text) {
  let found = 7;
  for (const letter of text) found = (found * 31 + letter.codePointAt(0)) >>> 0;
  return found;
}

export function nearestItem(items, from, key) {
  // The nearest item in the direction of an arrow key.
  const centre = (one) => { const box = one.getBoundingClientRect(); return [box.x + Math.min(box.width, 40) / 2, box.y + Math.min(box.height, 30) / 2]; };
  const [x, y] = centre(from);
  const flat = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  let best = null, least = Infinity;
  for (const one of items) {
    const [right, down] = centre(one);
    const along = sign * (flat ? right - x : down - y);
    const across = Math.abs(flat ? down - y : right - x);
    if (one === from || along < 4 || (flat && across > 60)) continue;
    const distance = along + 2.5 * across;
    if (distance < least) [best, least] = [one, distance];
  }
  return best;
}

export function shownNetworks(networks, matches, filters) {
  // The networks with the cells that pass the filters; empty ones stay unless a health or text filter is set.
  const filtering = filters.health || filters.query;
  return networks
    .filter((network) => filters.network === null || network.name === filters.network)
    .map((network) => {
      const own = network.cells.filter((cell) => cell.service !== OWN);
      return {
        ...network,
        all: own.length, every: byService(own), // filters change what is shown, not what there is
        cells: own.filter((cell) => (!filters.health || cell.status === filters.health) && matches(cell.words)),
      };
    })
    .filter((network) => network.cells.length || !filtering);
}
