// The view model: the agent's overview document, joined and indexed for the views.

import { STATUSES } from "./parts.js";

export const OWN = "consul"; // the service that every agent registers
export const HOSTS = ""; // pseudo network of instances outside of container networks

const naturally = new Intl.Collator(undefined, { numeric: true });

export function buildModel(data) {
  const attachments = new Map(data.Attachments.map((one) => [one.ID, one]));
  const owners = new Map(); // by address; null where attachments of several networks have it
  const containers = new Map();
  for (const one of data.Attachments) {
    for (const address of one.Addresses.map(plain)) owners.set(address, owners.has(address) ? null : one);
    const found = containers.get(one.Container) ?? { id: one.Container, name: "", attachments: [], instances: [], words: [] };
    containers.set(one.Container, found);
    found.attachments.push(one);
    found.name ||= one.Names[0] ?? "";
    found.words.push(one.Container, one.Network, ...one.Names, ...one.Addresses, ...one.Ports);
  }
  for (const one of containers.values()) one.name ||= one.id.slice(0, 12);
  const networks = new Map(data.Networks.map((one) => [one.Name, { ...one, name: one.Name, here: true, cells: [] }]));
  // An instance that was registered by hand on this host is the container's whose address it has.
  for (const one of data.Services.flatMap((service) => service.Instances)) {
    if (!one.Owner && one.Node === data.Node) one.Owner = owners.get(one.Addresses[0])?.ID ?? "";
  }
  const services = data.Services.map((service) => join(service, attachments, containers, networks));
  for (const one of data.Attachments) {
    const container = containers.get(one.Container);
    if (container.instances.some((found) => found.Owner === one.ID)) continue;
    networks.get(one.Network)?.cells.push({
      key: `container ${one.Container} ${one.ID}`, kind: "container", id: one.Container, service: "", status: "none",
      name: container.name, address: plain(one.Addresses[0]), ports: one.Ports, container: one.Container,
      words: container.words,
    });
  }
  for (const one of containers.values()) {
    one.status = worst(one.instances.map((instance) => instance.Status)) || "none";
  }
  const onNode = new Map();
  for (const one of services.flatMap((service) => service.Instances)) onNode.set(one.Node, (onNode.get(one.Node) ?? 0) + 1);
  const sorted = [...networks.values()].sort((a, b) => (a.name === HOSTS) - (b.name === HOSTS) || naturally.compare(a.name, b.name));
  return {
    data, services, networks: sorted, attachments,
    containers: [...containers.values()].sort((a, b) => naturally.compare(a.name, b.name)),
    nodes: data.Nodes,
    onNode,
    total: count(services.flatMap((one) => one.Instances)),
  };
}

function join(service, attachments, containers, networks) {
  const words = [service.Name, ...service.Tags, ...service.Virtual];
  const places = new Set();
  for (const instance of service.Instances) {
    const attachment = attachments.get(instance.Owner);
    const container = attachment && containers.get(attachment.Container);
    instance.service = service.Name;
    instance.container = container?.id ?? "";
    instance.network = attachment?.Network ?? (instance.Owner || networks.has(instance.Network) ? instance.Network : HOSTS);
    instance.title = container?.name ?? instance.ID;
    instance.key = JSON.stringify([service.Name, instance.Node, instance.ID]);
    instance.words = [...words, instance.ID, instance.Node, instance.network, ...instance.Addresses, ...(container?.words ?? [])];
    container?.instances.push(instance);
    if (container) container.words.push(service.Name, instance.ID, ...service.Tags);
    if (service.Name === OWN) continue;
    places.add(instance.network);
    if (!networks.has(instance.network)) {
      const hosts = instance.network === HOSTS;
      networks.set(instance.network, { name: instance.network, here: hosts, Driver: "", Subnets: [], Pools: [], Gateways: [], Domains: [], Internal: false, Attachments: 0, cells: [] });
    }
    networks.get(instance.network).cells.push({
      key: `instance ${instance.key}`, kind: "instance", id: instance.key, service: service.Name, status: instance.Status,
      name: instance.title, address: instance.Addresses[0] ?? "", port: instance.Port, ports: attachment?.Ports ?? [], container: instance.container,
      node: instance.Node, words: instance.words,
    });
  }
  const found = count(service.Instances);
  return {
    ...service, name: service.Name, count: found, networks: [...places].sort(naturally.compare),
    status: STATUSES.find((one) => found[one]) ?? "none",
    changed: Math.max(0, ...service.Instances.map((one) => one.Changed)),
    words: [...words, ...service.Instances.flatMap((one) => one.words)],
  };
}

export function count(instances) {
  const found = {};
  for (const one of instances) found[one.Status] = (found[one.Status] ?? 0) + 1;
  return found;
}

export function worst(statuses) {
  return STATUSES.find((one) => statuses.includes(one)) ?? "";
}

export function plain(address = "") {
  return address.replace(/\/\d+$/, "");
}

export function matcher(query) {
  // Every word of the query must occur in one of the object's search terms.
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (words) => !wanted.length || ((all) => wanted.every((one) => all.includes(one)))(words.join("\n").toLowerCase());
}

export function filled(network) {
  // "3 of 253 addresses" for each range of IPv4; a range of IPv6 is never full.
  return network.Pools.filter((one) => one.Size < 2 ** 32).map((one) => `${one.Used} of ${one.Size} addresses`);
}

export function short(port) {
  // "8080→80" of "8080->80/tcp": only protocols other than TCP are written.
  return port.replace("->", "→").replace(/\/tcp$/, "");
}

export function networkName(name) {
  return name === HOSTS ? "On hosts" : name;
}
