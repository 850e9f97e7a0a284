// Calls every method of the npm package "consul" against weft's agent; run by run.py next to its node_modules.
// Prints "ok NAME" or "failed NAME: why" for each.

const assert = require("node:assert/strict");
const Consul = require("consul");

const consul = new Consul({ host: "127.0.0.1", port: 8500 });
const NODE = "client-tests";
const cases = [];
const method = (name, call) => cases.push([name, call]);
const refused = (status, text) => (error) =>
  error.statusCode === status && (!text || String(error.message).includes(text));
const names = (list, key) => list.map((one) => one[key]);

async function until(test) {
  const end = Date.now() + 30000;
  for (;;) {
    const found = await test();
    if (found) return found;
    assert(Date.now() < end, "the condition did not become true");
    await new Promise((done) => setTimeout(done, 50));
  }
}

// Agent

method("agent.self", async () => {
  const found = await consul.agent.self();
  assert.equal(found.Config.NodeName, NODE);
  assert.equal(found.Config.Datacenter, "dc1");
  assert.equal(found.Config.Server, true);
  assert.equal(found.Member.Name, NODE);
});
method("agent.members", async () => assert.deepEqual(names(await consul.agent.members(), "Name"), [NODE]));
method("agent.reload", async () => consul.agent.reload());
method("agent.maintenance", async () => {
  await consul.agent.maintenance({ enable: true, reason: "upgrade" });
  assert.equal((await consul.agent.checks())._node_maintenance.Status, "critical");
  await consul.agent.maintenance(false);
  assert.equal((await consul.agent.checks())._node_maintenance, undefined);
});
method("agent.join", async () => consul.agent.join("127.0.0.1"));
method("agent.forceLeave of an unknown node", async () =>
  assert.rejects(consul.agent.forceLeave("gone"), /No node found/));
method("agent.service.register", async () => {
  await consul.agent.service.register("plain");
  await consul.agent.service.register({
    name: "web", id: "web-1", address: "127.0.0.1", port: 80, tags: ["v1"], meta: { zone: "a" },
    check: { http: "http://127.0.0.1:8500/v1/status/leader", interval: "200ms", notes: "self" },
  });
  const found = await consul.agent.services();
  assert.equal(found.plain.Service, "plain");
  assert.deepEqual(found["web-1"].Tags, ["v1"]);
  assert.equal(found["web-1"].Meta.zone, "a");
  assert.equal((await consul.agent.checks())["service:web-1"].Notes, "self");
});
method("agent.service.register refuses a missing name", async () =>
  assert.rejects(consul.agent.service.register({ port: 1 }), /name required/));
method("agent.service.list", async () => assert("web-1" in (await consul.agent.service.list())));
method("agent.service.list by filter", async () =>
  assert.deepEqual(Object.keys(await consul.agent.service.list({ filter: 'Service == "web"' })), ["web-1"]));
method("agent.service.maintenance", async () => {
  await consul.agent.service.maintenance({ id: "web-1", enable: true });
  assert.equal((await consul.agent.checks())["_service_maintenance:web-1"].Status, "critical");
  await consul.agent.service.maintenance({ id: "web-1", enable: false });
});
method("agent.service.deregister", async () => {
  await consul.agent.service.deregister("plain");
  assert.equal((await consul.agent.services()).plain, undefined);
  await assert.rejects(consul.agent.service.deregister("plain"), refused(404));
});
method("agent.check.register", async () => {
  await consul.agent.check.register({ name: "beat", ttl: "30s", notes: "n" });
  await consul.agent.check.register({ name: "script", args: ["true"], interval: "30s" });
  assert.equal((await consul.agent.check.list()).beat.Status, "critical");
});
for (const [name, status] of [["pass", "passing"], ["warn", "warning"], ["fail", "critical"]])
  method(`agent.check.${name}`, async () => {
    await consul.agent.check[name]({ id: "beat", note: `said ${name}` });
    const found = (await consul.agent.checks()).beat;
    assert.equal(found.Status, status);
    assert.equal(found.Output, `said ${name}`);
  });
method("agent.check.deregister", async () => {
  await consul.agent.check.deregister("beat");
  await consul.agent.check.deregister("script");
  assert.deepEqual(Object.keys(await consul.agent.checks()), ["service:web-1"]);
});

// Catalog, health, status

