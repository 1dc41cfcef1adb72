"""Socket.IO at `/socket.io/`: the stock `socket.io-client` 4 of the realtime service (CONTRACT C4) listens here.

The protocol is spoken by our own connections, and not by python-socketio (5.18 on python-engineio 4.15, in its mode for
Tornado), where

- what is sent goes into an `asyncio.Queue` without a bound, and from there, by a task for each client that waits for
  nothing, into Tornado's buffer without one either: a client that stops reading costs all that is ever sent to it;
- what is received over WebSocket goes into another queue without a bound, whatever its reader makes of it; frames may
  have 10 MiB, and each client has its own zlib state for compression, with no way to say no;
- `disconnect()` waits until that queue is empty, which it need not ever be; each ping is a task;
- any number of sessions can be opened over HTTP, and each stays until its pings have gone unanswered;
- `json.loads` sees every packet before anything is known of its sender, and what it raises (RecursionError) ends the
  reader without a word; the address of a client is always 127.0.0.1; ids of sessions are logged as errors.

To mend these is to replace its sockets, its handlers and its queue; what is left are the packets, which are few
(`packets`). So a client here is a connection like every other one (`connections`, `websocket`): admitted, counted,
pinged, paced and bounded as those are, and an event is encoded once for all. python-socketio's own packets are what the
tests hold ours against.
"""

from server.transports.socketio.door import SocketIODoor, routes, session_in

__all__ = ["SocketIODoor", "routes", "session_in"]
