// The page: the view state is in the URL's fragment; data comes from the agent by blocking queries.

import { describe, detailPath } from "./details.js";
import { draw, nearestItem, shownNetworks } from "./drawing.js";
import { filteredRows, MOST, table } from "./lists.js";
import { buildModel, matcher, networkName, OWN } from "./model.js";
import { code, element, mark, setClock, STATUSES, tick } from "./parts.js";
import { tracing } from "./tracing.js";

const VIEWS = { map: "Map", services: "Services", containers: "Containers", networks: "Networks", nodes: "Nodes", events: "Events", trace: "Trace" };
const KINDS = ["service", "instance", "container", "network", "node"];
const WAIT = "60s";
const EVENTS_EVERY = 3000;
const at = (id) => document.getElementById(id);

let model = null;
let more = null; // response of detailPath
let rows = MOST;
let current = read();
let opener = ""; // data-key of the element that opened the detail pane
let stop = ""; // data-key of the map's item in the tab order
let asked = null;
let events = [];

// View state

function read() {
  const found = new URLSearchParams(location.hash.slice(1));
  const kind = KINDS.find((one) => found.has(one));
  return {
    view: Object.hasOwn(VIEWS, found.get("view")) ? found.get("view") : "map",
    query: found.get("q") ?? "", health: STATUSES.includes(found.get("health")) ? found.get("health") : "",
    network: found.get("network-is"),
    selected: kind ? { kind, id: found.get(kind) } : null,
    trace: { from: found.get("from") ?? "", to: found.get("to") ?? "" },
  };
}

function go(change) {
  const next = { ...current, ...change };
  const found = new URLSearchParams();
  if (next.view !== "map") found.set("view", next.view);
  if (next.query) found.set("q", next.query);
  if (next.health) found.set("health", next.health);
  if (next.network !== null) found.set("network-is", next.network);
  if (next.selected) found.set(next.selected.kind, next.selected.id);
  if (next.view === "trace") for (const [end, id] of Object.entries(next.trace)) if (id) found.set(end, id);
  const place = `#${found}`;
  // Typing adds no history entries.
  if ("query" in change) history.replaceState(null, "", place);
  else if (place !== (location.hash || "#")) history.pushState(null, "", place);
  follow();
}

function follow() {
  const before = current;
  current = read();
  if (current.view !== before.view) rows = MOST;
  if (JSON.stringify(current.selected) !== JSON.stringify(before.selected)) ask();
  render();
}

// Data

async function watch(path, take, signal, problem = () => {}) {
  // Blocking queries in a loop, each with the index of the last response.
  for (let index = "", pause = 500; !signal.aborted;) {
    try {
      const response = await fetch(`${path}?index=${index || 0}&wait=${WAIT}`, { signal, headers: { Accept: "application/json" } });
      if (!response.ok) throw new Error(`${response.status} ${(await response.text()).slice(0, 200)}`);
      index = response.headers.get("X-Consul-Index") ?? "";
      take(await response.json());
      pause = 500;
      await sleep(150);
    } catch (error) {
      if (signal.aborted) return;
      problem(error);
      index = "";
      await sleep(pause);
      pause = Math.min(pause * 2, 10000);
    }
  }
}

const sleep = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

function begin() {
  // A hidden page does not poll: browsers limit connections per host.
  const watching = new AbortController();
  watch("/v1/weft/overview", (data) => {
    setClock(data.Now);
    model = { ...buildModel(data), events };
    setConnected(true);
    render();
  }, watching.signal, () => setConnected(false));
  ask();
  list(watching.signal);
  const end = () => {
    if (!document.hidden) return;
    document.removeEventListener("visibilitychange", end);
    watching.abort();
    asked?.abort();
    document.addEventListener("visibilitychange", begin, { once: true });
  };
  document.addEventListener("visibilitychange", end);
}

async function list(signal) {
  // Events are read again and again, while they are looked at.
  for (let shown = ""; !signal.aborted; await sleep(EVENTS_EVERY)) {
    if (current.view !== "events") shown = "";
    else try {
      const response = await fetch("/v1/weft/events", { signal });
      const text = response.ok ? await response.text() : "[]";
      if (text === shown || !model) continue;
      shown = text;
      events = JSON.parse(text);
      model.events = events;
      render();
    } catch { shown = ""; } // the agent is away, which the other loop says
  }
}