method("catalog.datacenters", async () => assert.deepEqual(await consul.catalog.datacenters(), ["dc1"]));
method("catalog.register", async () => {
  await consul.catalog.register({
    node: "outside", address: "192.0.2.7",
    service: { service: "db", id: "db-1", port: 5432, tags: ["primary"] },
    check: { name: "ping", checkid: "ping", serviceid: "db-1", status: "passing" },
  });
});
method("catalog.node.list", async () =>
  assert.deepEqual(names(await consul.catalog.node.list(), "Node").sort(), [NODE, "outside"]));
method("catalog.nodes", async () => assert.equal((await consul.catalog.nodes()).length, 2));
method("catalog.node.services", async () =>
  assert.equal((await consul.catalog.node.services("outside")).Services["db-1"].Port, 5432));
method("catalog.service.list", async () =>
  assert.deepEqual(await consul.catalog.service.list(), { consul: [], db: ["primary"], web: ["v1"] }));
method("catalog.services", async () => assert("db" in (await consul.catalog.services("dc1"))));
method("catalog.services of another datacenter", async () =>
  assert.rejects(consul.catalog.services("dc2"), refused(500, "No path to datacenter")));
method("catalog.service.nodes", async () => {
  const [found] = await consul.catalog.service.nodes({ service: "db", tag: "primary" });
  assert.equal(found.Address, "192.0.2.7");
  assert.equal(found.ServicePort, 5432);
});
method("catalog.connect.nodes", async () => assert.deepEqual(await consul.catalog.connect.nodes("db"), []));
method("health.node", async () => assert.deepEqual(names(await consul.health.node("outside"), "CheckID"), ["ping"]));
method("health.checks", async () => {
  await until(async () => (await consul.health.checks("web")).every((one) => one.Status === "passing"));
});
method("health.service", async () => {
  const [found] = await consul.health.service({ service: "db", passing: true });
  assert.equal(found.Node.Node, "outside");
  assert.equal(found.Service.ID, "db-1");
  assert.equal(found.Checks[0].Status, "passing");
});
method("health.state", async () =>
  assert(names(await consul.health.state("passing"), "CheckID").includes("serfHealth")));
method("status.leader", async () => assert.match(await consul.status.leader(), /^127\.0\.0\.1:\d+$/));
method("status.peers", async () => assert.equal((await consul.status.peers()).length, 1));

// Keys, sessions, transactions

method("kv.set and get", async () => {
  assert.equal(await consul.kv.set("a/one", "1"), true);
  assert.equal(await consul.kv.set({ key: "a/two", value: "2", flags: 7 }), true);
  const found = await consul.kv.get("a/two");
  assert.equal(found.Value, "2");
  assert.equal(found.Flags, 7);
});
method("kv.set of bytes", async () => {
  const value = Buffer.from([0, 255, 128]);
  await consul.kv.set("bytes", value);
  assert.deepEqual(await consul.kv.get({ key: "bytes", raw: true }), value);
});
method("kv.get of a missing key", async () => assert.equal(await consul.kv.get("missing"), undefined));
method("kv.get recurse", async () =>
  assert.deepEqual(names(await consul.kv.get({ key: "a/", recurse: true }), "Key"), ["a/one", "a/two"]));
