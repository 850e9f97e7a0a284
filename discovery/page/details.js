// The detail pane: everything about the selected object, and how to reach it.

import { networkName, plain, short } from "./model.js";
import { code, counts, element, endpoint, link, list, mark, state, STATUSES, when } from "./parts.js";

const MOST = 50; // rows per section
const LABEL = /^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?$/;

export function detailPath(selected) {
  // The API path with the details of the selection; "" for none.
  if (selected?.kind === "service") return `/v1/health/service/${encodeURIComponent(selected.id)}`;
  if (selected?.kind === "instance") return `/v1/health/service/${encodeURIComponent(parse(selected.id)[0])}`;
  if (selected?.kind === "node") return `/v1/health/node/${encodeURIComponent(selected.id)}`;
  return "";
}

function parse(key) {
  try {
    const found = JSON.parse(key);
    return Array.isArray(found) ? found.map(String) : ["", "", ""];
  } catch {
    return ["", "", ""];
  }
}

export function describe(selected, model, more) {
  // [kind, title, sections], or null if the object does not exist (any more). more is the response of detailPath.
  return KINDS[selected.kind]?.(selected.id, model, more) ?? null;
}

const KINDS = {
  service(id, model, more) {
    const service = model.services.find((one) => one.name === id);
    if (!service) return null;
    const sorted = STATUSES.flatMap((status) => service.Instances.filter((one) => one.Status === status)); // worst first
    const rest = service.Instances.length + service.Omitted - MOST;
    return ["Service", id, [
      element("p", {}, counts(service.count)),
      element("p", { class: "actions" }, trace("to", `service ${id}`)),
      section("Addresses", addresses(service, model.data)),
      section(`Instances (${service.Instances.length + service.Omitted})`,
        sorted.slice(0, MOST).map((one) => card(one, model, found(more, one))),
        rest > 0 ? element("p", { class: "faint" }, `and ${rest} more`) : null),
    ]];
  },
  instance(id, model, more) {
    const [service, node, name] = parse(id);
    const owner = model.services.find((one) => one.name === service);
    const one = owner?.Instances.find((instance) => instance.Node === node && instance.ID === name);
    if (!one) return null;
    return ["Instance", one.title, [
      element("p", {}, state(one.Status, one.Checked), " of ", link("service", service, service)),
      section("Service addresses", addresses(owner, model.data)),
      card(one, model, found(more, one), true),
    ]];
  },
  container(id, model) {
    const container = model.containers.find((one) => one.id === id);
    if (!container) return null;
    return ["Container", container.name, [
      pairs([["Id", code(id)]]),
      element("p", { class: "actions" }, trace("from", `container ${id}`), trace("to", `container ${id}`)),
      ...container.attachments.map((one) => section(["On ", link("network", one.Network, one.Network)], pairs([
        ["Interface", one.Interface],
        ["Addresses", one.Addresses.map((address) => code(plain(address)))],
        ["Published", one.Ports.map((port) => code(short(port)))],
        ["Attached", when(one.Since, model.data.Started)],
        ["Names", one.Names.map((name) => code(name))],
        ["Full name", one.Domain && one.Names[0] ? code(`${one.Names[0]}.${one.Domain}`) : null],
      ]))),
      section("Services", container.instances.length
        ? container.instances.map((one) => line(one))
        : element("p", { class: "faint" }, "None registered.")),
    ]];
  },
  network(id, model) {
    const network = model.networks.find((one) => one.name === id && one.name);
    if (!network) return null;
    const containers = model.containers.filter((one) => one.attachments.some((attachment) => attachment.Network === id));
    const services = model.services.filter((one) => one.networks.includes(id));
    return ["Network", id, [
      pairs([
        ["Driver", network.Driver],
        ["Subnets", network.Subnets.map((subnet) => code(subnet))],
        ["In use", network.Pools.map((one) => element("p", {}, `${one.Used}${one.Size < 2 ** 32 ? ` of ${one.Size}` : ""} addresses of `, element("code", {}, one.Ranges)))],
        ["Gateways", network.Gateways.map((address) => code(address))],
        ["Names", network.Domains.length ? network.Domains.map((domain) => element("code", {}, `NAME.${domain}`)) : null],
        ["External access", network.here ? (network.Internal ? "no: the network is internal" : "yes") : null],
        ["Location", network.here ? null : "on other nodes"],
      ]),
      section(`Containers (${containers.length})`,
        containers.slice(0, MOST).map((one) => element("p", { class: "line" },
          one.status === "none" ? null : mark(one.status), link("container", one.id, one.name),
          element("span", { class: "faint code" }, list(one.attachments.filter((attachment) => attachment.Network === id).flatMap((attachment) => attachment.Addresses.map(plain)))))),
        containers.length > MOST ? element("p", { class: "faint" }, `and ${containers.length - MOST} more`) : null),
      section(`Services (${services.length})`, services.slice(0, MOST).map((one) =>
        element("p", { class: "line" }, mark(one.status), link("service", one.name, one.name)))),
    ]];
  },
  node(id, model, more) {
    const node = model.nodes.find((one) => one.Name === id);
    if (!node) return null;
    const instances = model.services.flatMap((one) => one.Instances.filter((instance) => instance.Node === id));
    const { Domain, Node } = model.data;
    return ["Node", id, [
      element("p", {}, state(node.Status), id === Node ? " — this agent’s node" : ""),
      pairs([
        ["Address", code(node.Address)],
        ["Name", Domain && LABEL.test(id) ? code(`${id}.node.${Domain}`) : null],
        ["Changed", when(node.Changed, model.data.Started)],
      ]),
      section("Checks", checks((more ?? []).filter((check) => !check.ServiceID))),
      section(`Services (${instances.length})`, instances.slice(0, MOST).map((one) => line(one)),
        instances.length > MOST ? element("p", { class: "faint" }, `and ${instances.length - MOST} more`) : null),
    ]];
  },
};