function ask() {
  asked?.abort();
  asked = new AbortController();
  more = null;
  const path = detailPath(current.selected);
  if (path) watch(path, (found) => { more = found; detail(); }, asked.signal, () => { more = null; });
}

function setConnected(healthy) {
  const live = at("live");
  const text = healthy ? "live" : `no answer from the agent since ${new Date().toLocaleTimeString()}; trying again`;
  if (healthy || live.className !== "away") put(live, [text]);
  live.className = healthy ? "good" : "away";
  document.body.classList.toggle("stale", !healthy);
}

// Rendering

function put(place, children) {
  // Replace the children of an element if they differ, keeping the focus.
  const made = document.createElement("div");
  made.append(...children);
  const [old, fresh] = [[...place.childNodes], [...made.childNodes]];
  if (old.length === fresh.length && old.every((one, number) => one.isEqualNode(fresh[number]))) return;
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...fresh);
  if (key !== undefined) [...place.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus({ preventScroll: true });
}

function render() {
  const matches = matcher(current.query);
  tools();
  if (!model) return;
  const { data, total } = model;
  const critical = total.critical ? ` (${total.critical} critical)` : "";
  document.title = `${data.Node}${critical} · weft`;
  put(at("place"), [`${data.Node} · ${data.Datacenter}`, element("span", { class: "faint" }, ` ${data.Version}`)]);
  views();
  const empty = !model.containers.length && !model.networks.length && !model.services.some((one) => one.name !== OWN);
  document.body.classList.toggle("traces", current.view === "trace");
  if (current.view === "trace") {
    const panel = tracing(model, current.trace, go);
    if (at("main").firstChild !== panel) at("main").replaceChildren(panel);
  } else if (empty && !["nodes", "events"].includes(current.view)) {
    put(at("found"), []);
    put(at("main"), [welcome()]);
  } else if (current.view === "map") map(matches);
  else {
    const found = filteredRows(current.view, model, current, matches);
    summary(found.length, current.view);
    put(at("main"), found.length
      ? table(current.view, found, model, current.selected, rows, () => { rows += MOST; render(); })
      : [nothing()]);
  }
  detail();
}

function map(matches) {
  const networks = shownNetworks(model.networks, matches, current);
  summary(networks.reduce((sum, one) => sum + one.cells.length, 0), "endpoints");
  const style = getComputedStyle(at("main"));
  const room = at("main").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  if (!networks.length) return put(at("main"), [nothing()]);
  const drawing = draw(networks, model, Math.floor(room), current.selected);
  // Roving tabindex: one item is in the tab order, arrow keys move between items.
  const items = [...drawing.querySelectorAll(".item")];
  (items.find((one) => one.dataset.key === stop) ?? items[0])?.setAttribute("tabindex", "0");
  return put(at("main"), [drawing]);
}

function summary(number, what) {
  const { Omitted } = model.data;
  const hidden = Omitted.Services + Omitted.Attachments + Omitted.Nodes;
  const text = `${number} ${number === 1 ? what.replace(/s$/, "") : what}`;
  put(at("found"), [text, hidden ? `; ${hidden} more are not shown, see weft services list` : ""]);
}

function views() {
  const numbers = {
    services: model.services.length + model.data.Omitted.Services, containers: model.containers.length,
    networks: model.networks.filter((one) => one.name).length, nodes: model.nodes.length + model.data.Omitted.Nodes,
  };
  const tabs = Object.entries(VIEWS).map(([view, name]) => element("button", {
    type: "button", "data-key": `view ${view}`, "aria-current": view === current.view ? "page" : undefined, click: () => go({ view }),
  }, name, view in numbers ? element("span", { class: "count" }, String(numbers[view])) : null));
  const healths = STATUSES.filter((one) => model.total[one]).map((one) => element("button", {
    type: "button", class: `health ${one}`, "data-key": `health ${one}`, "aria-pressed": String(current.health === one),
    title: `Instances that are ${one}`, click: () => go({ health: current.health === one ? "" : one }),
  }, mark(one), `${model.total[one]} ${one}`));
  put(at("views"), [element("div", { class: "tabs" }, tabs), element("div", { class: "healths" }, healths)]);
}

function tools() {
  if (at("query").value !== current.query) at("query").value = current.query;
  at("health").value = current.health;
  const names = model ? model.networks.map((one) => one.name) : [];
  if (current.network !== null && !names.includes(current.network)) names.push(current.network);
  const select = at("network");
  if (JSON.stringify(names) !== select.dataset.names) {
    select.dataset.names = JSON.stringify(names);
    select.replaceChildren(element("option", { value: "" }, "all"), ...names.map((name) => element("option", { value: `=${name}` }, networkName(name))));
  }
  select.value = current.network === null ? "" : `=${current.network}`;
  at("clear").hidden = !current.query && !current.health && current.network === null;
}

