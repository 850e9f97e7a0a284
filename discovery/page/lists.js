// The list views: tables of services, containers, networks and nodes, filtered.

import { filled, networkName, plain, short } from "./model.js";
import { counts, element, link, list, mark, some, state, when } from "./parts.js";

export const MOST = 200; // rows per page

const sign = (status) => (status === "none" ? null : mark(status));
const named = (kind, id, name, status) => element("span", { class: "named" }, sign(status), link(kind, id, name));

const TABLES = {
  services: {
    rows: (model) => model.services,
    keep: (one, filters, matches) => matches(one.words)
      && (!filters.health || one.count[filters.health])
      && (filters.network === null || one.Instances.some((instance) => instance.network === filters.network)),
    kind: "service", id: (one) => one.name,
    columns: [
      ["Service", (one) => named("service", one.name, one.name, one.status)],
      ["Health", (one) => counts(one.count)],
      ["Virtual addresses", (one) => list(one.Virtual), "code wide"],
      ["Networks", (one) => list(some(one.networks.map(networkName), 4, "more")), "wide"],
      ["Tags", (one) => list(some(one.Tags, 4, "")), "wide"],
      ["Changed", (one, model) => when(one.changed, model.data.Started), "wide"],
    ],
  },
  containers: {
    rows: (model) => model.containers,
    keep: (one, filters, matches) => matches(one.words)
      && (!filters.health || one.instances.some((instance) => instance.Status === filters.health))
      && (filters.network === null || one.attachments.some((attachment) => attachment.Network === filters.network)),
    kind: "container", id: (one) => one.id,
    columns: [
      ["Container", (one) => named("container", one.id, one.name, one.status)],
      ["Addresses", (one) => list(some(one.attachments.flatMap((attachment) => attachment.Addresses.map(plain)), 4, "more")), "code"],
      ["Networks", (one) => list([...new Set(one.attachments.map((attachment) => attachment.Network))]), "wide"],
      ["Published", (one) => list(some([...new Set(one.attachments.flatMap((attachment) => attachment.Ports.map(short)))], 4, "more")), "code wide"],
      ["Services", (one) => list(some([...new Set(one.instances.map((instance) => instance.service))], 4, "more")), "wide"],
      ["Id", (one) => one.id.slice(0, 12), "code wide"],
      ["Attached", (one, model) => when(Math.max(...one.attachments.map((attachment) => attachment.Since)), model.data.Started), "wide"],
    ],
  },
  networks: {
    rows: (model) => model.networks.filter((one) => one.name),
    keep: (one, filters, matches) => matches([one.name, one.Driver, ...one.Subnets, ...one.Gateways, ...one.Domains])
      && (!filters.health || one.cells.some((cell) => cell.status === filters.health))
      && (filters.network === null || one.name === filters.network),
    kind: "network", id: (one) => one.name,
    columns: [
      ["Network", (one) => link("network", one.name, one.name)],
      ["Driver", (one) => one.Driver || "–"],
      ["Subnets", (one) => list(one.Subnets), "code"],
      ["Attachments", (one) => String(one.Attachments), "amount"],
      ["In use", (one) => list(filled(one)), "wide"],
      ["Gateways", (one) => list(one.Gateways), "code wide"],
      ["Domains", (one) => list(one.Domains), "code wide"],
      ["External access", (one) => (one.here ? (one.Internal ? "no, internal" : "yes") : "on other nodes"), "wide"],
    ],
  },
  events: {
    rows: (model) => model.events,
    keep: (one, filters, matches) => matches([one.Text]) && (!filters.health || (filters.health === "critical" && one.Failed)),
    kind: undefined, id: () => undefined,
    columns: [
      ["When", (one, model) => when(one.Time, model.data.Started)],
      ["Event", (one) => [mark(one.Failed ? "critical" : "none"), ` ${one.Event}`]],
      ["What", (one) => one.Text.slice(one.Event.length).trim() || "–"],
    ],
  },
  nodes: {
    rows: (model) => model.nodes,
    keep: (one, filters, matches) => matches([one.Name, one.Address]) && (!filters.health || one.Status === filters.health),
    kind: "node", id: (one) => one.Name,
    columns: [
      ["Node", (one) => named("node", one.Name, one.Name, one.Status)],
      ["Health", (one) => state(one.Status)],
      ["Address", (one) => one.Address, "code"],
      ["Services", (one, model) => String(model.onNode.get(one.Name) ?? 0), "amount"],
      ["Changed", (one, model) => when(one.Changed, model.data.Started), "wide"],
    ],
  },
};

export function filteredRows(view, model, filters, matches) {
  const table = TABLES[view];
  return table.rows(model).filter((one) => table.keep(one, filters, matches));
}

export function table(view, rows, model, selected, most, more) {
  const { kind, id, columns } = TABLES[view];
  // Where the window is narrow, a row is a card and each cell has its column's name.
  const cell = (name, [label, make, type], one) => element(name, { class: type, "data-label": label, ...(name === "th" ? { scope: "row" } : {}) }, make(one, model));
  const body = rows.slice(0, most).map((one) => element("tr", {
    "data-kind": kind, "data-id": id(one), class: selected?.kind === kind && selected.id === id(one) ? "chosen" : undefined,
  }, columns.map((column, number) => cell(number ? "td" : "th", column, one))));
  return [
    element("table", {},
      element("thead", {}, element("tr", {}, columns.map(([name, , type]) => element("th", { class: type, scope: "col" }, name)))),
      element("tbody", {}, body)),
    rows.length > most
      ? element("button", { type: "button", class: "more", "data-key": "more", click: more }, `Show ${Math.min(MOST, rows.length - most)} more of ${rows.length}`)
      : null,
  ].filter(Boolean);
}
