// Building blocks of all views. Elements are created one by one, text is always a text node: no HTML is parsed.

export const STATUSES = ["critical", "warning", "maintenance", "passing"]; // worst first
const SVG = "http://www.w3.org/2000/svg";
const SHAPES = {
  passing: "M1.5 7.5 5 11 12.5 3",
  warning: "M7 2v6M7 11.6v.4",
  critical: "M3 3l8 8M11 3l-8 8",
  maintenance: "M4.5 3v8M9.5 3v8",
};

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function shape(status, size, x = 0, y = 0) {
  // A shape per status, so that color is not the only distinction.
  return drawn("g", { class: `mark ${status}`, transform: `translate(${x} ${y}) scale(${size / 14})` },
    drawn("rect", { width: 14, height: 14, rx: 4 }),
    drawn("path", { d: SHAPES[status] ?? "M4 7h6", transform: "translate(2.1 2.1) scale(.7)" }));
}

export function mark(status) {
  return drawn("svg", { class: "sign", viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, shape(status, 14));
}

export function state(status, checked = true) {
  const unchecked = !checked && status === "passing";
  return element("span", { class: `state ${status}` }, mark(unchecked ? "none" : status), unchecked ? "no check" : status);
}

export function counts(found) {
  // "2 critical, 1 passing", each with its mark.
  const parts = STATUSES.filter((one) => found[one]).map((one) =>
    element("span", { class: `state ${one}` }, mark(one), `${found[one]} ${one}`));
  return parts.length ? element("span", { class: "states" }, parts) : element("span", { class: "faint" }, "no instances");
}

export function link(kind, id, text, extra = {}) {
  return element("button", { type: "button", class: "link", "data-kind": kind, "data-id": id, "data-key": `${kind} ${id}`, ...extra }, text);
}

export function list(items) {
  // Comma-separated items; "–" for none.
  const parts = items.flatMap((item, number) => (number ? [", ", item] : [item]));
  return parts.length ? parts : [element("span", { class: "faint" }, "–")];
}

export function some(items, most, what) {
  const shown = items.slice(0, most);
  return items.length > most ? [...shown, element("span", { class: "faint" }, `${items.length - most} more ${what}`.trim())] : shown;
}

export function code(text) {
  const made = element("span", { class: "code" }, element("code", {}, text));
  if (navigator.clipboard) {
    made.append(element("button", {
      type: "button", class: "copy", "data-key": `copy ${text}`, "aria-label": `Copy ${text}`,
      click: async (event) => {
        const button = event.currentTarget;
        try {
          await navigator.clipboard.writeText(text);
          button.textContent = "copied";
        } catch {
          button.textContent = "not allowed";
        }
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      },
    }, "copy"));
  }
  return made;
}

export function when(seconds, started) {
  // 0 is before the agent started; the exact time is unknown.
  if (!seconds) {
    return element("span", { class: "faint", title: `before this agent started, ${new Date(started * 1000).toLocaleString()}` }, "earlier");
  }
  const moment = new Date(seconds * 1000);
  return element("time", { datetime: moment.toISOString(), title: moment.toLocaleString() }, ago(seconds));
}

let ahead = 0; // seconds by which the agent's clock is ahead of the browser's

export function setClock(now) { ahead = now - Date.now() / 1000; }

function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 + ahead - seconds);
  if (past < 10) return "just now";
  for (const [size, name] of [[86400, "days"], [3600, "h"], [60, "min"]]) {
    if (past >= size) {
      const number = Math.floor(past / size);
      return `${number} ${number === 1 && name === "days" ? "day" : name} ago`;
    }
  }
  return `${Math.floor(past / 10) * 10} s ago`;
}

export function tick() {
  for (const one of document.querySelectorAll("time")) {
    const text = ago(Date.parse(one.dateTime) / 1000);
    if (one.textContent !== text) one.textContent = text;
  }
}

export function endpoint(address, port) {
  const host = address.includes(":") && port ? `[${address}]` : address;
  return port ? `${host}:${port}` : host;
}
