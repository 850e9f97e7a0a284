// The view that follows a packet from one container to another: a form, and the hops that the agent finds.

import { OWN, plain } from "./model.js";
import { code, element, mark } from "./parts.js";

const OTHER = "other"; // an address that is typed
const HOST = "host";
const PROTOCOLS = { tcp: "TCP", udp: "UDP", icmp: "ping" };

let panel = null;
let answer = null; // { query, pending }, { query, error } or { query, found }

export function tracing(model, trace, go) {
  // The view's element, which stays the same: what is typed is kept while the model changes.
  panel ??= make(go);
  const { form, from, to, address, port, proto, result } = panel;
  options(from, [["Containers", containers(model)], ["", [[HOST, "this host"]]]], trace.from);
  options(to, [
    ["Containers", containers(model)], ["Services", services(model)], ["", [[HOST, "this host"], [OTHER, "another address"]]],
  ], trace.to);
  if (panel.at !== to.value) { // what has been typed stays
    panel.at = to.value;
    if (port.value === panel.filled) port.value = panel.filled = portOf(model, to.value);
  }
  address.parentElement.hidden = to.value !== OTHER;
  address.required = to.value === OTHER;
  port.parentElement.hidden = proto.value === "icmp";
  port.required = proto.value !== "icmp";
  form.model = model;
  if (answer?.shown !== answer) {
    result.replaceChildren(...(answer ? shown(answer) : []));
    if (answer) answer.shown = answer;
  }
  return panel.whole;
}

function portOf(model, to) {
  // The port of a service's first instance, "" for others.
  const service = model.services.find((one) => `service ${one.name}` === to);
  return String(service?.Instances.find((one) => one.Port)?.Port || "");
}

function make(go) {
  const field = (name, control) => element("label", {}, element("span", {}, name), control);
  const from = element("select", { "data-key": "trace from" });
  const to = element("select", { "data-key": "trace to" });
  const address = element("input", { autocomplete: "off", spellcheck: "false", placeholder: "192.0.2.7", maxlength: 253, "data-key": "trace address" });
  const port = element("input", { type: "number", min: 1, max: 65535, inputmode: "numeric", "data-key": "trace port" });
  const proto = element("select", { "data-key": "trace proto" }, Object.entries(PROTOCOLS).map(([value, name]) => element("option", { value }, name)));
  const result = element("div", { class: "hops", "aria-live": "polite" });
  const form = element("form", { class: "trace" }, field("From", from), field("To", to), field("Address", address),
    field("Protocol", proto), field("Port", port), element("button", { "data-key": "trace" }, "Trace"));
  const chosen = () => go({ trace: { from: from.value, to: to.value } });
  for (const one of [from, to, proto]) one.addEventListener("change", chosen);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    follow(form.model, { from: from.value, to: to.value, address: address.value.trim(), port: port.value, proto: proto.value },
      () => go({}));
  });
  const about = element("p", { class: "faint" }, "Follows the first packet of a connection by this host’s routes, bridges and firewall rules. Nothing is sent.");
  return { whole: element("div", { class: "tracing" }, about, form, result), form, from, to, address, port, proto, result, at: "", filled: "" };
}

function containers(model) {
  return model.containers.map((one) => [`container ${one.id}`, one.name]);
}

function services(model) {
  return model.services.filter((one) => one.name !== OWN && target(one)).map((one) => [`service ${one.name}`, one.name]);
}

function target(service) {
  // What clients of a service connect to: its virtual address, else that of an instance.
  return service.Virtual[0] ?? plain(service.Instances.find((one) => one.Addresses[0])?.Addresses[0] ?? "");
}

function options(select, groups, wanted) {
  const names = JSON.stringify(groups);
  if (select.dataset.names !== names) {
    const before = select.value;
    select.dataset.names = names;
    select.replaceChildren(...groups.filter(([, rows]) => rows.length).map(([label, rows]) => {
      const made = rows.map(([value, text]) => element("option", { value }, text));
      return label ? element("optgroup", { label }, made) : made;
    }).flat());
    select.value = before;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }
  if (wanted && select.dataset.wanted !== wanted) {
    select.value = wanted;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    else select.dataset.wanted = wanted;
  } else if (!wanted) select.dataset.wanted = "";
}

function end(value, address, model) {
  if (value === OTHER) return address;
  if (value.startsWith("service ")) return target(model.services.find((one) => `service ${one.name}` === value));
  return value.replace(/^container /, "");
}

async function follow(model, asked, done) {
  const query = new URLSearchParams({
    from: end(asked.from, "", model), to: end(asked.to, asked.address, model), proto: asked.proto,
    ...(asked.proto === "icmp" ? {} : { port: asked.port }),
  });
  const own = answer = { pending: true };
  done();
  let next;
  try {
    const response = await fetch(`/v1/weft/trace?${query}`);
    const text = await response.text();
    next = response.ok ? { found: JSON.parse(text) } : { error: text.slice(0, 500) };
  } catch (error) {
    next = { error: `no answer from the agent: ${error.message}` };
  }
  if (answer !== own) return; // another one has been asked for
  answer = next;
  done();
}

function shown({ pending, error, found }) {
  if (pending) return [element("p", { class: "faint" }, "Following the packet …")];
  if (error) return [verdict("critical", error)];
  const last = found.Hops.at(-1);
  const lost = !found.Delivered;
  const end = lost ? `Not delivered: ${last?.What ?? "it is not sent"}` : found.Refused ? "Refused: nothing listens there" : "Delivered";
  const unsure = !lost && found.Hops.some((hop) => !hop.Certain) ? ", as far as the rules tell" : "";
  return [
    verdict(lost ? "critical" : found.Refused ? "warning" : "passing", `${end}${unsure}`),
    element("p", {}, code(found.Packet)),
    element("ol", {}, found.Hops.map((hop) => element("li", { class: lost && hop === last ? "lost" : hop.Certain ? "" : "unsure" },
      element("p", {}, element("span", { class: "tag" }, hop.Place), " ", hop.What),
      hop.Rules.length ? element("pre", { tabindex: "0", "aria-label": "Rules" }, hop.Rules.join("\n")) : null,
      hop.Command ? element("p", { class: "faint" }, code(hop.Command)) : null))),
  ];
}

function verdict(status, text) {
  return element("h2", { class: `state ${status}` }, mark(status), text);
}