function nothing() {
  return element("div", { class: "empty" }, element("h2", {}, "Nothing matches"),
    element("p", {}, "Nothing matches the search and the filters."),
    element("button", { type: "button", "data-key": "clear", click: clear }, "Clear filters"));
}

function welcome() {
  return element("div", { class: "empty" },
    element("h2", {}, "Nothing is registered yet"),
    element("p", {}, "Networks appear here when they are created, containers when they are attached, services when they are registered. This page updates itself."),
    element("h3", {}, "Create a network"),
    element("p", {}, code("weft network create blue --names")),
    element("h3", {}, "Register a service"),
    element("p", {}, code("weft services register -name=web -port=80")));
}

function detail() {
  const pane = at("detail");
  const { selected } = current;
  pane.hidden = !selected || !model;
  document.body.classList.toggle("detailed", !pane.hidden);
  if (pane.hidden) return pane.replaceChildren();
  const found = describe(selected, model, more);
  const [kind, title, sections] = found ?? ["", "Gone", [element("p", {}, "It does not exist, or not yet. It is shown here once it does.")]];
  const above = pane.scrollTop;
  const content = [
    element("div", { class: "title" }, element("p", { class: "faint" }, kind), element("h2", { tabindex: "-1", "data-key": "title" }, title),
      element("button", { type: "button", class: "close", "data-key": "close", "aria-label": "Close", title: "Close (Esc)", click: close }, "×")),
    ...sections,
  ];
  put(pane, [element("div", {}, content)]);
  pane.scrollTop = above;
  return undefined;
}

// Input

function choose(target) {
  const end = target.closest?.("[data-trace]")?.dataset;
  if (end) {
    go({ view: "trace", selected: null, trace: { ...current.trace, [end.trace]: end.id } });
    return at("main").querySelector(`[data-key="trace ${end.trace === "from" ? "to" : "from"}"]`)?.focus();
  }
  const one = target.closest?.("[data-kind]");
  if (!one || getSelection()?.type === "Range") return undefined;
  opener = document.activeElement?.dataset?.key ?? one.dataset.key ?? "";
  go({ selected: { kind: one.dataset.kind, id: one.dataset.id } });
  at("detail").scrollTop = 0;
  return undefined;
}

function close() {
  go({ selected: null });
  const back = [...document.querySelectorAll("#main [data-key]")].find((one) => one.dataset.key === opener);
  back?.focus();
}

function clear() {
  go({ query: "", health: "", network: null });
  at("query").focus();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const item = event.target.closest?.(".item");
  if (event.key === "Escape" && current.selected) close();
  else if (event.key === "/" && !event.target.closest?.("input, select, textarea")) {
    event.preventDefault();
    at("query").focus();
  } else if (item && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(item);
    at("detail").querySelector("h2")?.focus();
  } else if (item && event.key.startsWith("Arrow")) {
    event.preventDefault();
    const next = nearestItem(at("main").querySelectorAll(".item"), item, event.key);
    if (!next) return;
    stop = next.dataset.key;
    item.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

document.addEventListener("click", (event) => choose(event.target));
document.addEventListener("keydown", key);
addEventListener("popstate", follow);
addEventListener("hashchange", follow);
at("query").addEventListener("input", (event) => go({ query: event.target.value }));
at("health").addEventListener("change", (event) => go({ health: event.target.value }));
at("network").addEventListener("change", (event) => go({ network: event.target.value ? event.target.value.slice(1) : null }));
at("clear").addEventListener("click", clear);
at("main").addEventListener("pointerover", (event) => {
  // Highlight the lines of the hovered service or container.
  const near = event.target.closest?.("[data-kind='service'], [data-kind='container']");
  for (const one of document.querySelectorAll(".thread")) {
    one.classList.toggle("near", Boolean(near) && one.dataset[near.dataset.kind] === near.dataset.id);
  }
});
let width = 0;
new ResizeObserver(([entry]) => {
  if (Math.abs(entry.contentRect.width - width) < 1) return;
  width = entry.contentRect.width;
  if (model && current.view === "map") render();
}).observe(at("main"));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  at("main").focus();
});
setInterval(tick, 5000);
begin();