function trace(end, id) {
  return element("button", { type: "button", "data-trace": end, "data-id": id, "data-key": `trace ${end} this` }, `Trace ${end} here`);
}

function section(title, ...content) {
  return element("section", {}, element("h3", {}, title), content);
}

function pairs(items) {
  const rows = items.filter(([, value]) => value && !(Array.isArray(value) && !value.length));
  return element("dl", {}, rows.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function addresses(service, { Domain }) {
  const name = LABEL.test(service.name) && Domain;
  const rows = [
    ["Name", name ? code(`${service.name}.service.${Domain}`) : null],
    ["Virtual name", name && service.Virtual.length ? code(`${service.name}.virtual.${Domain}`) : null],
    ["Virtual address", service.Virtual.map((address) => code(address))],
  ];
  if (rows.some(([, value]) => (Array.isArray(value) ? value.length : value))) return pairs(rows);
  return element("p", { class: "faint" }, Domain ? "See the addresses below: the name is not a valid DNS name." : "See the addresses below: DNS is disabled.");
}

function found(more, one) {
  return (more ?? []).find((health) => health.Node?.Node === one.Node && health.Service?.ID === one.ID);
}

function line(one) {
  return element("p", { class: "line" }, mark(one.Status), link("instance", one.key, one.service),
    one.Checked ? null : element("span", { class: "faint" }, "no check"),
    element("span", { class: "faint code" }, endpoint(one.Addresses[0] ?? "", one.Port)));
}

function card(one, model, health, whole = false) {
  const service = health?.Service ?? {};
  const { Passing = 1, Warning = 1 } = service.Weights ?? {};
  const ports = (service.Ports ?? []).map((port) => `${port.Name} ${port.Port}`);
  return element("article", { class: `card ${one.Status}` },
    whole ? null : element("h4", {}, mark(one.Status), link("instance", one.key, one.title)),
    pairs([
      ["Address", one.Addresses.map((address) => code(endpoint(address, one.Port)))],
      ["Ports", ports.length ? ports.join(", ") : null],
      ["Protocol", one.Protocol],
      ["Health", one.Checked ? null : "no check, so it counts as passing"],
      ["Container", one.container ? link("container", one.container, model.containers.find((container) => container.id === one.container)?.name ?? one.container) : null],
      ["Network", one.network ? link("network", one.network, networkName(one.network)) : null],
      ["Node", link("node", one.Node, one.Node)],
      ["Tags", (service.Tags ?? []).map((tag) => element("span", { class: "tag" }, tag))],
      ["Weights", Passing !== 1 || Warning !== 1 ? `${Passing} passing, ${Warning} warning` : null],
      ["Id", one.ID !== one.title ? one.ID : null],
      ["Meta", Object.entries(service.Meta ?? {}).filter(([name, value]) => name !== "network" || value !== one.network)
        .map(([name, value]) => element("span", { class: "tag" }, `${name}: ${value}`))],
      ["Changed", when(one.Changed, model.data.Started)],
    ]),
    // Passing node checks are not repeated for each instance.
    health ? checks(health.Checks.filter((check) => whole || check.ServiceID || check.Status !== "passing")) : null);
}

function checks(all) {
  if (!all.length) return element("p", { class: "faint" }, "No checks, so it is passing.");
  return all.slice(0, MOST).map((check) => element("div", { class: "check" },
    element("p", { class: "line" }, state(check.Status), element("strong", {}, check.Name || check.CheckID),
      element("span", { class: "faint" }, [check.Type, check.Interval && `every ${check.Interval}`].filter(Boolean).join(", "))),
    check.Notes ? element("p", {}, check.Notes) : null,
    check.Output ? element("pre", { tabindex: "0" }, check.Output) : null));
}
