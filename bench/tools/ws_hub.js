// A hub on Node's `ws`, as a yardstick: `node ws_hub.js PORT`. Who opens /sub/NAME is sent what is posted to /pub/NAME.
// Keeps nothing.
const http = require("http");
const { WebSocketServer } = require("ws");

const rooms = new Map();
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });

const server = http.createServer((request, response) => {
  let text = "";
  request.setEncoding("utf8");
  request.on("data", (chunk) => (text += chunk));
  request.on("end", () => {
    for (const socket of rooms.get(request.url.slice("/pub/".length)) || []) socket.send(text);
    response.end("ok");
  });
});
server.on("upgrade", (request, stream, head) =>
  sockets.handleUpgrade(request, stream, head, (socket) => {
    const name = request.url.slice("/sub/".length);
    if (!rooms.has(name)) rooms.set(name, new Set());
    rooms.get(name).add(socket);
    socket.on("close", () => rooms.get(name).delete(socket));
    socket.on("error", () => {});
  })
);
server.keepAliveTimeout = 120000;
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