method("kv.keys", async () => {
  assert.deepEqual(await consul.kv.keys("a/"), ["a/one", "a/two"]);
  assert.deepEqual(await consul.kv.keys({ key: "", separator: "/" }), ["a/", "bytes"]);
});
method("kv.set cas", async () => {
  const { ModifyIndex } = await consul.kv.get("a/one");
  assert.notEqual(await consul.kv.set({ key: "a/one", value: "x", cas: "0" }), true);
  assert.equal(await consul.kv.set({ key: "a/one", value: "x", cas: String(ModifyIndex) }), true);
});
method("kv.del", async () => {
  await consul.kv.del("bytes");
  await consul.kv.del({ key: "a/", recurse: true });
  await assert.rejects(consul.kv.keys("a/"), refused(404));
});
let session;
method("session.create", async () => {
  session = (await consul.session.create({ name: "lock", ttl: "30s", lockdelay: "0s", behavior: "release" })).ID;
  assert.match(session, /^[0-9a-f-]{36}$/);
});
method("session.create with lock delay and checks", async () => {
  await until(async () => (await consul.agent.checks())["service:web-1"].Status === "passing");
  const { ID } = await consul.session.create({ lockdelay: "2s", servicechecks: [{ id: "service:web-1" }] });
  assert.equal((await consul.session.info(ID)).LockDelay, 2e9);
  await consul.session.destroy(ID);
});
method("session.info and get", async () => {
  assert.equal((await consul.session.info(session)).Name, "lock");
  assert.equal((await consul.session.get(session)).TTL, "30s");
  assert.equal(await consul.session.info("00000000-0000-0000-0000-000000000000"), undefined);
});
method("session.list", async () => assert.deepEqual(names(await consul.session.list(), "ID"), [session]));
method("session.node", async () => assert.deepEqual(names(await consul.session.node(NODE), "ID"), [session]));
method("session.renew", async () => assert.equal((await consul.session.renew(session))[0].ID, session));
method("kv.set acquire and release", async () => {
  assert.equal(await consul.kv.set({ key: "lock", value: "me", acquire: session }), true);
  assert.equal((await consul.kv.get("lock")).Session, session);
  assert.equal(await consul.kv.set({ key: "lock", value: "", release: session }), true);
  assert.equal((await consul.kv.get("lock")).Session, undefined);
});
method("session.destroy", async () => {
  await consul.kv.set({ key: "lock", value: "me", acquire: session });
  await consul.session.destroy(session);
  assert.equal((await consul.kv.get("lock")).Session, undefined);
});
method("transaction.create", async () => {
  const value = Buffer.from("v").toString("base64");
  const found = await consul.transaction.create([
    { KV: { Verb: "set", Key: "t", Value: value } },
    { KV: { Verb: "get", Key: "t" } },
    { Node: { Verb: "set", Node: { Node: "txn", Address: "192.0.2.8" } } },
  ]);
  assert.equal(found.Errors, null);
  assert.equal(found.Results.length, 3);
  assert.equal(found.Results[1].KV.Value, value);
});
method("transaction.create that fails", async () =>
  assert.rejects(consul.transaction.create([{ KV: { Verb: "get", Key: "missing" } }]), refused(409)));

// Prepared queries, events, ACLs, watches

let query;
method("query.create", async () => {
  query = (await consul.query.create({ name: "db", service: { service: "db", tags: ["primary"] } })).ID;
  assert.match(query, /^[0-9a-f-]{36}$/);
});
method("query.list", async () => assert.deepEqual(names(await consul.query.list(), "ID"), [query]));
method("query.get", async () => assert.equal((await consul.query.get(query)).Name, "db"));
method("query.update", async () => {
  await consul.query.update({ query, name: "db", service: { service: "db" }, dns: { ttl: "5s" } });
  assert.equal((await consul.query.get(query)).DNS.TTL, "5s");
});
method("query.execute", async () =>
  assert.deepEqual((await consul.query.execute("db")).Nodes.map((one) => one.Service.ID), ["db-1"]));
method("query.explain", async () => assert.equal((await consul.query.explain("db")).Query.ID, query));
method("query.destroy", async () => {
  await consul.query.destroy(query);
  assert.deepEqual(await consul.query.list(), []);
});
method("event.fire", async () => {
  const found = await consul.event.fire("deploy", "v2");
  assert.equal(found.Name, "deploy");
  assert.equal(found.Payload, "v2");
});
method("event.list", async () => assert.equal((await consul.event.list("deploy"))[0].Payload, "v2"));
method("acl.bootstrap", async () =>
  assert.rejects(consul.acl.bootstrap(), (error) => [401, 403].includes(error.statusCode)));
method("acl.replication", async () =>
  assert.rejects(consul.acl.replication(), (error) => [401, 403].includes(error.statusCode)));
method("watch", async () => {
  const seen = [];
  const watch = consul.watch({ method: consul.kv.get, options: { key: "watched", wait: "10s" } });
  watch.on("change", (found) => seen.push(found?.Value));
  watch.on("error", (error) => seen.push(error));
  await until(() => seen.length === 1);
  await consul.kv.set("watched", "1");
  await until(() => seen.includes("1"));
  assert.equal(watch.isRunning(), true);
  watch.end();
  assert.equal(watch.isRunning(), false);
});
method("catalog.deregister", async () => {
  await consul.catalog.deregister("outside");
  await consul.catalog.deregister({ node: "txn" });
  assert.deepEqual(names(await consul.catalog.nodes(), "Node"), [NODE]);
});

(async () => {
  for (const [name, call] of cases) {
    try {
      await call();
      console.log(`ok ${name}`);
    } catch (error) {
      console.log(`failed ${name}: ${String(error.message).split("\n").join(" ").slice(0, 300)}`);
    }
  }
  process.exit(0);
})();
