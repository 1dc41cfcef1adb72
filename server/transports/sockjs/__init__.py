"""The SockJS door (protocol 0.3.3): all its transports and raw WebSocket, on sockjs-tornado's router.

door            SockJSDoor: routes, the connections, heartbeats
connections     what a connection is: its life, messages in, the bounded queue out
 websocket      … over WebSocket
 http           … over requests that come and go
receivers       these requests: polling, streaming, sending
handlers        what every request goes through; greeting, info, iframe
origins         which web pages may come in
frames          text -> frames -> bytes
stock           what is taken from sockjs-tornado
"""

from server.transports.connections import ClientSession
from server.transports.sockjs.door import SockJSDoor, SockJSOptions

__all__ = ["ClientSession", "SockJSDoor", "SockJSOptions"]
