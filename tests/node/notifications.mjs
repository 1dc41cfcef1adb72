// Clients of static/example/notifications.js outside of a browser, as a child of a test. Argument: where the module is.
// Each line on its standard input is {"id", "js"}: an expression of `Notifications`, `SockJS` and the object `clients`;
// what it comes to is printed as {"id", "value"}, or {"id", "error"}.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

// Found by NODE_PATH, which `import` does not look at.
const require = createRequire(import.meta.url);
const { WebSocket } = require("ws");
const SockJS = require("sockjs-client");

// As a browser's, which throws nothing that nobody listens to.
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url);
    this.on("error", () => {});
  }
};
const { Notifications } = await import(process.argv[2]);
const clients = {};

const when = (client, holds) =>
  new Promise((resolve) => {
    const look = () => holds(client) && resolve();
    for (const name of ["list", "counts", "state", "reconnected"]) client.on(name, () => setTimeout(look));
    look();
  });
const state = ({ items, counts }) => [items.map(({ _id, title, seen, type }) => [_id, title, seen, type]), counts];

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const { id, js } = JSON.parse(line);
    try {
      const evaluate = new Function("Notifications", "SockJS", "clients", "when", "state", `return (async () => (${js}))()`);
      console.log(JSON.stringify({ id, value: (await evaluate(Notifications, SockJS, clients, when, state)) ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ id, error: String(error) }));
    }
  })
  .on("close", () => process.exit(0));
