// The stock socket.io-client, as a child of a test: what happens to it is a JSON array a line, what it is to do comes a
// line each on its standard input. Arguments: the URL, and options of io() as JSON.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

// Found by NODE_PATH, which `import` does not look at.
const { io } = createRequire(import.meta.url)("socket.io-client");

const [url, options] = process.argv.slice(2);
const tell = (...what) => console.log(JSON.stringify(what));

const socket = io(url, { reconnectionDelay: 20, reconnectionDelayMax: 100, ...JSON.parse(options) });
socket.io.on("open", () => {
  tell("open", socket.io.engine.transport.name);
  socket.io.engine.on("upgrade", (transport) => tell("upgrade", transport.name));
});
socket.on("connect", () => tell("connect"));
socket.on("connect_error", (error) => tell("connect_error", error.message, error.data ?? null, socket.active));
socket.on("disconnect", (reason) => tell("disconnect", reason, socket.active));
socket.io.on("reconnect_attempt", () => tell("reconnect_attempt"));
socket.io.engine.on("packet", ({ type }) => type === "ping" && tell("ping"));
socket.onAny((name, ...values) => tell("event", name, ...values));

const actions = {
  emit: (...values) => socket.emit(...values),
  binary: (size) => socket.emit("binary", Buffer.alloc(size), { nested: [Buffer.alloc(3)] }),
  disconnect: () => socket.disconnect(),
  connect: (token) => {
    socket.auth = { token };
    socket.connect();
  },
};
createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [name, ...values] = JSON.parse(line);
    actions[name](...values);
    tell("done", name);
  })
  .on("close", () => process.exit(0));
